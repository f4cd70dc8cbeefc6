"""The options of a run's Trainer: defaults, and which options are rejected."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from moekit import SpecError, load
from moekit.training.run.folder import RunFolder
from moekit.training.run.prepare import default_precision, make_trainer, quiet, trainer_options
from moekit_optimizers.adafactor import Adafactor


def test_trainer_options_have_defaults_for_a_run_in_steps() -> None:
    recipe = load(
        "jacobs1991",
        ["trainer.max_steps=400", "trainer.accumulate_grad_batches=4", "trainer.precision=16-mixed", "stop=null"],
    )
    options = trainer_options(recipe)
    assert options["val_check_interval"] == 160 and options["check_val_every_n_epoch"] is None
    assert options["log_every_n_steps"] == 4
    assert options["precision"] == "16-mixed"
    assert options["devices"] == 1


@pytest.mark.parametrize(
    ("accelerator", "capability", "expected"),
    [
        ("auto", (9, 0), "bf16-mixed"),
        ("gpu", (8, 0), "bf16-mixed"),
        ("auto", (7, 5), "32-true"),  # T4: torch emulates bf16, and reports that as support
        ("cuda", (7, 0), "32-true"),
        ("cpu", (9, 0), "32-true"),
        ("auto", None, "32-true"),
    ],
)
def test_the_default_precision_is_bf16_only_on_gpus_that_compute_in_it(
    accelerator: str, capability: tuple[int, int] | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert default_precision(accelerator) == expected


def test_a_validation_within_a_step_is_rejected() -> None:
    """Lightning counts micro-batches; a checkpoint within a step would lose the step's first gradients."""
    options = ["trainer.accumulate_grad_batches=4"]
    assert trainer_options(load("jacobs1991", [*options, "trainer.val_check_interval=8"]))["val_check_interval"] == 8
    with pytest.raises(
        SpecError, match="val_check_interval=6 counts micro-batches, and is not a whole number of steps of 4"
    ):
        trainer_options(load("jacobs1991", [*options, "trainer.val_check_interval=6"]))


@pytest.mark.usefixtures("quiet_lightning")
@pytest.mark.parametrize(
    "bad",
    ["trainer.accelerator=abacus", "trainer.devices=0", "trainer.devices=-3"],
)
def test_options_that_the_trainer_rejects_are_a_spec_error(bad: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="the Trainer rejects its options") as caught:
        make_trainer(load("jacobs1991", [bad, "trainer.accelerator=cpu"][::-1]), RunFolder(tmp_path / "run"))
    said = str(caught.value)
    assert f"\n  at {bad.partition('=')[0]}" in said
    assert not (tmp_path / "run").exists()


def test_quiet_hides_warnings_that_users_cannot_act_on() -> None:
    with warnings.catch_warnings(record=True) as heard, quiet():
        warnings.warn("Grad strides do not match bucket view strides. This may", UserWarning, stacklevel=1)
    assert heard == []
    with pytest.warns(UserWarning, match="Grad strides"):
        warnings.warn("Grad strides do not match bucket view strides. This may", UserWarning, stacklevel=1)


@pytest.mark.usefixtures("quiet_lightning")
@pytest.mark.parametrize(
    ("name", "devices", "ep", "said"),
    [
        ("deepseek_v3", 4, 3, "ep=3 does not divide the 4 ranks"),
        ("deepseek_v3", 3, 3, "ep=3 does not divide the 64 experts of a layer"),
        ("jacobs1991", 2, 2, "ranks exchange token-expert pairs"),
    ],
)
def test_ranks_that_cannot_share_the_experts_are_rejected(
    tmp_path: Path, name: str, devices: int, ep: int, said: str
) -> None:
    options = [f"trainer.devices={devices}", "trainer.accelerator=cpu", f"trainer.strategy={{use: sharded, ep: {ep}}}"]
    with pytest.raises(SpecError, match=said):
        make_trainer(load(name, options), RunFolder(tmp_path / "run"))


@pytest.mark.usefixtures("quiet_lightning")
def test_an_optimizer_that_needs_whole_tensors_is_rejected_with_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["optimizer=null", "optimizer={use: adafactor}", "trainer.devices=2", "trainer.accelerator=cpu"]
    make_trainer(load("deepseek_v3", [*options, "trainer.strategy=sharded"]), RunFolder(tmp_path / "run"))
    monkeypatch.setattr(Adafactor, "takes_shards", False)
    with pytest.raises(SpecError, match="Adafactor needs unsharded tensors"):
        make_trainer(load("deepseek_v3", [*options, "trainer.strategy=sharded"]), RunFolder(tmp_path / "run"))
    make_trainer(load("deepseek_v3", [*options, "trainer.strategy=ddp"]), RunFolder(tmp_path / "run"))
    alone = [*options[:2], "trainer.devices=1", "trainer.accelerator=cpu", "trainer.strategy=sharded"]
    make_trainer(load("deepseek_v3", alone), RunFolder(tmp_path / "run"))

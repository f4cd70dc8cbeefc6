"""LitMoE is an ordinary LightningModule: fits, saves plain data, resumes bit for bit, refuses what cannot train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from moekit import DataError, MoekitError, MoELayer, SpecError, load, to_plain
from moekit.checkpoints.format import map_leaves
from moekit.checkpoints.reading import Handle
from moekit.seeds import seed_all
from moekit.training import AtomicCheckpointIO, LitMoE, StepLoader
from moekit.training.data import noise_seed
from moekit.training.run.prepare import metric_names
from moekit.training.run.resume import read_checkpoint

pytestmark = pytest.mark.usefixtures("calm")
Tree = dict[str, Any]
Make = Callable[..., Tree]


def trainer(steps: int, folder: Path | None = None, **options: Any) -> L.Trainer:
    return L.Trainer(
        **{  # type: ignore[arg-type]
            "max_steps": steps,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "default_root_dir": folder,
            **options,
        }
    )


class Losses(L.Callback):
    """What is logged at every step, and a checkpoint after one of them."""

    def __init__(self, save_at: int = 0, path: Path | None = None) -> None:
        self.seen: dict[int, float] = {}
        self.save_at, self.path = save_at, path

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.logged:
            self.seen[pl_module.logged_step] = pl_module.logged["train/loss"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == self.save_at and self.path is not None:
            trainer.save_checkpoint(self.path)


def tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        return [t for key in sorted(tree, key=str) for t in tensors(tree[key])]
    return [t for item in tree for t in tensors(item)] if isinstance(tree, list | tuple) else []


def jittered(tree: Tree) -> Tree:
    """Noise at the router, and weights large enough for it to show in a loss of 32 bits."""
    tree["model"]["moe"]["router"]["input_jitter"] = 0.1
    tree["model"] |= {"init_std": 0.3, "init_scale": None}
    return tree


@pytest.mark.parametrize(
    ("accumulate", "asynchronous", "precision"),
    [
        (1, False, "32-true"),
        (2, False, "32-true"),
        (2, True, "32-true"),
        (1, False, "64-true"),
        (1, False, "bf16-true"),
    ],
)
def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(
    recipe: Make, tmp_path: Path, accumulate: int, asynchronous: bool, precision: str
) -> None:
    """12 steps against 6 and 6, with jitter at the router; AdamW's state, losses, weights and bias.

    The run that is saved trains on for a step, into the copies of an asynchronous save if they were none.
    """
    tree = jittered(recipe())
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 3 * accumulate, "precision": precision}
    path = tmp_path / "six"

    whole, whole_losses = LitMoE(tree), Losses()
    first = trainer(12, callbacks=[whole_losses], **options)
    first.fit(whole)

    stopped = LitMoE(tree)
    # The schedule must see 12 steps: the run is broken off, not shorter.
    saving = Losses(6, path)
    io = AtomicCheckpointIO(asynchronous=asynchronous)
    broken = trainer(12, callbacks=[saving, StopAt(7)], plugins=[io], **options)
    broken.fit(stopped)
    assert broken.global_step == 7

    seed_all(99)  # a new process would differ
    resumed, resumed_losses = LitMoE.load_from_checkpoint(path), Losses()
    second = trainer(12, callbacks=[resumed_losses], plugins=[AtomicCheckpointIO()], **options)
    second.fit(resumed, ckpt_path=path)

    assert second.global_step == 12
    assert list(resumed_losses.seen) == [7, 8, 9, 10, 11, 12]
    assert resumed_losses.seen == {step: loss for step, loss in whole_losses.seen.items() if step > 6}
    assert saving.seen == {step: loss for step, loss in whole_losses.seen.items() if step <= 7}
    for a, b in (
        (whole.state_dict(), resumed.state_dict()),
        (first.optimizers[0].state_dict(), second.optimizers[0].state_dict()),
    ):
        found, expected = tensors(b), tensors(a)
        assert len(found) == len(expected) > 3
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert whole.pace.tokens == resumed.pace.tokens


class StopAt(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


def test_jitter_is_a_function_of_the_micro_batch(recipe: Make) -> None:
    """Whatever else draws from torch's generator between steps, a run draws the same noise."""

    class Draws(Losses):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
            torch.rand(3)
            super().on_train_batch_end(trainer, pl_module, *args)

    tree = jittered(recipe())
    plain, disturbed, without = Losses(), Draws(), Losses()
    trainer(4, callbacks=[plain]).fit(LitMoE(tree))
    trainer(4, callbacks=[disturbed]).fit(LitMoE(tree))
    trainer(4, callbacks=[without]).fit(LitMoE(recipe()))
    assert plain.seen == disturbed.seen != without.seen


def test_every_micro_batch_of_every_step_has_noise_of_its_own(recipe: Make) -> None:
    drawn: list[float] = []

    def draw(module: Any, args: Any) -> None:
        drawn.append(float(torch.rand(())))

    module = LitMoE(recipe(seed=5))
    module.model.register_forward_pre_hook(draw)
    trainer(3, limit_val_batches=0, accumulate_grad_batches=2).fit(module)
    expected = []
    for step in range(3):
        for micro in range(2):
            seed_all(noise_seed(seed=5, step=step, micro=micro))
            expected.append(float(torch.rand(())))
    assert drawn == expected and len(set(drawn)) == 6


def test_the_same_seed_gives_the_same_run_and_another_another(recipe: Make) -> None:
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(runs))
        losses = Losses()
        trainer(3, callbacks=[losses]).fit(LitMoE(recipe(seed=seed)))
        runs.append(losses.seen)
    assert runs[0] == runs[1] != runs[2]


def test_a_checkpoint_is_plain_data_and_makes_the_module_again(recipe: Make, tmp_path: Path) -> None:
    module = LitMoE(load(recipe()))
    t = trainer(3, plugins=[AtomicCheckpointIO()])
    t.fit(module)
    t.save_checkpoint(tmp_path / "step-00000003")
    contents = read_checkpoint(tmp_path / "step-00000003").plain
    assert contents["hyper_parameters"]["spec"] == to_plain(module.recipe)
    json.dumps(map_leaves(contents, lambda handle: list(handle.shape), Handle))
    names = {name for name, _ in module.model.named_parameters()}
    (optimizer,) = contents["optimizer_states"]
    assert optimizer["state"].keys() == names == {n for group in optimizer["param_groups"] for n in group["params"]}
    again = LitMoE.load_from_checkpoint(tmp_path / "step-00000003")
    assert again.recipe == module.recipe
    assert all(
        torch.equal(a, b) for a, b in zip(tensors(again.state_dict()), tensors(module.state_dict()), strict=True)
    )


def test_it_takes_a_recipe_a_name_a_file_and_a_mapping(recipe: Make, tmp_path: Path) -> None:
    from moekit.spec import dump

    spec = load(recipe())
    (tmp_path / "mine.yaml").write_text(dump(spec))
    for source in (spec, recipe(), tmp_path / "mine.yaml", str(tmp_path / "mine.yaml")):
        assert LitMoE(source).recipe == spec
    assert LitMoE("jacobs1991").recipe.model.gives == "mixture"


def test_validation_does_not_count(recipe: Make) -> None:
    often, never = LitMoE(recipe()), LitMoE(recipe())
    trainer(4, val_check_interval=1).fit(often)
    trainer(4, limit_val_batches=0).fit(never)
    (a,) = (m.selection_bias() for m in often.modules() if isinstance(m, MoELayer))
    (b,) = (m.selection_bias() for m in never.modules() if isinstance(m, MoELayer))
    assert a is not None and b is not None and a.any()
    assert torch.equal(a, b)
    assert often.step_load is not None and never.step_load is not None
    (load_a,), (load_b,) = often.step_load.load_E.values(), never.step_load.load_E.values()
    assert torch.equal(load_a, load_b)


def test_the_last_step_is_validated_and_logged_whatever_the_intervals(recipe: Make) -> None:
    class Steps(L.Callback):
        seen: list[int]

        def __init__(self) -> None:
            self.seen = []

        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.seen.append(trainer.global_step)

    steps, module = Steps(), LitMoE(recipe())
    t = trainer(5, val_check_interval=3, log_every_n_steps=50, callbacks=[steps])
    t.fit(module)
    assert steps.seen == [3, 5]
    assert module.logged_step == 5
    assert {"train/loss", "train/bits_per_byte", "train/max_violation", "train/dropped", "lr"} <= set(module.logged)
    assert {"val/loss", "val/bits_per_byte"} <= set(t.callback_metrics)


def test_validation_weighs_every_token_alike(recipe: Make) -> None:
    """The logged mean is the sum over all windows by all tokens, whatever the size of the last batch."""
    module = LitMoE(recipe())
    t = trainer(1)
    t.fit(module)
    assert module.data is not None
    total = count = 0.0
    module.eval()
    for batch in module.data.validation_batches():
        with torch.no_grad():
            loss = module.objective(module(batch.inputs, batch.valid), batch)
        total, count = total + float(loss.total), count + float(loss.count)
    assert float(t.callback_metrics["val/loss"]) == pytest.approx(total / count, rel=1e-5)


def test_stop_ends_the_run_when_the_metric_falls(recipe: Make) -> None:
    module = LitMoE(recipe(stop={"metric": "train/loss", "below": 5.5}))
    t = trainer(200)
    t.fit(module)
    assert module.stopped_after is not None
    assert t.global_step == module.stopped_after + 1 < 200
    assert module.logged["train/loss"] <= 5.5


def test_an_unknown_stop_metric_names_those_there_are(recipe: Make) -> None:
    module = LitMoE(recipe(stop={"metric": "train/los", "below": 1.0}))
    message = (
        "training logs no metric 'train/los'\n  at stop.metric\n"
        "  expected one of train/objective, train/loss, train/bits_per_byte\n  did you mean 'train/loss'?"
    )
    with pytest.raises(SpecError) as caught:
        trainer(2).fit(module)
    assert str(caught.value) == message
    assert metric_names(module) == ["train/objective", "train/loss", "train/bits_per_byte"]


def test_asking_for_metric_names_leaves_no_trace(recipe: Make) -> None:
    a, b = Losses(), Losses()
    asked = LitMoE(recipe())
    metric_names(asked)
    trainer(2, callbacks=[a]).fit(asked)
    trainer(2, callbacks=[b]).fit(LitMoE(recipe()))
    assert a.seen == b.seen


@pytest.mark.parametrize("slot", ["objective", "optimizer"])
def test_a_recipe_that_cannot_be_trained_says_what_is_missing(recipe: Make, slot: str) -> None:
    with pytest.raises(SpecError, match=f"a recipe without {slot} cannot be trained") as caught:
        LitMoE(recipe(**{slot: None}))
    assert f"moekit ls {slot}s" in str(caught.value)


def test_a_recipe_without_data_needs_a_loader(recipe: Make) -> None:
    with pytest.raises(DataError, match="names no data"):
        trainer(1).fit(LitMoE(recipe(data=None)))
    with_data = LitMoE(recipe())
    with_data.prepare()
    assert with_data.data is not None
    loader = StepLoader(with_data.data, seed=1)
    module = LitMoE(recipe(data=None))
    trainer(2, limit_val_batches=0).fit(module, loader)
    assert module.logged_step == 2


def test_a_loss_that_is_no_number_stops_before_any_weight_moves(recipe: Make) -> None:
    module = LitMoE(recipe())
    layer = next(m for m in module.modules() if isinstance(m, MoELayer))
    with torch.no_grad():
        next(layer.router.parameters()).fill_(float("nan"))
    before = module.model.state_dict()
    before = {name: t.clone() for name, t in before.items()}
    with pytest.raises(MoekitError, match="step 1: the loss is nan") as caught:
        trainer(2).fit(module)
    assert "weights that are not finite: blocks.1.ffn.router (weight_ED)" in str(caught.value)
    assert all(torch.equal(a.nan_to_num(), before[n].nan_to_num()) for n, a in module.model.state_dict().items())


def test_counting_in_epochs_ends_an_epoch_after_the_recipes_steps(recipe: Make) -> None:
    module = LitMoE(recipe())
    t = trainer(-1, max_epochs=2, val_check_interval=None, check_val_every_n_epoch=1)
    t.fit(module)
    assert t.global_step == 12

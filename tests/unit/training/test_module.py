"""LitMoE: training, checkpoints of plain data, bit-exact resume, and rejected recipes."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch
from fake_ranks import as_rank
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.tuner import Tuner
from omegaconf import OmegaConf
from states import assert_same_tensors, tensors
from training_helpers import trainer

from moekit import DataError, MoekitError, MoELayer, OptimizerSpec, SpecError, build, load, to_plain
from moekit.checkpoints.format import map_leaves
from moekit.checkpoints.reading import Handle
from moekit.seeds import seed_all
from moekit.training import AtomicCheckpointIO, LitMoE, StepLoader
from moekit.training.data import ValidationShard, noise_seed
from moekit.training.module import TrainingClock
from moekit.training.run.saved import read_checkpoint

pytestmark = pytest.mark.usefixtures("quiet_lightning")
Tree = dict[str, Any]
Make = Callable[..., Tree]


class Losses(L.Callback):
    """Records the logged loss of every step, and saves a checkpoint after one of them."""

    def __init__(self, save_at: int = 0, path: Path | None = None) -> None:
        self.seen: dict[int, float] = {}
        self.save_at, self.path = save_at, path

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.logged:
            self.seen[pl_module.logged_step] = pl_module.logged["train/loss"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == self.save_at and self.path is not None:
            trainer.save_checkpoint(self.path)


def jittered(tree: Tree) -> Tree:
    """With noise at the router, and weights large enough for it to change an fp32 loss."""
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
    """12 steps equal 6 and 6, with router jitter: losses, weights, biases and AdamW's state.

    The saved run trains for one more step, which would change an asynchronous save that did not copy its tensors.
    """
    tree = jittered(recipe())
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 3 * accumulate, "precision": precision}
    path = tmp_path / "six"

    whole, whole_losses = LitMoE(tree), Losses()
    first = trainer(12, callbacks=[whole_losses], **options)
    first.fit(whole)

    stopped = LitMoE(tree)
    # Stopped, not shorter: the schedule must have 12 steps.
    saving = Losses(6, path)
    io = AtomicCheckpointIO(asynchronous=asynchronous)
    broken = trainer(12, callbacks=[saving, StopAt(7)], plugins=[io], **options)
    broken.fit(stopped)
    assert broken.global_step == 7

    seed_all(99)  # as in a new process
    resumed, resumed_losses = LitMoE.load_from_checkpoint(path), Losses()
    second = trainer(12, callbacks=[resumed_losses], plugins=[AtomicCheckpointIO()], **options)
    second.fit(resumed, ckpt_path=path)

    assert second.global_step == 12
    assert list(resumed_losses.seen) == [7, 8, 9, 10, 11, 12]
    assert resumed_losses.seen == {step: loss for step, loss in whole_losses.seen.items() if step > 6}
    assert saving.seen == {step: loss for step, loss in whole_losses.seen.items() if step <= 7}
    found, expected = (
        tensors({"model": module.state_dict(), "optimizer": each.optimizers[0].state_dict()})
        for module, each in ((resumed, second), (whole, first))
    )
    assert_same_tensors(found, expected, more_than=32, keep=tmp_path / "different.pt")
    assert whole.clock.tokens == resumed.clock.tokens


class StopAt(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


def test_ranks_leave_their_process_group_when_python_exits(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("moekit.training.module.leave_process_group_at_exit", lambda: asked.append(True))
    module = LitMoE(recipe())
    module.setup("fit")
    assert asked == []
    with as_rank(1):
        module.setup("fit")
    assert asked == [True]


def test_jitter_is_a_function_of_the_micro_batch(recipe: Make) -> None:
    """Other code that uses torch's generator between steps does not change a run's noise."""

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


def test_every_micro_batch_of_every_step_has_its_own_noise(recipe: Make) -> None:
    noise: list[float] = []

    def record(module: Any, args: Any) -> None:
        noise.append(float(torch.rand(())))

    module = LitMoE(recipe(seed=5))
    module.model.register_forward_pre_hook(record)
    trainer(3, limit_val_batches=0, accumulate_grad_batches=2).fit(module)
    expected = []
    for step in range(3):
        for micro in range(2):
            seed_all(noise_seed(seed=5, step=step, micro=micro))
            expected.append(float(torch.rand(())))
    assert noise == expected and len(set(noise)) == 6


def test_the_seed_determines_the_run(recipe: Make) -> None:
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(runs))
        losses = Losses()
        trainer(3, callbacks=[losses]).fit(LitMoE(recipe(seed=seed)))
        runs.append(losses.seen)
    assert runs[0] == runs[1] != runs[2]


def test_a_checkpoint_is_plain_data_and_restores_the_module(recipe: Make, tmp_path: Path) -> None:
    module = LitMoE(load(recipe()))
    t = trainer(3, plugins=[AtomicCheckpointIO()])
    t.fit(module)
    t.save_checkpoint(tmp_path / "step-00000003")
    contents = read_checkpoint(tmp_path / "step-00000003").plain
    assert contents["hyper_parameters"]["spec"] == to_plain(module.recipe, full_names=True)
    json.dumps(map_leaves(contents, lambda handle: list(handle.shape), Handle))
    names = {name for name, _ in module.model.named_parameters()}
    (optimizer,) = contents["optimizer_states"]
    assert optimizer["state"].keys() == names == {n for group in optimizer["param_groups"] for n in group["params"]}
    again = LitMoE.load_from_checkpoint(tmp_path / "step-00000003")
    assert again.recipe == module.recipe
    assert_same_tensors(tensors(again.state_dict()), tensors(module.state_dict()), more_than=3)


def test_a_module_can_be_made_from_a_recipe_a_name_a_file_a_mapping_or_a_config(recipe: Make, tmp_path: Path) -> None:
    from moekit.spec import dump, to_config

    spec = load(recipe())
    (tmp_path / "mine.yaml").write_text(dump(spec))
    part = OmegaConf.create({"seed": spec.seed, "run": {**to_plain(spec), "seed": "${seed}"}}).run
    for source in (spec, recipe(), tmp_path / "mine.yaml", str(tmp_path / "mine.yaml"), to_config(spec), part):
        assert LitMoE(source).recipe == spec
    assert LitMoE("jacobs1991").recipe.model.gives == "mixture"


def test_validation_changes_no_balancer_and_no_load(recipe: Make) -> None:
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


def test_a_batch_ramp_trains_on_growing_batches_and_counts_their_tokens(recipe: Make) -> None:
    class Sizes(L.Callback):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, i: int) -> None:
            self.seen.append(len(batch.inputs))

    sizes, tree = Sizes(), recipe(batch_ramp={"first": 0.5, "steps": 2})
    batch, seq = tree["data"]["batch"], tree["data"]["seq"]
    module = LitMoE(tree)
    t = trainer(4, log_every_n_steps=1, callbacks=[sizes])
    t.fit(module)
    assert sizes.seen == [round(share * batch) for share in (0.5, 0.75, 1, 1)]
    assert module.logged["tokens"] == sum(sizes.seen) * seq


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


def test_the_validation_loss_is_a_mean_over_tokens(recipe: Make) -> None:
    """Whatever the size of the last batch."""
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


def test_stop_ends_the_run_when_a_validation_metric_falls(recipe: Make) -> None:
    module = LitMoE(recipe(stop={"metric": "val/loss", "below": 5.5}))
    t = trainer(200)
    t.fit(module)
    assert module.stopped_after == module.validated_step == t.global_step < 200
    assert t.global_step % 3 == 0 and float(t.callback_metrics["val/loss"]) <= 5.5


def test_a_module_without_a_trainer_yields_its_batches(recipe: Make) -> None:
    module = LitMoE(recipe(trainer={"accumulate_grad_batches": 2}))
    assert len(list(module.val_dataloader())) == 3
    loader = module.train_dataloader()
    next(iter(loader))
    assert loader.state_dict() == {"step": 0, "micro": 1}


@pytest.mark.parametrize(("key", "during"), [("high", "high"), (None, "medium")])
def test_fp32_products_have_the_recipes_precision_while_it_trains(recipe: Make, key: str | None, during: str) -> None:
    """Without the key, what torch was set to."""
    seen: list[str] = []
    module = LitMoE(recipe(matmul_precision=key))
    module.observers.append(lambda output, batch: seen.append(torch.get_float32_matmul_precision()))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        trainer(2, limit_val_batches=0).fit(module)
        assert seen == [during, during] and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("device", "precision", "ahead"),
    [
        ("cpu", "32-true", False),
        ("cuda:1", "32-true", True),
        ("cuda:1", "bf16-mixed", True),
        ("cuda:1", "16-mixed", True),
        ("cuda:1", "bf16-true", False),  # while it trains, Lightning sets torch's default dtype for every thread
        ("cuda:1", "64-true", False),
    ],
)
def test_batches_are_pinned_for_a_gpu_and_sampled_ahead_where_that_changes_none(
    recipe: Make, device: str, precision: str, ahead: bool
) -> None:
    module = LitMoE(recipe())
    strategy = SimpleNamespace(root_device=torch.device(device))
    settings = {"accumulate_grad_batches": 1, "world_size": 1, "global_rank": 0, "max_steps": 5}
    module._trainer = cast(Any, SimpleNamespace(strategy=strategy, precision=precision, **settings))
    loader = module.train_dataloader()
    assert loader.ahead == ahead and loader.gpu == (None if device == "cpu" else torch.device(device))


def test_a_declared_metric_that_training_does_not_log_is_reported_with_those_it_logs(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = LitMoE(recipe(stop={"metric": "train/bits_per_byte", "below": 1.0}))
    data = module.prepare()
    draw = data.train_batch
    monkeypatch.setattr(data, "train_batch", lambda generator: draw(generator)._replace(num_bytes=None))
    message = "training logs no metric 'train/bits_per_byte'\n  at stop.metric\n  expected one of train/objective"
    with pytest.raises(SpecError, match=f"^{re.escape(message)}"):
        trainer(2, limit_val_batches=0).fit(module)


@pytest.mark.parametrize("slot", ["objective", "optimizer"])
def test_a_recipe_that_cannot_be_trained_is_rejected_with_the_empty_slot(recipe: Make, slot: str) -> None:
    with pytest.raises(SpecError, match=f"a recipe without {slot} cannot be trained") as caught:
        LitMoE(recipe(**{slot: None}))
    assert f"moekit ls {slot}s" in str(caught.value)


def test_a_recipe_without_data_can_be_trained_with_a_loader(recipe: Make) -> None:
    with pytest.raises(DataError, match="names no data"):
        trainer(1).fit(LitMoE(recipe(data=None)))
    with_data = LitMoE(recipe())
    with_data.prepare()
    assert with_data.data is not None
    loader = StepLoader(with_data.data, seed=1)
    module = LitMoE(recipe(data=None))
    trainer(2, limit_val_batches=0).fit(module, loader)
    assert module.logged_step == 2


def test_an_epoch_has_the_recipes_number_of_steps(recipe: Make) -> None:
    module = LitMoE(recipe())
    t = trainer(-1, max_epochs=2, val_check_interval=None, check_val_every_n_epoch=1)
    t.fit(module)
    assert t.global_step == 12


def test_the_clock_excludes_pauses() -> None:
    now = [10.0]
    clock = TrainingClock(lambda: now[0])
    clock.start(seconds=100.0, tokens=50.0)
    now[0] = 12.0
    assert clock.lap(40.0) == pytest.approx(20.0)
    clock.pause()
    now[0] = 30.0
    assert clock.seconds == pytest.approx(102.0)
    clock.resume()
    now[0] = 31.0
    assert clock.seconds == pytest.approx(103.0)
    assert clock.lap(5.0) == pytest.approx(5.0)
    assert clock.tokens == 95.0


Make = Callable[..., dict[str, Any]]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, of: int = 10) -> None:
    """Gives LitMoE a trainer that has done ``step`` steps."""
    trainer = SimpleNamespace(
        accumulate_grad_batches=1, world_size=1, global_step=step, max_steps=of, log_every_n_steps=1
    )
    monkeypatch.setattr(LitMoE, "trainer", trainer)


def test_training_weights_an_encoders_losses_by_the_targets_tokens(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the tokens of the source, which is longer."""
    options = recipe()["model"]
    moe = {**options["moe"], "balancers": {"load": {"use": "load_balance", "weight": 0.5}}}
    moe["router"] = {"use": "topk", "top_k": 2}
    model = {
        **{key: options[key] for key in ("dim", "depth", "ffn")},
        "use": "encoder_decoder",
        "vocab": 320,
        "attention": {"use": "relative", "heads": 2, "head_dim": 8},
        "cross": {"heads": 2, "head_dim": 8},
        "moe": moe,
    }
    text = recipe()["data"]
    module = LitMoE(recipe(model=model, data={"use": "span_corruption", "text": {**text, "seq": 64}, "vocab": 320}))
    batch = module.prepare().train_batch(torch.Generator().manual_seed(0))
    assert batch.source is not None and batch.source.valid is not None and batch.valid is not None
    assert batch.source.valid.sum() > 2 * batch.valid.sum()
    output = module.model.on(batch)
    loss = module.objective(output, batch)
    assert {name.partition(".")[0] for name in output.reports} == {"encoder", "decoder"}
    expected = loss.total + loss.count * sum(report.loss() for report in output.reports.values())
    at_step(monkeypatch, 0)
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_the_objective_gets_the_fraction_of_training_completed(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here multi-token prediction has a lower weight late in training."""
    objective = {"use": "causal_lm", "mtp_weight": 0.3, "mtp_late_weight": 0.1, "mtp_late_from": 0.5}
    module = LitMoE(recipe(model={**recipe()["model"], "mtp": {"depth": 1}}, objective=objective))
    batch = module.prepare().train_batch(torch.Generator().manual_seed(0))
    output = module.model.on(batch)
    early, late = (module.objective(output, batch, progress=share).total for share in (0.4, 0.5))
    assert early > late
    for step, expected in ((4, early), (5, late)):
        at_step(monkeypatch, step)
        torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_a_limit_of_validation_batches_counts_those_of_all_ranks(recipe: Make) -> None:
    """A fraction is left to Lightning."""
    module = LitMoE(recipe())
    found = []
    for limit in (3, 0.5):
        module.trainer = cast(Any, SimpleNamespace(limit_val_batches=limit, world_size=2, global_rank=1))
        loader = cast(ValidationShard, module.val_dataloader())
        found.append((loader.rank, loader.world, loader.limit))
    assert found == [(1, 2, 3), (1, 2, None)]


def test_trainer_validate_returns_the_metrics_before_and_after_training(recipe: Make) -> None:
    module = LitMoE(recipe())
    t = trainer(3)
    (before,) = t.validate(module, verbose=False)
    t.fit(module)
    (after,) = t.validate(module, verbose=False)
    assert {"val/loss", "val/bits_per_byte", "val/max_violation"} <= set(before) == set(after)
    total = count = 0.0
    for batch in module.prepare().validation_batches():
        with torch.no_grad():
            loss = module.objective(module.eval()(batch.inputs, batch.valid), batch)
        total, count = total + float(loss.total), count + float(loss.count)
    assert after["val/loss"] == pytest.approx(total / count, rel=1e-5)
    assert after["val/loss"] < before["val/loss"]


def test_a_validation_alone_gives_loggers_its_metrics_once(recipe: Make, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer(3, logger=logger).validate(LitMoE(recipe()), verbose=False)
    logger.save()
    (row,) = csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines())
    assert float(row["val/loss"]) > 0


def test_progress_bars_of_lightning_show_losses_and_max_violation(recipe: Make) -> None:
    t = trainer(3)
    t.fit(LitMoE(recipe()))
    assert set(t.progress_bar_metrics) == {"train/loss", "train/max_violation", "val/loss"}


def test_lr_find_sets_the_rate_that_training_then_begins_with(recipe: Make, tmp_path: Path) -> None:
    """The search leaves nothing else behind: training equals that of a recipe with this rate, schedule included."""
    module, losses = LitMoE(recipe()), Losses()
    t = trainer(6, tmp_path, limit_val_batches=0)
    found = Tuner(t).lr_find(module, num_training=20)
    assert found is not None and module.lr == found.suggestion() != 1e-2
    t.callbacks.append(losses)  # type: ignore[attr-defined]
    t.fit(module)
    expected = Losses()
    again = LitMoE(load(recipe(), [f"optimizer.lr={module.lr!r}"]))
    trainer(6, limit_val_batches=0, callbacks=[expected]).fit(again)
    assert losses.seen == expected.seen and len(losses.seen) == 6
    assert module.hparams["spec"] == again.hparams["spec"]


def test_the_schedule_begins_with_the_rate_that_lightnings_callback_found(recipe: Make, tmp_path: Path) -> None:
    module, finder = LitMoE(recipe()), LearningRateFinder(num_training_steps=20)
    trainer(4, tmp_path, limit_val_batches=0, callbacks=[finder]).fit(module)
    assert module.lr != 1e-2
    factor = build(module.recipe.schedule, 4)
    assert module.logged["lr"] == pytest.approx(module.lr * factor(3))


def test_an_optimizer_without_a_rate_has_no_lr_to_find(recipe: Make) -> None:
    class Rateless(OptimizerSpec):
        pass

    module = LitMoE(recipe())
    module.recipe = replace(module.recipe, optimizer=Rateless(), schedule=None)
    with pytest.raises(AttributeError, match="lr"):
        _ = module.lr


def test_a_strategy_that_would_train_unsharded_copies_is_refused(recipe: Make) -> None:
    """Under it, each rank would train a whole model of its own, without a word."""
    module = LitMoE(recipe())
    module.trainer = trainer(3, strategy=ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1))
    with pytest.raises(MoekitError, match=r"cannot train with Lightning's ModelParallelStrategy"):
        module.setup("fit")


@pytest.mark.parametrize("size", [1, 2])
def test_ddp_over_different_experts_is_refused(recipe: Make, size: int) -> None:
    """It would broadcast rank 0's experts, and average gradients of different ones."""
    tree = recipe()
    tree["model"]["moe"]["dispatcher"] = {"use": "expert_parallel", "size": size, "local": {"use": "grouped"}}
    with as_rank(1):
        module = LitMoE(tree)
        module.trainer = trainer(3, strategy=DDPStrategy())
        with (
            nullcontext() if size == 1 else pytest.raises(MoekitError, match=r"distributed over ranks, and DDPStrategy")
        ):
            module.configure_model()

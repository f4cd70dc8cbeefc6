"""``MoECallback``: what LitMoE does, on the same layers; accumulation, recomputation, two processes; its mistakes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from attach_rank import Net, Own, cases, fit
from fake_ranks import as_rank
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from ranks import run_forked
from torch import Tensor, nn

import moekit
from moekit import Batch, MoekitError, MoELayer, build, load
from moekit.training import BalanceStep, LitMoE
from moekit_lightning import MoECallback

RANK = Path(__file__).with_name("attach_rank.py")
Tree = dict[str, Any]


def states(module: nn.Module) -> dict[str, Tensor]:
    """Weights, and the balancers' state."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def worst(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


class OfARecipe(L.LightningModule):
    """Trains the model and objective of a recipe as a module of one's own would."""

    def __init__(self, lit: LitMoE) -> None:
        super().__init__()
        self.model, self.objective = copy.deepcopy(lit.model), copy.deepcopy(lit.objective)
        self.optimizer = lit.recipe.optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.objective(self.model.on(batch), batch)
        mean: Tensor = loss.total / loss.count
        return mean + MoECallback.loss(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = build(self.optimizer, self.model)
        return optimizer


def text_batches(number: int) -> list[Batch]:
    tokens = torch.randint(0, 256, (number, 2, 9), generator=torch.Generator().manual_seed(3))
    return [Batch(each[:, :-1], each[:, 1:]) for each in tokens]


@pytest.mark.parametrize("recompute", ["none", "experts", "blocks"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_does_what_litmoe_does_on_the_same_layers(accumulate: int, recompute: str) -> None:
    """Loads, selection biases, and weights trained with a balance loss too."""
    recipe = load(
        "deepseek_v3",
        [
            "model.dim=16", "model.depth=2", "model.vocab=256", "model.ffn.hidden=16", "model.mtp=null", "data=null",
            "model.moe.experts.hidden=8", "model.moe.experts.count=8", "model.moe.router.top_k=2",
            "model.moe.balancers.sequence.weight=0.5", "model.moe.router.groups=2", "model.moe.router.top_groups=1",
            "model.moe.shared.hidden=8", "schedule=null", "optimizer={use: sgd, lr: 0.1}",
            f"model.recompute={recompute}", "trainer={max_steps: 4}",
        ],
    )  # fmt: skip
    lit = LitMoE(recipe)
    own, attached = OfARecipe(lit), MoECallback()
    loads: list[Tensor] = []

    class Loads(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
            loads.append(torch.cat(list(attached.step_load.load_E.values())))  # type: ignore[union-attr]

    fit(lit, text_batches(4 * accumulate), accumulate)
    fit(own, text_batches(4 * accumulate), accumulate, attached, Loads())
    assert lit.step_load is not None and attached.step_load is not None
    assert len(loads) == 4 and all(int(load.sum()) == accumulate * 16 * 2 for load in loads)
    assert torch.equal(loads[-1], torch.cat(list(lit.step_load.load_E.values())))
    ours = {n: t for n, t in states(own).items() if n.startswith("model.")}
    theirs = {n: t for n, t in states(lit).items() if n.startswith("model.")}
    assert any(t.any() for n, t in ours.items() if n.endswith("bias_E"))
    assert all(torch.equal(t, theirs[n]) for n, t in ours.items() if n.endswith("bias_E"))
    assert worst(ours, theirs) < 1e-9


@pytest.mark.parametrize("checkpointed", [False, True])
def test_micro_batches_equal_one_batch_with_and_without_activation_checkpointing(checkpointed: bool) -> None:
    """Loads, biases and weights; the balance loss of whole sequences does not depend on micro-batches."""
    one, four = Own(), Own(checkpointed)
    counted = MoECallback(), MoECallback()
    fit(one, cases(40, 8), 1, counted[0])
    fit(four, cases(40, 2), 4, counted[1])
    assert counted[0].step_load is not None and counted[1].step_load is not None
    for name, load_E in counted[0].step_load.load_E.items():
        assert int(load_E.sum()) == 8 * 4 * 2
        assert torch.equal(load_E, counted[1].step_load.load_E[name])
    assert one.net.moe.selection_bias().any()  # type: ignore[union-attr]
    assert worst(states(one), states(four)) < 1e-12


@pytest.mark.parametrize("strategy", ["ddp", "ddp_find_unused_parameters_true", "fsdp2"])
def test_two_processes_give_what_one_gives(strategy: str, tmp_path: Path) -> None:
    """Under Lightning's own strategies: weights, biases and the logged load."""
    run_forked(RANK, 2, str(tmp_path), strategy)
    one, counted = Own(), MoECallback()
    fit(one, cases(40, 8), 1, counted)
    for rank in range(2):
        found = torch.load(tmp_path / str(rank))
        assert worst(found["state"], states(one)) < 1e-12
        assert counted.step_load is not None
        assert {n: load.tolist() for n, load in found["load"].items()} == {
            n: load.tolist() for n, load in counted.step_load.load_E.items()
        }
        assert found["logged"] == pytest.approx(float(one.trainer.callback_metrics["train/max_violation"]))


def test_the_loss_is_that_of_every_forward_pass_of_the_micro_batch() -> None:
    class Twice(Own):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            first, second = (self.net.moe(self.net.inp(batch[0]))[1] for _ in range(2))
            assert torch.equal(MoECallback.loss(self), first.loss() + second.loss())
            assert first.loss() > 0
            return MoECallback.loss(self)

    counted = MoECallback()
    fit(Twice(), cases(8, 8), 1, counted)
    assert counted.step_load is not None and int(counted.step_load.load_E["net.moe"].sum()) == 2 * 8 * 4 * 2


def test_several_backward_passes_of_a_manual_step_count_once_each() -> None:
    class Manual(Own):
        def __init__(self) -> None:
            super().__init__(checkpointed=True)
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            for x in batch[0].chunk(2):
                y = self.net(x)
                assert len(self.trainer.callbacks[0].reports) == 1  # type: ignore[attr-defined]
                self.manual_backward(y.square().mean() + MoECallback.loss(self))
            self.optimizers().step()  # type: ignore[union-attr]

    counted = MoECallback()
    fit(Manual(), cases(8, 8), 1, counted)
    assert counted.step_load is not None and int(counted.step_load.load_E["net.moe"].sum()) == 8 * 4 * 2


def test_validation_and_layers_in_evaluation_mode_do_not_count() -> None:
    class Teacher(Own):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = Net()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            with torch.no_grad():
                self.teacher.eval()(batch[0])
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.net.train()(batch[0])

        def val_dataloader(self) -> Any:
            return cases(8, 8)

    counted = MoECallback()
    fit(Teacher(), cases(16, 8), 1, counted)
    assert counted.step_load is not None
    assert {name: int(load.sum()) for name, load in counted.step_load.load_E.items()} == {"net.moe": 8 * 4 * 2}


def test_metrics_reach_loggers_and_progress_bars(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer = fit(Own(), cases(24, 8), 1, MoECallback(), logger=logger)
    logger.save()
    header, *rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    layer = {"max_violation/net.moe", "min_load/net.moe"}
    assert layer | {"train/max_violation", "train/dropped", "train/experts_per_token"} <= set(header.split(","))
    assert len(rows) == 3
    assert trainer.progress_bar_metrics.keys() == {"train/max_violation"}
    assert trainer.callback_metrics["max_violation/net.moe"] == trainer.callback_metrics["train/max_violation"]


class Forgets(Own):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.net(batch[0]).square().mean()


class AddsByHand(Own):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        y, report = self.net.moe(self.net.inp(batch[0]))
        loss: Tensor = y.square().mean() + report.loss()
        return loss


class Reentrant(Own):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0].requires_grad_()
        y: Tensor = torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=True)
        return y.square().mean() + MoECallback.loss(self)


@pytest.mark.parametrize("module", [Forgets, Reentrant])
def test_a_balance_loss_that_no_backward_pass_uses_is_reported_once(module: Callable[[], Own]) -> None:
    expected = r"no backward pass of this optimizer step used the balance losses net\.moe\.sequence; add MoECallback"
    with pytest.warns(UserWarning, match=expected) as warned:
        fit(module(), cases(24, 8), 1, MoECallback())
    assert len([w for w in warned if "balance losses" in str(w.message)]) == 1


@pytest.mark.parametrize("module", [Own, AddsByHand])
def test_a_balance_loss_that_is_used_is_not_reported(module: Callable[[], Own]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*balance losses")
        fit(module(), cases(24, 8), 1, MoECallback())


def test_it_runs_in_a_compiled_model() -> None:
    plain, compiled = Own(), Own()
    compiled.net = torch.compile(compiled.net, backend="eager")  # type: ignore[assignment]
    counted = MoECallback(), MoECallback()
    fit(plain, cases(40, 8), 1, counted[0])
    fit(compiled, cases(40, 8), 1, counted[1])
    assert counted[0].step_load is not None and counted[1].step_load is not None
    (a,), (b,) = counted[0].step_load.load_E.values(), counted[1].step_load.load_E.values()
    assert torch.equal(a, b) and int(a.sum()) == 8 * 4 * 2


def test_it_attaches_to_layers_that_replace_made() -> None:
    class Replaced(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
            bias = {"bias": {"use": "sign_bias", "rate": 0.5}}
            parts = {
                "router": {"use": "topk", "top_k": 2},
                "experts": {"use": "glu", "count": 4, "hidden": 8},
                "balancers": bias,
            }
            moekit.replace(self.net, nn.TransformerEncoderLayer, parts)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            y: Tensor = self.net(batch)
            return y.square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module, counted = Replaced(), MoECallback()
    fit(module, torch.utils.data.DataLoader(torch.randn(4, 6, 8), batch_size=4), 1, counted)  # type: ignore[arg-type]
    assert counted.step_load is not None and len(counted.step_load.load_E) == 2
    assert all(m.selection_bias().any() for m in module.modules() if isinstance(m, MoELayer))  # type: ignore[union-attr]


class StepsItself(Own):
    def __init__(self) -> None:
        super().__init__()
        self.balance = BalanceStep(self.net)


class Dense(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return MoECallback.loss(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TooEarly(Own):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return MoECallback.loss(self)


@pytest.mark.parametrize(
    ("module", "callbacks", "message"),
    [
        (StepsItself, [MoECallback], "StepsItself steps its balancers itself, by its attribute 'balance'"),
        (Dense, [MoECallback], "Dense has no MoELayer\n  expected some, from moekit.layer or moekit.replace"),
        (Dense, [], r"the trainer has no MoECallback\n  expected Trainer\(callbacks="),
        (TooEarly, [MoECallback], "no MoELayer has run in this training step yet"),
    ],
)
def test_mistakes_are_named(module: Callable[[], Any], callbacks: list[Callable[[], Any]], message: str) -> None:
    with pytest.raises(MoekitError, match=message):
        fit(module(), cases(8, 8), 1, *(make() for make in callbacks))


@pytest.mark.parametrize("size", [1, 2])
def test_ddp_over_different_experts_is_refused(size: int) -> None:
    """It would broadcast rank 0's experts, and average gradients of different ones."""
    dispatcher = {"use": "expert_parallel", "size": size, "local": {"use": "grouped"}}
    parts = {"router": {"use": "topk", "top_k": 2}, "experts": {"use": "glu", "count": 4, "hidden": 8}}
    trainer: Any = SimpleNamespace(strategy=DDPStrategy())
    with as_rank(1):
        module = Own()
        module.net.moe = moekit.layer(dim=8, dispatcher=dispatcher, **parts)  # type: ignore[arg-type]
        with (
            nullcontext() if size == 1 else pytest.raises(MoekitError, match=r"distributed over ranks, and DDPStrategy")
        ):
            MoECallback().on_fit_start(trainer, module)


def test_litmoe_needs_none() -> None:
    with pytest.raises(MoekitError, match="LitMoE steps its balancers itself, as LitMoE does"):
        fit(LitMoE("jacobs1991"), text_batches(1), 1, MoECallback())

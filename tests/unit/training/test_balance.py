"""The balancers' step: micro-batches of any sizes equal one big batch, with and without activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from training_helpers import report, trainer

from moekit import Batch, MoELayer, load
from moekit.spec.kinds import MoE
from moekit.training import BalanceStep, LitMoE
from moekit.training.balance import max_violation
from moekit.training.metrics import load_metrics

Tree = dict[str, Any]
BIAS: Tree = {"bias": {"use": "sign_bias", "rate": 0.01}}
LAGGED: Tree = {**BIAS, "load": {"use": "load_balance", "weight": 0.5, "scope": "step"}}
SEQUENCE: Tree = {**BIAS, "sequence": {"use": "sequence_balance", "weight": 0.5}}
MICRO: Tree = {**BIAS, "load": {"use": "load_balance", "weight": 0.5, "scope": "micro_batch"}}


@dataclass
class Step:
    load_E: Tensor
    bias_E: Tensor
    grads: dict[str, Tensor]
    norm: float


class Recording(LitMoE):
    """Records every optimizer step after clipping; loads and biases of all layers are concatenated."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self.recorded: list[Step] = []

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
        assert self.step_load is not None
        load_E = torch.cat(list(self.step_load.load_E.values()))
        biases = [m.selection_bias() for m in self.modules() if isinstance(m, MoELayer)]
        bias_E = torch.cat([b for b in biases if b is not None])
        grads = {n: p.grad.clone() for n, p in self.named_parameters() if p.grad is not None}
        norm = float(torch.nn.utils.get_total_norm(list(grads.values())))
        self.recorded.append(Step(load_E, bias_E.clone(), grads, norm))


def micro_batches(sizes: list[int], padded: bool) -> list[Batch]:
    g = torch.Generator().manual_seed(3)
    out = []
    for size in sizes:
        tokens = torch.randint(0, 256, (size, 7), generator=g)
        length = torch.randint(2, 7, (size, 1), generator=g) if padded else torch.full((size, 1), 6)
        out.append(Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(6) < length))
    return out


def together(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat([b[i] for b in batches]) for i in range(3)))  # type: ignore[arg-type]


def run(tree: Tree, batches: list[Batch], accumulate: int, clip: float | None = None) -> list[Step]:
    module = Recording(load(tree))
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip, "precision": "64-true"}
    t = trainer(-1, max_epochs=1, val_check_interval=None, check_val_every_n_epoch=1, **options)
    t.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return module.recorded


def worst(a: list[Step], b: list[Step]) -> float:
    return max(
        float((x.grads[n] - y.grads[n]).norm() / y.grads[n].norm().clamp(min=1e-30))
        for x, y in zip(a, b, strict=True)
        for n in y.grads
        if y.grads[n].norm() > 0
    )


@pytest.fixture
def tree(recipe: Callable[..., Tree]) -> Callable[..., Tree]:
    def make(balancers: Tree, recompute: str = "none", mtp: int = 0) -> Tree:
        plain = recipe(data=None)
        plain["model"]["moe"]["balancers"] = balancers
        plain["model"]["moe"]["dispatcher"] = {"use": "loop"}
        plain["model"]["recompute"] = recompute
        plain["model"]["mtp"] = {"depth": mtp} if mtp else None
        return plain

    return make


@pytest.mark.usefixtures("quiet_lightning")
@pytest.mark.parametrize("recompute", ["none", "experts", "blocks"])
@pytest.mark.parametrize("balancers", [BIAS, LAGGED, SEQUENCE], ids=["bias", "lagged", "sequence"])
@pytest.mark.parametrize(
    ("sizes", "padded"),
    [([2] * 8, False), ([1, 3, 2, 4, 2, 1, 5, 1], True), ([1, 3, 2, 4, 2, 1], True)],
    ids=["equal", "unequal", "short_last_window"],
)
def test_four_micro_batches_equal_one_big_batch(
    tree: Callable[..., Tree], sizes: list[int], padded: bool, balancers: Tree, recompute: str
) -> None:
    batches = micro_batches(sizes, padded)
    big = [together(batches[i : i + 4]) for i in range(0, len(batches), 4)]
    few = run(tree(balancers, recompute), batches, accumulate=4)
    one = run(tree(balancers), big, accumulate=1)
    assert len(few) == len(one) == len(big)
    for a, b, batch in zip(few, one, big, strict=True):
        assert batch.valid is not None
        assert int(a.load_E.sum()) == 2 * int(batch.valid.sum())  # counted once each, padding not at all
        assert torch.equal(a.load_E, b.load_E)
        assert torch.equal(a.bias_E, b.bias_E)
    assert any(step.bias_E.any() for step in few)
    # The first step's gradients differ by rounding alone; a later one also by what AdamW makes of that rounding.
    assert worst(few[:1], one[:1]) < 1e-12
    assert worst(few, one) < 1e-9


@pytest.mark.usefixtures("quiet_lightning")
@pytest.mark.parametrize("recompute", ["none", "experts", "blocks"])
@pytest.mark.parametrize("padded", [False, True])
def test_micro_batches_equal_one_batch_with_multi_token_prediction(
    tree: Callable[..., Tree], padded: bool, recompute: str
) -> None:
    """Those layers get fewer tokens than the objective counts; how many fewer depends on a micro-batch's padding."""
    batches = micro_batches([1, 3, 2, 4], padded)
    (few,) = run(tree(SEQUENCE, recompute, mtp=2), batches, accumulate=4)
    (one,) = run(tree(SEQUENCE, mtp=2), [together(batches)], accumulate=1)
    assert few.load_E.numel() == 3 * 4
    assert torch.equal(few.load_E, one.load_E)
    assert torch.equal(few.bias_E, one.bias_E)
    routers = [name for name in one.grads if name.startswith("model.mtp") and "router" in name]
    assert len(routers) == 2 and all(one.grads[name].any() for name in routers)
    assert worst([few], [one]) < 1e-12


@pytest.mark.usefixtures("quiet_lightning")
def test_a_loss_of_micro_batch_scope_depends_on_the_micro_batches(tree: Callable[..., Tree]) -> None:
    """Shows that the comparison above can fail."""
    batches = micro_batches([1, 3, 2, 4], True)
    few = run(tree(MICRO), batches, accumulate=4)
    one = run(tree(MICRO), [together(batches)], accumulate=1)
    assert worst(few, one) > 1e-5


@pytest.mark.usefixtures("quiet_lightning")
def test_clipping_uses_the_gradients_of_the_whole_step(tree: Callable[..., Tree]) -> None:
    batches = micro_batches([1, 3, 2, 4], True)
    free = run(tree(LAGGED), batches, accumulate=4)[0]
    clip = free.norm / 3
    few = run(tree(LAGGED), batches, accumulate=4, clip=clip)
    one = run(tree(LAGGED), [together(batches)], accumulate=1, clip=clip)
    assert few[0].norm == pytest.approx(clip, rel=1e-5)
    assert worst(few, one) < 1e-12
    untouched = run(tree(LAGGED), batches, accumulate=4, clip=free.norm * 1.01)[0]
    assert all(torch.equal(untouched.grads[n], g) for n, g in free.grads.items())


class Holder(torch.nn.Module):
    """A user's model with two layers of four experts."""

    def __init__(self, spec: MoE) -> None:
        super().__init__()
        self.one = MoELayer.from_spec(spec, 16)
        self.two = MoELayer.from_spec(spec, 16)


@pytest.fixture
def holder(recipe: Callable[..., Tree]) -> Holder:
    return Holder(load(recipe()).model.moe)  # type: ignore[attr-defined]


def bias_of(layer: MoELayer) -> list[float]:
    bias_E = layer.selection_bias()
    assert bias_E is not None
    return [round(b, 6) for b in bias_E.tolist()]


def test_step_sums_loads_updates_balancers_once_and_resets(holder: Holder) -> None:
    balance = BalanceStep(holder)
    assert set(balance.layers) == {"one", "two"}
    balance.observe({"one": report([0] * 5, dropped=2)})
    balance.observe({"one": report([3] * 3), "two": report([1] * 4)})
    assert bias_of(holder.one) == [0, 0, 0, 0]
    seen = balance.step()
    assert seen is not None
    assert seen.load_E["one"].tolist() == [5, 0, 0, 3]
    assert seen.load_E["two"].tolist() == [0, 4, 0, 0]
    assert (int(seen.dropped["one"]), int(seen.tokens["one"]), int(seen.tokens["two"])) == (2, 8, 4)
    assert float(seen.dropped_fraction()) == pytest.approx(2 / 12)
    assert bias_of(holder.one) == [-0.01, 0.01, 0.01, -0.01]
    assert bias_of(holder.two) == [0.01, -0.01, 0.01, 0.01]
    assert balance.step() is None
    assert bias_of(holder.one) == [-0.01, 0.01, 0.01, -0.01]


def test_loads_are_summed_over_the_given_group(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one all-reduce for all layers."""
    groups: list[object] = []

    def twice(tensor: Tensor, group: object = None) -> None:
        groups.append(group)
        tensor.mul_(2)

    monkeypatch.setattr("moekit.training.balance.is_distributed", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", twice)
    some: Any = object()
    balance = BalanceStep(holder, group=some)
    balance.observe({"one": report([0, 0, 1], dropped=1), "two": report([2])})
    seen = balance.step()
    assert seen is not None and groups == [some]
    assert seen.load_E["one"].tolist() == [4, 2, 0, 0] and seen.load_E["two"].tolist() == [0, 0, 2, 0]
    assert (int(seen.dropped["one"]), int(seen.tokens["one"])) == (2, 6)


def test_lost_tokens_are_summed_over_layers_and_divided_by_all_tokens(holder: Holder) -> None:
    """None, of a dispatcher that drops nothing, counts as 0."""
    balance = BalanceStep(holder)
    balance.observe(
        {"one": replace(report([0] * 5, dropped=3), dropped_tokens=torch.tensor(3)), "two": report([1] * 5)}
    )
    balance.observe({"one": replace(report([0] * 2, dropped=1), dropped_tokens=torch.tensor(1))})
    seen = balance.step()
    assert seen is not None
    assert {name: int(count) for name, count in seen.dropped_tokens.items()} == {"one": 4, "two": 0}
    assert float(seen.dropped_tokens_fraction()) == pytest.approx(4 / 12)
    assert float(seen.experts_per_token()) == pytest.approx((12 - 4) / 12)  # of 12 pairs, 4 were dropped
    assert load_metrics(seen, ["one", "two"])["train/dropped_tokens"] == pytest.approx(4 / 12)


def test_the_dropped_fraction_is_0_without_pairs(holder: Holder) -> None:
    balance = BalanceStep(holder)
    balance.observe({"one": report([])})
    seen = balance.step()
    assert seen is not None and float(seen.dropped_fraction()) == 0


@pytest.mark.usefixtures("quiet_lightning")
def test_balancers_get_the_fraction_of_training_completed(
    recipe: Callable[..., Tree], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 at the first of three steps, two thirds at the last."""
    module, seen = LitMoE(recipe()), []
    (layer,) = (m for m in module.modules() if isinstance(m, MoELayer))
    monkeypatch.setattr(layer.balancers["bias"], "step", lambda load_E, *, progress: seen.append(progress))
    trainer(3, limit_val_batches=0).fit(module)
    assert seen == pytest.approx([0, 1 / 3, 2 / 3])


def test_counts_are_in_no_state_dict(holder: Holder) -> None:
    balance = BalanceStep(holder)
    keys = set(holder.state_dict())
    balance.observe({"one": report([0])})
    assert set(holder.state_dict()) == keys


def test_a_report_of_an_unknown_layer_is_rejected(holder: Holder) -> None:
    with pytest.raises(
        ValueError, match="a report of 'three', which is not an MoELayer of the model; its layers: one, two"
    ):
        BalanceStep(holder).observe({"three": report([0])})


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ([6, 2, 4], 0.5),  # Wang et al.'s definition: (6 - 4) / 4
        ([5, 5, 5, 5], 0.0),
        ([8, 0, 0, 0], 3.0),  # E - 1
        ([0, 0, 0], 0.0),
        ([7], 0.0),
    ],
)
def test_max_violation_follows_its_definition(load: list[int], expected: float) -> None:
    assert max_violation(torch.tensor(load)).item() == pytest.approx(expected, rel=1e-6)


def test_max_violation_keeps_leading_dimensions() -> None:
    load_LE = torch.tensor([[6, 2, 4], [0, 0, 0], [3, 3, 3]])
    assert max_violation(load_LE).tolist() == [0.5, 0.0, 0.0]
    assert max_violation(load_LE.double()).tolist() == [0.5, 0.0, 0.0]


def test_max_violation_does_not_round_counts() -> None:
    assert max_violation(torch.tensor([2**40 + 1, 2**40])).item() > 0

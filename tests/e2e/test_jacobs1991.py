"""The 1991 experiment, 25 seeds a system at its best learning rate, as measured with the protocol in the vowels room.

All seeds of a system train side by side (``torch.func.vmap`` over stacked weights), full batch, plain gradient descent,
until the blended output's mean squared error is 0.08.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from moekit import ModelOutput, build, load
from moekit.contracts import Batch

pytestmark = pytest.mark.xdist_group("jacobs1991")  # systems are trained once and shared by the tests

SEEDS = 25
LIMIT = 6000
CRITERION = 0.08


@dataclass(frozen=True)
class Outcome:
    epochs: Tensor  # [seeds] float; inf where the criterion was not reached
    test_accuracy: Tensor  # [seeds]
    active: Tensor  # [seeds] experts whose gate exceeds 0.1 in some training case


def train(recipe: str, lr: float, overrides: tuple[str, ...], limit: int = LIMIT) -> Outcome:
    """Trains SEEDS models of a recipe side by side; each one's weights are read at its own stopping epoch."""
    spec = load(recipe, overrides)
    data = build(spec.data)
    data.prepare()
    batch = data.train_batch(torch.Generator())
    (test,) = data.validation_batches()
    objective = build(spec.objective)
    models = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        models.append(build(spec.model))
    params, _ = torch.func.stack_module_state(models)
    params = {name: p.detach() for name, p in params.items()}
    base = models[0]

    def run(p: dict[str, Tensor], b: Batch) -> ModelOutput:
        return torch.func.functional_call(base, p, (b.inputs,))

    def loss(p: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        out = run(p, batch)
        result = objective(out, batch)
        return result.total / result.count, (out.y - batch.targets).square().sum(-1).mean()

    step = torch.func.vmap(torch.func.grad(loss, has_aux=True))
    epochs = torch.full((SEEDS,), float("inf"))
    final = {name: p.clone() for name, p in params.items()}
    for epoch in range(limit):
        grads, error = step(params)
        done = (error <= CRITERION) & epochs.isinf()
        if done.any():
            epochs[done] = epoch
            for name, p in params.items():
                final[name][done] = p[done]
            if epochs.isfinite().all():
                break
        params = {name: p - lr * grads[name] for name, p in params.items()}

    def measure(p: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        right = ((run(p, test).y > 0.5) == (test.targets > 0.5)).float().mean()
        reports = list(run(p, batch).reports.values())
        if not reports:
            return right, torch.zeros(())
        gate_TE = reports[0].routing.combine_TEP.sum(-1)
        return right, (gate_TE.amax(0) > 0.1).sum()

    accuracy, active = torch.func.vmap(measure)(final)
    return Outcome(epochs, accuracy, active.float())


@cache
def mixture(experts: int, error: str, lr: float) -> Outcome:
    return train("jacobs1991", lr, (f"model.moe.experts.count={experts}", f"objective.error={error}"))


@cache
def net(hidden: int) -> Outcome:
    overrides = (
        f"model={{use: mlp, inputs: 2, hidden: {hidden}, outputs: 1, init_range: 0.5}}",
        "objective={use: squared_error}",
    )
    return train("jacobs1991", 20.0, overrides)


@pytest.mark.parametrize("experts", [4, 8])
def test_every_seed_converges_sooner_than_the_better_net(experts: int) -> None:
    ours = mixture(experts, "likelihood", 30.0)
    assert ours.epochs.isfinite().all(), "a seed did not reach the criterion"
    nets = [net(6), net(12)]
    assert all(n.epochs.isfinite().all() for n in nets), "the nets converge at their best rate: they are a fair rival"
    best = min(float(n.epochs.mean()) for n in nets)
    assert float(ours.epochs.mean()) < 0.75 * best
    assert float(ours.test_accuracy.mean()) >= 0.90
    assert float(ours.test_accuracy.mean()) >= max(float(n.test_accuracy.mean()) for n in nets) - 0.01


@pytest.mark.parametrize("experts", [4, 8])
def test_two_or_three_experts_stay_active(experts: int) -> None:
    active = mixture(experts, "likelihood", 30.0).active
    assert ((active >= 2) & (active <= 3)).all()


def test_with_eight_experts_competition_ends_with_fewer_active_than_cooperation() -> None:
    competing = mixture(8, "likelihood", 30.0)
    cooperating = mixture(8, "cooperative", 20.0)  # eq. 1.1 as printed, without a factor of one half
    assert cooperating.epochs.isfinite().all()
    assert float(competing.active.mean()) < float(cooperating.active.mean()) - 2

"""The 1991 experiment: mixtures of experts against backprop nets, 25 seeds a system, epochs to one criterion.

The protocol is in ``docs/measurements.md``. All seeds of a system train at once
(``torch.func.vmap`` over stacked weights): full batch, plain gradient descent, until the blended output's mean squared
error is 0.08. Run ``python benchmarks/jacobs1991.py`` (about a minute). ``tests/e2e/test_jacobs1991.py`` checks the
paper's claims on its results.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from moekit import ModelOutput, build, load
from moekit.contracts import Batch

SEEDS = 25
LIMIT = 6000
CRITERION = 0.08


@dataclass(frozen=True)
class System:
    """A model, and its best learning rate of 3, 5, 7, 10, 15, 20, 30, 40, 50 and 70."""

    name: str
    lr: float
    overrides: tuple[str, ...]


def _mixture(experts: int, error: str, lr: float) -> System:
    overrides = (f"model.moe.experts.count={experts}", f"objective.error={error}")
    return System(f"{experts} experts, {error}", lr, overrides)


def _net(hidden: int, lr: float) -> System:
    model = f"model={{use: mlp, inputs: 2, hidden: {hidden}, outputs: 1, init_range: 0.5}}"
    return System(f"backprop, {hidden} hidden", lr, (model, "objective={use: squared_error}"))


SYSTEMS = {
    s.name: s
    for s in (
        _mixture(4, "likelihood", 30.0),
        _mixture(8, "likelihood", 30.0),
        _net(6, 20.0),
        _net(12, 20.0),
        _mixture(8, "cooperative", 20.0),  # eq. 1.1 as printed, without a factor of one half
        _mixture(8, "competitive", 10.0),  # eq. 1.2, likewise
    )
}


@dataclass(frozen=True)
class Outcome:
    """The results of each seed.

    Attributes:
        epochs: to the criterion; inf if it was not reached.
        train, test: share of cases on the right side of 0.5.
        active: experts whose gate exceeds 0.1 in some training case; 0 for nets.
    """

    epochs: Tensor
    train: Tensor
    test: Tensor
    active: Tensor


def train(system: System, limit: int = LIMIT) -> Outcome:
    """Trains SEEDS models at once; each is evaluated with the weights of its own stopping epoch."""
    spec = load("jacobs1991", system.overrides)
    data = build(spec.data)
    data.prepare()
    batch = data.train_batch(torch.Generator())
    (test,) = data.validation_batches()
    objective = build(spec.objective)
    models = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        models.append(build(spec.model))
    stacked, _ = torch.func.stack_module_state(models)
    params = {name: p.detach() for name, p in stacked.items()}

    def run(p: dict[str, Tensor], b: Batch) -> ModelOutput:
        return torch.func.functional_call(models[0], p, (b.inputs,))

    def loss(p: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        out = run(p, batch)
        result = objective(out, batch)
        return result.total / result.count, (out.y - batch.targets).square().sum(-1).mean()

    # Traced once: the same operations, without calling the modules in each of thousands of epochs.
    step = make_fx(torch.func.vmap(torch.func.grad(loss, has_aux=True)))(params)
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
        params = {name: p - system.lr * grads[name] for name, p in params.items()}

    def right(p: dict[str, Tensor], b: Batch) -> Tensor:
        return ((run(p, b).y > 0.5) == (b.targets > 0.5)).float().mean()

    def measure(p: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        reports = list(run(p, batch).reports.values())
        active = torch.zeros(())
        if reports:
            active = (reports[0].routing.combine_TEP.sum(-1).amax(0) > 0.1).sum().float()
        return right(p, batch), right(p, test), active

    return Outcome(epochs, *torch.func.vmap(measure)(final))


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    table = Table("system", "rate", "converged", "epochs, mean ± SD", "train %", "test %", "active experts")
    for system in SYSTEMS.values():
        out = train(system)
        done = out.epochs.isfinite()
        table.add_row(
            system.name,
            f"{system.lr:g}",
            f"{int(done.sum())}/{SEEDS}",
            f"{float(out.epochs[done].mean()):.0f} ± {float(out.epochs[done].std()):.0f}",
            f"{100 * float(out.train.mean()):.1f}",
            f"{100 * float(out.test.mean()):.1f}",
            f"{float(out.active.mean()):.2f}" if out.active.any() else "",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

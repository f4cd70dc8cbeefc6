"""The 1991 experiment: mixtures of experts against backprop nets, 25 seeds a system, epochs to one criterion.

    python benchmarks/jacobs1991.py           # about a minute
    python benchmarks/jacobs1991.py --docs    # also writes the table of docs/measurements.md, which has the protocol

All seeds of a system train at once (``torch.func.vmap`` over stacked weights): full batch, plain gradient descent,
until the blended output's mean squared error is 0.08. ``tests/e2e/test_jacobs1991.py`` checks the paper's claims.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import measured
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from moekit import ModelOutput, build, load
from moekit.contracts import Batch

SEEDS = 25
LIMIT = 6000
CRITERION = 0.08
MEAN_SD = "{:.0f} ± {:.0f}"


@dataclass(frozen=True)
class System:
    """A model, its best rate of 3, 5, 7, 10, 15, 20, 30, 40, 50 and 70, and the paper's epochs, mean and SD."""

    name: str
    lr: float
    overrides: tuple[str, ...]
    paper: tuple[int, int] | None = None


def _mixture(experts: int, error: str, lr: float, paper: tuple[int, int] | None = None) -> System:
    overrides = (f"model.moe.experts.count={experts}", f"objective.error={error}")
    return System(f"{experts} experts, {error}", lr, overrides, paper)


def _net(hidden: int, lr: float, paper: tuple[int, int]) -> System:
    model = f"model={{use: mlp, inputs: 2, hidden: {hidden}, outputs: 1, init_range: 0.5}}"
    return System(f"backprop, {hidden} hidden", lr, (model, "objective={use: squared_error}"), paper)


SYSTEMS = {
    s.name: s
    for s in (
        _mixture(4, "likelihood", 30.0, (1124, 23)),  # eq. 1.3
        _mixture(8, "likelihood", 30.0, (1083, 12)),
        _net(6, 20.0, (2209, 83)),
        _net(12, 20.0, (2435, 124)),
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


def row(system: System, out: Outcome) -> list[Any]:
    """A row of the table; epochs are of the seeds that converged."""
    epochs, active = out.epochs[out.epochs.isfinite()], float(out.active.mean())
    spread = [float(epochs.mean()), float(epochs.std())]
    accuracy = [100 * float(right.mean()) for right in (out.train, out.test)]
    return [system.name, system.lr, [len(epochs), SEEDS], spread, *accuracy, active or None, system.paper]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measured.option(parser)
    args = parser.parse_args()
    outcomes = {system: train(system) for system in SYSTEMS.values()}
    columns = {
        "system": "{}", "rate": "{:g}", "converged": "{}/{}", "epochs, mean ± SD": MEAN_SD, "train %": "{:.1f}",
        "test %": "{:.1f}", "active experts": "{:.2f}", "paper's epochs ± SD": MEAN_SD,
    }  # fmt: skip
    epochs = {system.name: float(out.epochs.mean()) for system, out in outcomes.items()}
    net = min(epochs[name] for name in epochs if "backprop" in name)
    made = measured.table(
        columns,
        [row(system, out) for system, out in outcomes.items()],
        words="With the likelihood, 4 experts need {four:.2f} of the better net's epochs, 8 experts {eight:.2f}.",
        values={"four": epochs["4 experts, likelihood"] / net, "eight": epochs["8 experts, likelihood"] / net},
    )
    measured.publish("vowels", made, docs=args.docs)


if __name__ == "__main__":
    main()

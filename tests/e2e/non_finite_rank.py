"""Run in every rank by ``test_non_finite_ranks``: a tensor becomes NaN or infinite on one rank, or in one expert."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from moekit import MoekitError, MoELayer
from moekit.shards import local
from moekit.spec import load
from moekit.training import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.prepare import make_trainer, quiet

EXPERT = 5  # of 8; of two ranks that share them, rank 1 holds it
NAN = float("nan")
Fault = Callable[[LitMoE], None]


def rank() -> int:
    return int(os.environ["RANK"])


def held(module: LitMoE, name: str) -> Tensor | None:
    """This rank's shard of a parameter of the expert, in any layout; None if it holds none of it."""
    layer = next(m for m in module.modules() if isinstance(m, MoELayer))
    here = layer.dispatcher.local_experts or range(8)
    mine = local(layer.experts.get_parameter(name)).detach()
    if len(mine) < len(here):  # sharded along the experts
        here = here[len(mine) * rank() : len(mine) * (rank() + 1)]
    return mine[EXPERT - here[0]] if EXPERT in here else None


def weight(module: LitMoE) -> None:
    if (mine := held(module, "w_down_EOH")) is not None:
        mine[0] = NAN


def overflow(module: LitMoE) -> None:
    for name in ("w_gate_up_EHD", "w_down_EOH"):
        if (mine := held(module, name)) is not None:
            mine.fill_(1e30)


def activation(module: LitMoE) -> None:
    """NaN in the tokens of rank 1, in step 2."""

    def inject(_: Any, args: Any, output: Tensor) -> Tensor:
        return output * NAN if rank() == 1 and module.trainer.global_step == 1 else output

    module.model.get_submodule("blocks.0.attention").register_forward_hook(inject)


def gradient(module: LitMoE) -> None:
    """NaN gradient of the first block's output, on rank 1, in step 2."""

    def inject(_: Any, args: Any, output: tuple[Tensor, Any]) -> None:
        if rank() == 1 and module.trainer.global_step == 1 and output[0].requires_grad:
            output[0].register_hook(lambda grad: grad * NAN)

    module.model.get_submodule("blocks.0").register_forward_hook(inject)


FAULTS: dict[str, Fault] = {p.__name__: p for p in (weight, overflow, activation, gradient)}


class FaultInjection(L.Callback):
    """Injects the fault when training starts; keeps the weights after each step."""

    def __init__(self, inject: Fault) -> None:
        self.inject = inject
        self.after: list[list[Tensor]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LitMoE)
        self.inject(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        tensors = [*pl_module.parameters(), *pl_module.buffers()]
        self.after.append([local(t).detach().clone() for t in tensors])


def main(spec: str, options: str, out: str) -> None:
    results: dict[str, Any] = {}
    for name, inject in FAULTS.items():
        for policy in ("stop", "skip"):
            if policy == "skip" and name in ("weight", "overflow"):
                continue
            recipe = load(spec, [*json.loads(options), f"non_finite={policy}"])
            injection = FaultInjection(inject)
            module = LitMoE(recipe)
            trainer = make_trainer(recipe, RunFolder(Path("nowhere")), callbacks=[injection])
            error = ""
            try:
                trainer.fit(module)
            except MoekitError as stopped:
                error = str(stopped)
            results[f"{name} {policy}"] = {"error": error, "count": module.skips.count, **moved(injection.after)}
    (Path(out) / f"rank{rank()}.json").write_text(json.dumps(results))


def moved(after: list[list[Tensor]]) -> Mapping[str, Any]:
    """Which steps after the first changed any tensor; whether all tensors are finite at the end."""
    steps = [not all(map(torch.equal, a, b)) for a, b in pairwise(after)]
    return {"moved": steps, "finite": all(bool(torch.isfinite(t).all()) for t in (after[-1] if after else []))}


if __name__ == "__main__":
    with quiet():
        main(*sys.argv[1:])

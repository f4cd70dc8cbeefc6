"""What is read off a training step: the sums that are logged, the layers' losses, load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moekit.contracts import LayerReport, LossSum
from moekit.observe.load import max_violation
from moekit.spec.recipe import Stop
from moekit.training.balance import StepLoad
from moekit.training.health.policy import unknown_metric

if TYPE_CHECKING:
    import lightning as L


def sums_of(loss: LossSum) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums and denominators by name.

    ``objective`` is what is trained for. ``loss`` is the same, unless the objective's own metrics say otherwise
    (without the terms of multi-token prediction). Then come its other metrics.
    """
    whole = (loss.total, loss.count)
    return {"objective": whole, "loss": whole, **loss.metrics}


def balance_sum(reports: Mapping[str, LayerReport], tokens: Mapping[str, Tensor] | None = None) -> Tensor | None:
    """0-d: the weighted balance losses of all layers, summed over tokens; None when no layer has one.

    Args:
        reports: by layer name.
        tokens: 0-d, by layer name, what weighs a layer's losses where that is not the number of its own tokens.

    Each layer's loss is a mean over the tokens that this layer saw, and is weighted by them: the layers of multi-token
    prediction see fewer than the objective counts, and how many fewer depends on the padding. An encoder's layers see
    a source, longer or shorter than the target that the objective counts: they are weighted by the target's tokens.
    """
    tokens = tokens or {}
    terms = [r.loss() * tokens.get(name, r.routing.num_valid()) for name, r in reports.items() if r.losses]
    return torch.stack(terms).sum() if terms else None


def load_readings(load: StepLoad | None, layers: Sequence[str]) -> dict[str, float]:
    """MaxVio (mean over layers) and the fraction of dropped pairs; nothing without sparse layers.

    Args:
        load: what the layers saw in a step.
        layers: those whose load can be uneven.
    """
    if load is None or not layers:
        return {}
    uneven = torch.stack([max_violation(load.load_E[name]) for name in layers])
    return {"train/max_violation": float(uneven.mean()), "train/dropped": float(load.dropped_fraction())}


def progress(trainer: L.Trainer) -> float:
    """The share of the run that lies behind; 0 where its length is unknown."""
    return max(trainer.global_step / trainer.max_steps, 0.0) if trainer.max_steps > 0 else 0.0


def logs_now(trainer: L.Trainer) -> bool:
    """Whether the optimizer step under way is one whose values are logged."""
    every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
    return every > 0 and (trainer.global_step + 1) % every == 0


def reached(stop: Stop, pairs: Mapping[str, Tensor]) -> bool:
    """Whether the metric of ``stop`` has fallen to its bound. Waits for the device.

    Raises:
        SpecError: training logs no such metric.
    """
    name = stop.metric.removeprefix("train/")
    if name not in pairs:
        raise unknown_metric(stop.metric, [f"train/{known}" for known in pairs])
    return bool((pairs[name][0] / pairs[name][1]).item() <= stop.below)

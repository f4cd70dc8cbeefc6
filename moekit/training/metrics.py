"""Training and validation metrics: sums over micro-batches and ranks, their means, and load metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from moekit.contracts import LayerReport, LossSum
from moekit.distributed import is_distributed
from moekit.errors import Problem, SpecError, nearest
from moekit.spec.fields import MetricInfo, metrics_of
from moekit.spec.recipe import Recipe, Stop
from moekit.training.balance import StepLoad, max_violation


class Meter:
    """Accumulates (sum, denominator) pairs by name, on their device."""

    def __init__(self) -> None:
        self._pairs: dict[str, Tensor] = {}

    def add(self, sums: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Adds 0-d sums and their denominators. Nothing is copied to the host."""
        for name, (total, count) in sums.items():
            # MPS has no float64.
            dtype = torch.float32 if total.device.type == "mps" else torch.float64
            pair = torch.stack([total.detach().to(dtype), count.detach().to(dtype)])
            self._pairs[name] = self._pairs[name] + pair if name in self._pairs else pair

    def take(self) -> dict[str, Tensor]:
        """``[sum, denominator]`` by name, over all ranks (one all-reduce); resets the sums to zero."""
        pairs, self._pairs = self._pairs, {}
        if pairs and is_distributed():
            flat = torch.stack(list(pairs.values()))
            dist.all_reduce(flat)
            pairs = dict(zip(pairs, flat.unbind(), strict=True))
        return pairs


def ratios(pairs: Mapping[str, Tensor], prefix: str) -> dict[str, float]:
    """Each sum over its denominator, as numbers on the host (one copy); NaN where the denominator is 0."""
    if not pairs:
        return {}
    total, count = torch.stack(list(pairs.values())).unbind(1)
    return {prefix + name: value for name, value in zip(pairs, (total / count).tolist(), strict=True)}


def loss_sums(loss: LossSum) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums and denominators by name: ``objective`` (minimised), ``loss`` and the objective's other metrics.

    ``loss`` equals ``objective``, unless the objective's own metrics define it otherwise (without the terms of
    multi-token prediction).
    """
    whole = (loss.total, loss.count)
    return {"objective": whole, "loss": whole, **loss.metrics}


def balance_sum(
    reports: Mapping[str, LayerReport], tokens: Mapping[str, Tensor] | None = None, learnt: Tensor | None = None
) -> Tensor | None:
    """0-d: the weighted balance losses of all layers, summed over tokens; None when no layer has one.

    Each layer's loss is a mean over its own tokens, and is multiplied by their number. Layers of multi-token prediction
    have fewer tokens than the objective counts; how many fewer depends on padding. Layers of an encoder read the
    source, whose length differs from that of the target: their losses are multiplied by the target's tokens. These
    layers are in ``tokens`` (0-d, by layer name). The objective counts only tokens that have a target, whose share of
    the valid ones is ``learnt`` (0-d; None for all), so the number of a layer's tokens is multiplied by it.
    """
    tokens, share = tokens or {}, 1 if learnt is None else learnt
    terms = [r.loss() * tokens.get(name, r.routing.num_valid() * share) for name, r in reports.items() if r.losses]
    return torch.stack(terms).sum() if terms else None


def load_metrics(load: StepLoad | None, layers: Sequence[str]) -> dict[str, float]:
    """MaxVio (mean over sparse ``layers``, by name), and what was dropped and computed. Empty without sparse layers.

    ``dropped`` is a fraction of pairs, ``dropped_tokens`` one of tokens: those that lost all their experts.
    ``experts_per_token`` is the work done: experts that computed a token, without drops and choices that were not sent.
    """
    if load is None or not layers:
        return {}
    uneven = torch.stack([max_violation(load.load_E[name]) for name in layers])
    return {
        "train/max_violation": float(uneven.mean()),
        "train/dropped": float(load.dropped_fraction()),
        "train/dropped_tokens": float(load.dropped_tokens_fraction()),
        "train/experts_per_token": float(load.experts_per_token()),
    }


def progress(trainer: L.Trainer) -> float:
    """The fraction of training completed; 0 when the number of steps is unknown."""
    return max(trainer.global_step / trainer.max_steps, 0.0) if trainer.max_steps > 0 else 0.0


def is_logged_step(trainer: L.Trainer) -> bool:
    """Whether the metrics of the current optimizer step are logged."""
    every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
    return every > 0 and (trainer.global_step + 1) % every == 0


def is_validated_step(trainer: L.Trainer) -> bool:
    """Whether training validates after the current number of optimizer steps, or would if validations were on."""
    micro_batches, every = trainer.global_step * trainer.accumulate_grad_batches, trainer.val_check_interval
    counts_steps = isinstance(every, int) and trainer.check_val_every_n_epoch is None
    return counts_steps and micro_batches > 0 and micro_batches % every == 0


def reached(stop: Stop, values: Mapping[str, float]) -> bool:
    """Whether the metric of ``stop`` has fallen to its bound.

    Raises:
        SpecError: it is none of ``values``, the metrics of a training step or of a validation.
    """
    if stop.metric not in values:
        known = [name for name in values if "/" in name]
        what, expected = f"training logs no metric '{stop.metric}'", "one of " + ", ".join(known)
        raise SpecError([Problem(what=what, at="stop.metric", expected=expected, nearest=nearest(stop.metric, known))])
    return values[stop.metric] <= stop.below


def has_stopped(state: Mapping[str, Any]) -> bool:
    """Whether a callback ``EarlyStopping`` of this state has ended training, because its metric stopped improving."""
    return bool(state.get("wait_count", 0) >= max(1, state.get("patience", 1)))


def headline(recipe: Recipe, logged: Collection[str]) -> tuple[str, MetricInfo]:
    """The main metric of a run: the first headline that a part of the recipe declares, if ``val/<name>`` is logged.

    Else it is the loss.
    """
    declared = metrics_of(recipe)
    for name, info in declared.items():
        if info.headline and f"val/{name}" in logged:
            return name, info
    return "loss", declared.get("loss", MetricInfo("loss"))


class Validation:
    """Accumulates one pass over a validation set, batch by batch, over all ranks.

    It counts the load itself, since ``BalanceStep`` must not: validation updates no balancer.
    """

    def __init__(self) -> None:
        self._sums = Meter()
        self._load: dict[str, Tensor] = {}

    def add(self, loss: LossSum, reports: Mapping[str, LayerReport]) -> None:
        """Adds one batch, without copying to the host. Layers with soft routing, whose load is even, are ignored."""
        self._sums.add(loss_sums(loss))
        for name, report in reports.items():
            if report.routing.form != "soft":
                self._load[name] = self._load[name] + report.load_E if name in self._load else report.load_E

    def take(self) -> dict[str, float]:
        """``val/loss``, the objective's other metrics, and ``val/max_violation`` for sparse layers; resets the sums.

        The last is the global MaxVio of Wang et al. (2024): MaxVio of each layer's load over the whole validation set,
        mean over layers.

        Returns:
            Numbers by name, the same on every rank; empty when nothing was added. Every rank must call it, and either
            all ranks or none must have added a batch.
        """
        values = ratios(self._sums.take(), "val/")
        loads, self._load = list(self._load.values()), {}
        if loads:
            flat = torch.cat(loads)
            if is_distributed():
                dist.all_reduce(flat)
            uneven = [max_violation(load_E) for load_E in torch.split(flat, [load_E.numel() for load_E in loads])]
            values["val/max_violation"] = float(torch.stack(uneven).mean())
        return values

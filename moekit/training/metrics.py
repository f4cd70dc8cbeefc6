"""Training and validation metrics: sums over micro-batches and ranks, load metrics, and the pace of training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from moekit.contracts import LayerReport, LossSum
from moekit.distributed import is_distributed
from moekit.errors import Problem, SpecError, nearest
from moekit.spec.recipe import Stop
from moekit.training.balance import StepLoad, max_violation


class Meter:
    """Adds up (sum, denominator) pairs by name."""

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
        """``[sum, denominator]`` by name, over all ranks (one all-reduce), and starts again at zero."""
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


if TYPE_CHECKING:
    import lightning as L


def loss_sums(loss: LossSum) -> dict[str, tuple[Tensor, Tensor]]:
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


def load_metrics(load: StepLoad | None, layers: Sequence[str]) -> dict[str, float]:
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


def is_logged_step(trainer: L.Trainer) -> bool:
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


class Validation:
    """Adds up one pass over a validation set, batch by batch, over all ranks.

    The load is counted here and not in ``BalanceStep``: no balancer moves by what validation sees.
    """

    def __init__(self) -> None:
        self._sums = Meter()
        self._load: dict[str, Tensor] = {}

    def add(self, loss: LossSum, reports: Mapping[str, LayerReport]) -> None:
        """Adds one batch. Nothing is copied to the host.

        Args:
            loss: the objective's sums.
            reports: what each layer saw; layers under soft routing, whose load is even by nature, are left out.
        """
        self._sums.add(loss_sums(loss))
        for name, report in reports.items():
            if report.routing.form != "soft":
                self._load[name] = self._load[name] + report.load_E if name in self._load else report.load_E

    def take(self) -> dict[str, float]:
        """``val/loss``, the objective's other metrics, and ``val/max_violation`` where layers are sparse.

        The last is Wang et al.'s (2024) global MaxVio: each layer's load summed over the whole validation set, MaxVio
        of it, mean over layers.

        Returns:
            Numbers by name, the same on every rank; empty when nothing was added. Each rank must call it, and have
            added a batch, or none of them any.
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


class Pace:
    """A stopwatch that pauses for validation, and the tokens that went by.

    Args:
        clock: seconds from any start; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds = 0.0
        self._since: float | None = None  # None while paused
        self.tokens = 0.0
        self._lap = (0.0, 0.0)

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._seconds + (0.0 if self._since is None else self._clock() - self._since)

    def start(self, seconds: float = 0.0, tokens: float = 0.0) -> None:
        """Starts from what an earlier run had reached."""
        self._seconds, self.tokens = seconds, tokens
        self._since = self._clock()
        self._lap = (seconds, tokens)

    def pause(self) -> None:
        """Stops the clock."""
        self._seconds, self._since = self.seconds, None

    def resume(self) -> None:
        """Lets it run on."""
        self._seconds, self._since = self.seconds, self._clock()

    def lap(self, tokens: float) -> float:
        """Tokens per second since the last lap, in which ``tokens`` went by."""
        self.tokens += tokens
        now, (seconds, before) = self.seconds, self._lap
        self._lap = (now, self.tokens)
        return (self.tokens - before) / max(now - seconds, 1e-9)


def unknown_metric(name: str, known: Sequence[str]) -> SpecError:
    """The error for a ``stop.metric`` that training does not log."""
    return SpecError(
        [
            Problem(
                what=f"training logs no metric '{name}'",
                at="stop.metric",
                expected="one of " + ", ".join(known),
                nearest=nearest(name, list(known)),
            )
        ]
    )

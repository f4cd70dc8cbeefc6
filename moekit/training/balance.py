"""The balancers' step: loads counted over the micro-batches and ranks of one optimizer step, then acted on once.

Two calls in any training loop, moekit's or your own::

    self.balance = BalanceStep(self.model)

    def training_step(self, batch, batch_idx):
        y, report = self.layer(batch)
        self.balance.observe({"layer": report})            # or output.reports of a moekit model
        ...

    def on_before_optimizer_step(self, optimizer):
        seen = self.balance.step()                          # one all-reduce, every balancer's step, back to zero

Nothing is counted inside forward, so activation recompute cannot count twice; nothing is counted where ``observe`` is
not called, so validation does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moekit.contracts import LayerReport
from moekit.distributed import is_distributed
from moekit.layer import MoELayer


@dataclass(frozen=True, kw_only=True)
class StepLoad:
    """What every layer saw in one optimizer step, over all its micro-batches and ranks.

    Attributes:
        load_E: int64 ``[E]`` by layer name: tokens sent to each expert, before drops.
        dropped: 0-d int64 by layer name: pairs beyond capacity.
        tokens: 0-d int64 by layer name: valid tokens that passed the layer.
    """

    load_E: Mapping[str, Tensor]
    dropped: Mapping[str, Tensor]
    tokens: Mapping[str, Tensor]

    def dropped_fraction(self) -> Tensor:
        """0-d float: dropped pairs of all layers over all pairs; 0 where nothing was sent."""
        pairs = torch.stack([load.sum() for load in self.load_E.values()]).sum()
        return torch.stack(list(self.dropped.values())).sum() / pairs.clamp(min=1)


class BalanceStep:
    """Counts what MoE layers saw since the last optimizer step, and moves their balancers.

    The counts are plain int64 tensors on the layers' device: they belong to no state dict, and are zero at every
    boundary of an optimizer step, where checkpoints are taken.

    Args:
        model: holds the layers (any ``nn.Module``); each goes by its module name inside it.
        group: the ranks whose tokens make the global batch; all of them when left out.
    """

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        self.layers = {name: module for name, module in model.named_modules() if isinstance(module, MoELayer)}
        self.group = group
        self._counts: dict[str, Tensor] = {}

    def observe(self, reports: Mapping[str, LayerReport]) -> None:
        """Adds what one training forward pass saw.

        Args:
            reports: each layer's report, by its name in the model (``ModelOutput.reports``).

        Raises:
            ValueError: a name that is no MoE layer of the model.
        """
        for name, report in reports.items():
            if name not in self.layers:
                raise ValueError(
                    f"a report of '{name}', which is no MoELayer of the model; its layers: {', '.join(self.layers)}"
                )
            seen = torch.cat([report.load_E, torch.stack([report.dropped, report.routing.num_valid()])]).detach()
            self._counts[name] = self._counts[name] + seen if name in self._counts else seen

    def forget(self) -> None:
        """Starts again at zero: the optimizer step is left out."""
        self._counts = {}

    @torch.no_grad()
    def step(self, *, progress: float = 0.0) -> StepLoad | None:
        """Adds the counts up over ranks, calls ``step`` of every layer that was observed, and starts again at zero.

        Call it once per optimizer step, on every rank, after the last backward.

        Args:
            progress: the share of the run that lies behind, for balancers whose rate changes on the way.

        Returns:
            What was seen; None when nothing was observed since the last step.
        """
        if not self._counts:
            return None
        names = list(self._counts)
        sizes = [self._counts[name].numel() for name in names]
        flat = torch.cat([self._counts[name] for name in names])
        if is_distributed():
            dist.all_reduce(flat, group=self.group)
        counts = dict(zip(names, torch.split(flat, sizes), strict=True))
        self._counts = {}
        for name, count in counts.items():
            self.layers[name].step(count[:-2], progress=progress)
        return StepLoad(
            load_E={name: count[:-2] for name, count in counts.items()},
            dropped={name: count[-2] for name, count in counts.items()},
            tokens={name: count[-1] for name, count in counts.items()},
        )


def max_violation(load_E: Tensor) -> Tensor:
    """MaxVio: how far the busiest expert lies above the mean load, ``(max c - mean c) / mean c``.

    0 when all experts get the same, E - 1 when one gets everything, 0 when there is no load.

    Args:
        load_E: tokens per expert, ``[..., E]``; leading dimensions (layers, steps) are kept.

    Returns:
        ``[...]``, floating.

    Source: Wang et al. 2024, Auxiliary-Loss-Free Load Balancing.
    """
    load_E = load_E if load_E.is_floating_point() else load_E.long()
    total = load_E.sum(-1)
    excess = load_E.amax(-1) * load_E.shape[-1] - total  # E times (max - mean): exact for counts
    return (excess / total).where(total > 0, 0)

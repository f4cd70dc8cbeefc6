"""The balancers' step: add up loads over the micro-batches and ranks of one optimizer step, then update once.

Two calls in any training loop, moekit's or your own::

    self.balance = BalanceStep(self.model)

    def training_step(self, batch, batch_idx):
        y, report = self.layer(batch)
        self.balance.observe({"layer": report})            # or output.reports of a moekit model
        ...

    def on_before_optimizer_step(self, optimizer):
        seen = self.balance.step()                          # one all-reduce, every balancer's step, back to zero

``observe`` counts, and ``forward`` does not: so activation checkpointing cannot count a token twice, and validation,
which does not call ``observe``, does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moekit.contracts import LayerReport
from moekit.distributed import is_distributed
from moekit.moe_layer import MoELayer


@dataclass(frozen=True, kw_only=True)
class StepLoad:
    """The load of every layer in one optimizer step, summed over micro-batches and ranks; all by layer name.

    Attributes:
        load_E: int64 ``[E]``, tokens sent to each expert, before drops.
        dropped: 0-d int64, pairs beyond capacity.
        dropped_tokens: 0-d int64, tokens that lost all their experts.
        tokens: 0-d int64, valid tokens that passed through the layer.
    """

    load_E: Mapping[str, Tensor]
    dropped: Mapping[str, Tensor]
    dropped_tokens: Mapping[str, Tensor]
    tokens: Mapping[str, Tensor]

    def dropped_fraction(self) -> Tensor:
        """0-d float: dropped pairs of all layers, divided by all pairs; 0 without pairs."""
        pairs = torch.stack([load.sum() for load in self.load_E.values()]).sum()
        return torch.stack(list(self.dropped.values())).sum() / pairs.clamp(min=1)

    def experts_per_token(self) -> Tensor:
        """0-d float: pairs that experts computed (sent and not dropped), divided by tokens, over all layers."""
        pairs = torch.stack([load.sum() - self.dropped[name] for name, load in self.load_E.items()]).sum()
        return pairs / torch.stack(list(self.tokens.values())).sum().clamp(min=1)

    def dropped_tokens_fraction(self) -> Tensor:
        """0-d float: tokens that lost all their experts, divided by all tokens, over all layers; 0 without tokens."""
        tokens = torch.stack(list(self.tokens.values())).sum()
        return torch.stack(list(self.dropped_tokens.values())).sum() / tokens.clamp(min=1)


class BalanceStep:
    """Counts the load of MoE layers since the last optimizer step, and updates their balancers.

    The counts are plain int64 tensors on the layers' device. No state dict needs them: checkpoints are taken between
    optimizer steps, when the counts are zero.

    Args:
        model: any ``nn.Module`` that has MoE layers; their names are their module names in it.
        group: the ranks whose tokens form the global batch; default: all ranks.
    """

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        self.layers = {name: module for name, module in model.named_modules() if isinstance(module, MoELayer)}
        self.group = group
        self._counts: dict[str, Tensor] = {}

    def observe(self, reports: Mapping[str, LayerReport]) -> None:
        """Adds the load of one training forward pass, by the layer's name (``ModelOutput.reports``).

        Raises:
            ValueError: a name is not that of an MoE layer of the model.
        """
        for name, report in reports.items():
            if name not in self.layers:
                raise ValueError(
                    f"a report of '{name}', which is not an MoELayer of the model; its layers: {', '.join(self.layers)}"
                )
            lost = torch.zeros_like(report.dropped) if report.dropped_tokens is None else report.dropped_tokens
            others = torch.stack([report.dropped, lost, report.routing.num_valid()])
            seen = torch.cat([report.load_E, others]).detach()
            self._counts[name] = self._counts[name] + seen if name in self._counts else seen

    @contextmanager
    def watching(self) -> Iterator[list[tuple[str, LayerReport]]]:
        """Observes what layers report in the block, for a model that does not return it, as after ``moekit.replace``.

        Leave the block before ``backward``: with activation checkpointing, layers run again there. A layer in
        evaluation mode is not observed.

        Returns:
            A list that grows with each forward pass: the layer's name, and its report.
        """
        seen: list[tuple[str, LayerReport]] = []

        def see(name: str, layer: nn.Module, inputs: object, output: tuple[Tensor, LayerReport]) -> None:
            if layer.training:
                self.observe({name: output[1]})
                seen.append((name, output[1]))

        hooks = [layer.register_forward_hook(partial(see, name)) for name, layer in self.layers.items()]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def discard(self) -> None:
        """Resets the counts to zero, for an optimizer step that is skipped."""
        self._counts = {}

    @torch.no_grad()
    def step(self, *, progress: float = 0.0) -> StepLoad | None:
        """Sums the counts over ranks, calls ``step`` of every observed layer, and resets the counts to zero.

        Call it once per optimizer step, on every rank, after the last backward. Every rank must have observed the same
        layers: their counts are added in one all-reduce. ``progress`` is passed to balancers.

        Returns:
            The counts of the step; None when nothing was observed since the last one.
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
            self.layers[name].step(count[:-3], progress=progress)
        return StepLoad(
            load_E={name: count[:-3] for name, count in counts.items()},
            dropped={name: count[-3] for name, count in counts.items()},
            dropped_tokens={name: count[-2] for name, count in counts.items()},
            tokens={name: count[-1] for name, count in counts.items()},
        )


def max_violation(load_E: Tensor) -> Tensor:
    """MaxVio: how far the highest load exceeds the mean, ``(max c - mean c) / mean c``.

    0 when all experts have the same load, E - 1 when one has all of it, 0 without load.

    Args:
        load_E: tokens per expert, ``[..., E]``; leading dimensions (layers, steps) are kept.

    Returns:
        ``[...]``, floating.

    Source: Wang et al. 2024, Auxiliary-Loss-Free Load Balancing.
    """
    load_E = load_E if load_E.is_floating_point() else load_E.long()
    total = load_E.sum(-1)
    excess = load_E.amax(-1) * load_E.shape[-1] - total  # E times (max - mean): exact for counts
    excess = excess if excess.is_floating_point() else excess.float()
    return (excess / total).where(total > 0, 0)

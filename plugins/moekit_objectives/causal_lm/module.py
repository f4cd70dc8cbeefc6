"""Cross entropy summed over tokens, in fp32 even under autocast. Reference: ``naive.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.contracts import Batch, LossSum, ModelOutput, Objective
from moekit.contracts.run import NOT_LEARNT
from moekit.routing import Routing
from moekit_objectives.causal_lm import CausalLM


@final
class CausalLMObjective(Objective):
    """``sum_i -log p(t_{i+1}) + weight/depth · sum_k sum_i -log p_k(t_{i+1+k})``, over valid targets.

    Divided by the count of valid targets it is the paper's ``L + weight/depth · sum_k L_k``. With ``z_loss`` it adds
    that weight times ``sum_i logsumexp(logits_i)²``, with ``pooled_balance`` that weight times the balance loss of all
    mixtures together.
    """

    def __init__(self, spec: CausalLM) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, output: ModelOutput, batch: Batch, *, progress: float = 0.0) -> LossSum:
        """The loss of one batch of ``tokens_BS``.

        Returns:
            Metrics, of the next token alone: ``loss`` in nats a token; ``bits_per_byte`` if the batch says how
            many bytes its targets spell; ``exact`` if the spec says so, over sequences that have a valid target.
        """
        target_BS = batch.targets if batch.valid is None else batch.targets.where(batch.valid, NOT_LEARNT)
        count = (target_BS != NOT_LEARNT).sum()
        nats = _nats(output.y, target_BS)
        total = nats
        weight = self.spec.weight_at(progress)
        if weight and output.future:
            ahead = [_nats(logits, _later(target_BS, batch, k)) for k, logits in enumerate(output.future, start=1)]
            total = nats + weight * torch.stack(ahead).mean()
        if self.spec.z_loss:
            total = total + self.spec.z_loss * _squared_z(output.y, target_BS)
        metrics = {"loss": (nats.detach(), count)}
        # Without mixtures there is no such loss: a dense model, or a part of an output that is scored alone.
        if self.spec.pooled_balance and (routings := _routings(output)):
            value = pooled_balance(routings)
            total = total + self.spec.pooled_balance * value * count
            metrics["pooled_balance"] = (value.detach() * count, count)
        if batch.num_bytes is not None:
            metrics["bits_per_byte"] = (nats.detach() / math.log(2), batch.num_bytes)
        if self.spec.exact:
            metrics["exact"] = _exact(output.y.detach(), target_BS)
        return LossSum(total=total, count=count, metrics=metrics)


def _later(target_BS: Tensor, batch: Batch, k: int) -> Tensor:
    """The targets k places later; none where the token before it is of another document."""
    later_BS, document_BS = target_BS[:, k:], batch.document
    if document_BS is None:
        return later_BS
    return later_BS.where(document_BS[:, :-k] == document_BS[:, k:], NOT_LEARNT)


def _routings(output: ModelOutput) -> list[Routing]:
    """Those of all layers that are not an encoder's."""
    return [report.routing for name, report in output.reports.items() if name not in output.of_source]


def pooled_balance(routings: Sequence[Routing]) -> Tensor:
    """0-d: ``E · sum_e f_e · P_e`` over the valid tokens of all layers.

    f is the number of tokens that chose an expert, P the softmax of the logits, both divided by the number of tokens.
    """
    load_E = torch.stack([routing.load_E() for routing in routings]).sum(0)
    count = torch.stack([routing.num_valid() for routing in routings]).sum().clamp(min=1)
    share_TE = [
        routing.logits_TE.softmax(-1)
        if routing.valid_T is None
        else routing.logits_TE.softmax(-1).masked_fill(~routing.valid_T[:, None], 0)
        for routing in routings
    ]
    mean_E = torch.stack([each.sum(0) for each in share_TE]).sum(0) / count
    return len(load_E) * (load_E * mean_E).sum() / count


def _nats(logits_BSV: Tensor, target_BS: Tensor) -> Tensor:
    """0-d: the sum of ``-log p(target)``, at least in fp32."""
    return F.cross_entropy(
        _widened(logits_BSV).flatten(0, 1), target_BS.flatten(), ignore_index=NOT_LEARNT, reduction="sum"
    )


def _squared_z(logits_BSV: Tensor, target_BS: Tensor) -> Tensor:
    """0-d: the sum of ``logsumexp(logits)²`` over positions with a target."""
    return _widened(logits_BSV).logsumexp(-1).where(target_BS != NOT_LEARNT, 0).square().sum()


def _widened(logits_BSV: Tensor) -> Tensor:
    return logits_BSV.to(torch.promote_types(logits_BSV.dtype, torch.float32))


def _exact(logits_BSV: Tensor, target_BS: Tensor) -> tuple[Tensor, Tensor]:
    """0-d, both: sequences in which each valid target is the likeliest token, and sequences with valid targets."""
    ignored_BS = target_BS == NOT_LEARNT
    counted_B = ~ignored_BS.all(-1)
    right_B = ((logits_BSV.argmax(-1) == target_BS) | ignored_BS).all(-1)
    return (right_B & counted_B).sum(), counted_B.sum()

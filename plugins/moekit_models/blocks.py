"""What the models of this plugin share: attention masks, feed-forward parts, recomputation."""

from __future__ import annotations

from typing import Any, Literal, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moekit.contracts import Cache, ExpertBank, LayerDims, LayerReport
from moekit.moe_layer import MoELayer, run_on_all
from moekit.registry import build
from moekit.spec.kinds import ExpertSpec, MoE

Recompute = Literal["none", "experts", "blocks"]
"""Activation checkpointing: of nothing, of MoE layers, or of whole blocks."""


class Mask(TypedDict, total=False):
    """The mask arguments of ``F.scaled_dot_product_attention``."""

    is_causal: bool
    attn_mask: Tensor


def mask(causal: bool, valid_BS: Tensor | None, document_BS: Tensor | None = None) -> Mask:
    """Under ``causal`` no position attends to a later one; otherwise none attends to padding.

    Padding comes last in a sequence, so that under ``causal`` no valid position attends to it anyway. Positions of an
    empty sequence attend to everything, which keeps them finite; nothing reads them. With documents, positions attend
    to those of their own document alone.
    """
    if document_BS is not None:
        same_BSS = document_BS[:, :, None] == document_BS[:, None, :]
        rest = mask(False, valid_BS).get("attn_mask") if not causal else None
        own_BSS = same_BSS.tril() if causal else same_BSS
        if rest is not None:  # padding attends to itself, which keeps it finite
            itself_SS = torch.eye(same_BSS.shape[-1], dtype=torch.bool, device=same_BSS.device)
            own_BSS = own_BSS & rest[:, 0] | itself_SS
        return {"attn_mask": own_BSS[:, None]}
    if causal:
        return {"is_causal": True}
    if valid_BS is None:
        return {}
    return {"attn_mask": (valid_BS | ~valid_BS.any(1, keepdim=True))[:, None, None, :]}


def mask_of_new(S: int, start: int, device: torch.device) -> Mask:
    """S new positions attend to the ``start`` cached ones and to each other, but to no later one."""
    return {} if S == 1 else {"attn_mask": torch.ones(S, start + S, dtype=torch.bool, device=device).tril(start)}


def within(window: int, visible: Mask, S: int, L: int, device: torch.device) -> Mask:
    """The same mask, for the last S of L positions, without the keys that are ``window`` or more positions away."""
    seen = torch.ones(S, L, dtype=torch.bool, device=device)
    near = seen.triu(L - S - window + 1) & (seen if visible.get("is_causal") else seen.tril(L - S + window - 1))
    return {"attn_mask": visible.get("attn_mask", seen.tril(L - S) if visible.get("is_causal") else seen) & near}


def within_chunk(chunk: int, visible: Mask, S: int, L: int, device: torch.device) -> Mask:
    """The same mask, for the last S of L positions, without the keys of other runs of ``chunk`` positions."""
    run_X = torch.arange(L, device=device) // chunk
    seen = torch.ones(S, L, dtype=torch.bool, device=device)
    seen = visible.get("attn_mask", seen.tril(L - S) if visible.get("is_causal") else seen)
    return {"attn_mask": seen & (run_X[L - S :, None] == run_X)}


def positions_before(cache: Cache | None, causal: bool) -> int:
    """How many positions are before the new ones: those in the cache.

    Raises:
        ValueError: a cache for attention that is not causal.
    """
    if cache is None:
        return 0
    if not causal:
        raise ValueError(
            "a cache is for causal attention: without causal, earlier positions would attend to the new ones"
        )
    return cache.length


def attend(
    attention: nn.Module,
    x_BSD: Tensor,
    valid_BS: Tensor | None,
    cache: Cache | None = None,
    document_BS: Tensor | None = None,
    shared_bias: Tensor | None = None,
) -> Tensor:
    """``y_BSD`` of a block's attention; the last three arguments are passed only if they are there."""
    given: dict[str, object] = {} if cache is None else {"cache": cache.at("attention")}
    if document_BS is not None:
        given["document_BS"] = document_BS
    if shared_bias is not None:
        given["shared_bias"] = shared_bias
    return cast(Tensor, attention(x_BSD, valid_BS=valid_BS, **given))


def feed_forward(dense: ExpertSpec, moe: MoE | None, dim: int) -> MoELayer | ExpertBank:
    """The feed-forward part of a block: the mixture, or without one the dense expert."""
    return build(dense, LayerDims(dim=dim, num_experts=1)) if moe is None else MoELayer.from_spec(moe, dim)


def feed(
    ffn: MoELayer | ExpertBank,
    x_BSD: Tensor,
    valid_BS: Tensor | None,
    tokens_BS: Tensor | None = None,
    recompute: Recompute = "none",
) -> tuple[Tensor, LayerReport | None]:
    """``y_BSD`` of a block's feed-forward part, and its report if it is a mixture; ``experts`` recomputes mixtures."""
    if isinstance(ffn, MoELayer):
        return _run(ffn, recompute == "experts", x_BSD, valid=valid_BS, tokens=tokens_BS)
    return run_on_all(ffn, x_BSD.flatten(0, 1)).view_as(x_BSD), None


def run_block(
    block: nn.Module, recompute: Recompute, x_BSD: Tensor, *others: Tensor | None
) -> tuple[Tensor, LayerReport | None]:
    """Runs a block; under ``blocks`` it keeps no activations, and backward recomputes them."""
    return _run(block, recompute == "blocks", x_BSD, *others)


def _run(
    module: nn.Module, recompute: bool, *inputs: Tensor | None, **options: Any
) -> tuple[Tensor, LayerReport | None]:
    if recompute and torch.is_grad_enabled():
        output = checkpoint(module, *inputs, use_reentrant=False, **options)
    else:
        output = module(*inputs, **options)
    return cast("tuple[Tensor, LayerReport | None]", output)

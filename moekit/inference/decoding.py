"""Incremental decoding: a model gets only the new tokens, whether it has a cache or must read earlier ones again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moekit.contracts import Model, ModelOutput, Source
from moekit.moe_layer import MoELayer

DecodeStep = Callable[[Tensor, Tensor | None], Tensor]
"""``(tokens_BS, valid_BS) -> logits_BV``: takes new tokens, returns the logits of the token after the last one."""


def may_drop(model: Model) -> bool:
    """Whether the model may drop pairs beyond a capacity, so that the tokens of one call affect each other.

    True for a layer that was built without a spec, since its dispatcher is unknown.
    """
    layers = [module for module in model.modules() if isinstance(module, MoELayer)]
    return any(layer.spec is None or not layer.spec.dispatcher.dropless for layer in layers)


def start_decoding(model: Model, source: Source | None = None, *, cached: bool | None = None) -> DecodeStep:
    """Starts a text, or the targets of a source.

    Args:
        model: in evaluation mode.
        source: of the targets; encoded here, once.
        cached: whether to use the model's cache (``Model.start_cache``); None: only if the output stays the same, which
            it does unless pairs ``may_drop``. A model without a cache reads all tokens again in every step.
    """
    cache = model.start_cache(source) if cached or (cached is None and not may_drop(model)) else None
    if cache is None:
        return _without_cache(model, source)
    return lambda tokens_BS, valid_BS: model.decode(tokens_BS, cache, valid=valid_BS).y[:, -1]


def _without_cache(model: Model, source: Source | None) -> DecodeStep:
    run: Callable[[Tensor, Tensor | None], ModelOutput]
    run = (lambda tokens, valid: model(tokens, valid=valid)) if source is None else model.given(source)
    steps: list[tuple[Tensor, Tensor | None]] = []

    def decode(tokens_BS: Tensor, valid_BS: Tensor | None) -> Tensor:
        steps.append((tokens_BS, valid_BS))
        valid = None
        if any(mask is not None for _, mask in steps):
            valid = torch.cat([torch.ones_like(t, dtype=torch.bool) if m is None else m for t, m in steps], dim=1)
        return run(torch.cat([t for t, _ in steps], dim=1), valid).y[:, -1]

    return decode

"""Reading on: a model is handed the tokens that are new, whether it keeps the earlier ones or reads them again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moekit.contracts import Model, ModelOutput, Source
from moekit.layer import MoELayer

DecodeStep = Callable[[Tensor, Tensor | None], Tensor]
"""``(tokens_BS, valid_BS) -> logits_BV``: reads new tokens, and answers with the logits of what follows the last."""


def drops(model: Model) -> bool:
    """Whether what a token gets may depend on how many are read together: pairs are dropped beyond a capacity.

    A layer that was built without a spec does not say, and is taken to.
    """
    layers = [module for module in model.modules() if isinstance(module, MoELayer)]
    return any(layer.spec is None or not layer.spec.dispatcher.dropless for layer in layers)


def start_decoding(model: Model, source: Source | None = None, *, cached: bool | None = None) -> DecodeStep:
    """Begins a text, or the targets of a source.

    Args:
        model: in evaluation mode.
        source: what targets are made from; it is read here, once.
        cached: whether the model keeps what it has read (``Model.start_cache``) instead of reading it again; None:
            where that changes no answer, which is where nothing ``drops``. A model without a cache reads again.
    """
    cache = model.start_cache(source) if cached or (cached is None and not drops(model)) else None
    if cache is None:
        return _reading_again(model, source)
    return lambda tokens_BS, valid_BS: model.decode(tokens_BS, cache, valid=valid_BS).y[:, -1]


def _reading_again(model: Model, source: Source | None) -> DecodeStep:
    """The same for any model: every call reads all tokens so far."""
    run: Callable[[Tensor, Tensor | None], ModelOutput]
    run = (lambda tokens, valid: model(tokens, valid=valid)) if source is None else model.given(source)
    read: list[tuple[Tensor, Tensor | None]] = []

    def read_on(tokens_BS: Tensor, valid_BS: Tensor | None) -> Tensor:
        read.append((tokens_BS, valid_BS))
        tokens, masks = zip(*read, strict=True)
        valid = None
        if any(mask is not None for mask in masks):
            valid = torch.cat([torch.ones_like(t, dtype=torch.bool) if m is None else m for t, m in read], dim=1)
        return run(torch.cat(tokens, dim=1), valid).y[:, -1]

    return read_on

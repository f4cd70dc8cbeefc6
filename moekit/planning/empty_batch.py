"""A micro-batch of the right shapes for a model, with nothing in it."""

from __future__ import annotations

import torch

from moekit.contracts import Batch, Source
from moekit.errors import MoekitError
from moekit.spec.kinds import ModelSpec


def empty_batch(spec: ModelSpec, batch: int, sequence: int, dtype: torch.dtype = torch.float32) -> Batch:
    """B sequences of S tokens, sources as long as targets; or B · S cases.

    Raises:
        MoekitError: a model that takes cases and does not say how wide they are.
    """
    if spec.takes == "cases":
        inputs, outputs = getattr(spec, "inputs", None), getattr(spec, "outputs", None)
        if not isinstance(inputs, int) or not isinstance(outputs, int):
            raise MoekitError(
                f"{type(spec).__name__} takes cases and does not say how wide they are\n"
                "  expected options 'inputs' and 'outputs' in that spec"
            )
        T = batch * sequence
        return Batch(torch.zeros(T, inputs, dtype=dtype), torch.zeros(T, outputs, dtype=dtype))
    tokens_BS = torch.zeros(batch, sequence, dtype=torch.int64)
    if spec.takes != "pairs":
        return Batch(tokens_BS, tokens_BS)
    valid_BS = torch.ones(batch, sequence, dtype=torch.bool)
    return Batch(tokens_BS, tokens_BS, valid_BS, source=Source(tokens_BS, valid_BS))

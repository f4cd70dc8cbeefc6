"""Counts the validation pairs whose target the model gives exactly."""

from __future__ import annotations

from collections import Counter
from typing import final

import torch

from moekit.contracts import Batch, Evaluation, Evaluator, Source, Trained
from moekit.errors import MoekitError
from moekit_data.accuracy import Accuracy


@final
class AccuracyEvaluator(Evaluator):
    """Exact targets, in one pass with the right target as input.

    That is enough: greedy decoding writes a target exactly if each of its tokens, and the end, is the likeliest one
    after those before it.
    """

    def __init__(self, spec: Accuracy) -> None:
        self.spec = spec

    def evaluate(self, trained: Trained) -> Evaluation:
        """``accuracy``; ``guessing``, the accuracy of always giving the most frequent target; ``scored_windows``.

        Raises:
            MoekitError: the data yields no pairs.
        """
        device = next(trained.model.parameters()).device
        right, targets_seen = 0, Counter[tuple[int, ...]]()
        for batch in trained.data.validation_batches():
            if batch.source is None:
                raise MoekitError(f"{type(trained.data).__name__} yields no pairs")
            tokens, mask = batch.source
            source = Source(tokens.to(device), None if mask is None else mask.to(device))
            targets = batch.targets.to(device)
            valid = torch.ones_like(targets, dtype=torch.bool) if batch.valid is None else batch.valid.to(device)
            y_BSV = trained.model.on(Batch(batch.inputs.to(device), targets, valid, source=source)).y
            right += int(((y_BSV.argmax(-1) == targets) | ~valid).all(-1).sum())
            targets_seen.update(tuple(row[keep].tolist()) for row, keep in zip(targets, valid, strict=True))
        total = targets_seen.total()
        guessing = targets_seen.most_common(1)[0][1] / total
        return Evaluation(values={"accuracy": right / total, "guessing": guessing, "scored_windows": float(total)})

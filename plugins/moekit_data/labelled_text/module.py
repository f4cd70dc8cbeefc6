"""Windows of text with their domain's name as the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch

from moekit.contracts import Batch, Model, Source
from moekit.errors import DataError
from moekit_data.derived import DerivedData, text_of
from moekit_data.labelled_text import LabelledText
from moekit_data.padding import side_by_side


@final
class LabelledTextData(DerivedData):
    """Source: a window. Target: the name of its domain in tokens of text, and the end.

    Args:
        spec: its options.
    """

    def __init__(self, spec: LabelledText) -> None:
        super().__init__(spec)

    def prepare(self) -> None:
        """Has the text read.

        Raises:
            DataError: as the text says; or it has one domain alone, and there is nothing to tell.
        """
        super().prepare()
        if len(names := self.domain_names()) < 2:
            raise DataError(
                f"labels are the names of domains, and the text has {', '.join(names) or 'none'} alone\n"
                "  give it several domains (data.text.domains, or a folder with subfolders)"
            )

    def pairs(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Names the domain of every window; nothing is drawn."""
        assert batch.domain is not None  # text that names its domains labels its windows
        labels = [self.text.encode(name) for name in self.domain_names()]
        return side_by_side(
            text_of(batch), [labels[i] for i in batch.domain.tolist()], end=self.end, domain=batch.domain
        )

    def scores(self, model: Model) -> Mapping[str, float]:
        """``accuracy``: the share of validation windows whose label the model gives exactly.

        One pass with the right label as input: greedy decoding writes it exactly where every token of it, the end
        included, is the likeliest after those before. ``guessing`` is the share of the most frequent label.
        """
        device = next(model.parameters()).device
        right, total, counts = 0, 0, torch.zeros(len(self.domain_names()), dtype=torch.int64)
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                for batch in self.validation_batches():
                    assert batch.source is not None and batch.valid is not None and batch.domain is not None
                    counts += torch.bincount(batch.domain, minlength=len(counts))
                    source = Source(*(None if part is None else part.to(device) for part in batch.source))  # type: ignore[arg-type]
                    inputs, targets, valid = (t.to(device) for t in (batch.inputs, batch.targets, batch.valid))
                    y_BSV = model.on(Batch(inputs, targets, valid, source=source)).y
                    right += int(((y_BSV.argmax(-1) == targets) | ~valid).all(-1).sum())
                    total += len(targets)
        finally:
            model.train(was_training)
        return {"accuracy": right / total, "guessing": int(counts.max()) / total, "scored_windows": float(total)}

"""Windows of text with their domain's name as the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch

from moekit.contracts import Batch, Model, Source
from moekit.errors import DataError
from moekit_data.derived import DerivedData, text_of
from moekit_data.padding import side_by_side


@final
class LabelledTextData(DerivedData):
    """Source: a window. Target: the name of its domain in tokens of text, and the end."""

    def prepare(self) -> None:
        """Prepares the text.

        Raises:
            DataError: the text cannot be read, or has a single domain, so that there is nothing to classify.
        """
        super().prepare()
        if len(names := self.domain_names()) < 2:
            raise DataError(
                f"labels are the names of domains, and the text has only {', '.join(names) or 'none'}\n"
                "  give it several domains (data.text.domains, or a folder with subfolders)"
            )

    def pairs(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Makes the domain's name the target of every window; the generator is not used."""
        assert batch.domain is not None  # text with domain names numbers the domain of each window
        labels = [self.text.encode(name) for name in self.domain_names()]
        return side_by_side(
            text_of(batch), [labels[i] for i in batch.domain.tolist()], end=self.end, domain=batch.domain
        )

    def scores(self, model: Model) -> Mapping[str, float]:
        """``accuracy``: the share of validation windows whose label the model gives exactly.

        One pass with the right label as input is enough: greedy decoding writes the label exactly if each of its
        tokens, and the end, is the likeliest one after those before it. ``guessing`` is the accuracy of always giving
        the most frequent label. ``scored_windows`` counts the windows.
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

"""Windows of text with their domain's name as the target."""

from __future__ import annotations

from typing import final

import torch

from moekit.contracts import Batch
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
        labels = [self.tokenizer.encode(name) for name in self.domain_names()]
        return side_by_side(
            text_of(batch), [labels[i] for i in batch.domain.tolist()], end=self.end, domain=batch.domain
        )

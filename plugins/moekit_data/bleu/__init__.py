"""Greedy translations of the validation pairs, scored by BLEU, chrF and the placeholders they keep.

Source: Papineni et al. 2002 (BLEU) and Popović 2015 (chrF), as sacrebleu counts them (Post 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from moekit.spec.fields import MetricInfo
from moekit.spec.kinds import EvaluatorSpec


class Bleu(EvaluatorSpec):
    """No options."""

    takes: ClassVar[frozenset[str]] = frozenset({"pairs"})

    def metrics(self) -> Mapping[str, MetricInfo]:
        """The scores, and of how many pairs they are."""
        return {
            "bleu": MetricInfo("BLEU", lower_is_better=False, digits=2),
            "chrf": MetricInfo("chrF", lower_is_better=False, digits=2),
            "scored_pairs": MetricInfo("scored pairs", lower_is_better=False, digits=0),
            "placeholders_kept": MetricInfo("placeholders kept", lower_is_better=False),
            "pairs_with_placeholders": MetricInfo("pairs with placeholders", lower_is_better=False, digits=0),
        }

"""Draws the regions in which a trained model decides for a class, and in which each expert leads."""

from __future__ import annotations

from typing import final

from moekit.contracts import Evaluation, Evaluator, Trained
from moekit.errors import MoekitError
from moekit.extras import require
from moekit_data.decision_regions import DecisionRegions
from moekit_data.vowels.module import VowelData


@final
class DecisionRegionsEvaluator(Evaluator):
    """The cases, the decision boundary and the gate's regions, over the plane of two formants.

    Raises:
        MissingPackage: matplotlib is not installed.
    """

    def __init__(self, spec: DecisionRegions) -> None:
        require("plots", "the evaluator 'decision_regions'", "matplotlib")
        self.spec = spec

    def evaluate(self, trained: Trained) -> Evaluation:
        """``vowels.png``.

        Raises:
            MoekitError: the data has no formants.
        """
        from moekit_data.decision_regions.picture import draw  # loads matplotlib

        if not isinstance(trained.data, VowelData):
            raise MoekitError(f"{type(trained.data).__name__} has no formants to draw")
        return Evaluation(files=[draw(trained.model, trained.data.speakers, trained.folder / "vowels.png")])

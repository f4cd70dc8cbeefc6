"""Draws the regions in which a trained model decides for a class, and in which each expert leads."""

from __future__ import annotations

from typing import final

from moekit.contracts import Evaluation, Evaluator, Trained
from moekit.errors import MoekitError
from moekit.extras import lacking
from moekit_data.decision_regions import DecisionRegions
from moekit_data.vowels.module import VowelData


@final
class DecisionRegionsEvaluator(Evaluator):
    """The cases, the decision boundary and the gate's regions, over the plane of two formants.

    Draws nothing without matplotlib; the run says so at its end.
    """

    def __init__(self, spec: DecisionRegions) -> None:
        self.spec = spec

    def evaluate(self, trained: Trained) -> Evaluation:
        """``vowels.png``.

        Raises:
            MoekitError: the data has no formants.
        """
        if not isinstance(trained.data, VowelData):
            raise MoekitError(f"{type(trained.data).__name__} has no formants to draw")
        if lacking("matplotlib"):
            return Evaluation()
        from moekit_data.decision_regions.picture import draw  # loads matplotlib

        return Evaluation(files=[draw(trained.model, trained.data.speakers, trained.folder / "vowels.png")])

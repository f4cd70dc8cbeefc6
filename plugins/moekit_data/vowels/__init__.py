"""Vowels to classify by two formants: the data of the first mixture of experts. ``SOURCE.md`` describes the table."""

from collections.abc import Iterable
from typing import ClassVar, Literal

from moekit.spec.fields import option
from moekit.spec.kinds import DataSpec

NUM_SPEAKERS = 76
VOWELS = ("iy", "ih", "eh", "ae", "ah", "aa", "ao", "uh", "uw", "er")


class Vowels(DataSpec):
    """Options of the vowel data. The defaults are the cases of Jacobs et al. 1991: 400 to train, 200 to test."""

    yields: ClassVar[str] = "cases"
    vowels: list[str] = option(["iy", "ih", "aa", "ah"], "which vowels, in ARPAbet, at least two")
    coding: Literal["turns", "ends"] = option(
        "turns", "along mean F1, targets alternate (1 0 1 0), or are 1 at both ends (1 0 0 1)"
    )
    train_speakers: int = option(50, "speakers 1 to this one train", ge=1)
    test_speakers: int = option(25, "how many speakers after these test", ge=1)

    def check(self) -> Iterable[str]:
        """Known vowels, each once, and at most as many speakers as the table has."""
        unknown = [v for v in self.vowels if v not in VOWELS]
        if unknown:
            yield f"vowels={self.vowels!r} has {', '.join(unknown)}; the choices are {', '.join(VOWELS)}"
        elif len(self.vowels) < 2 or len(set(self.vowels)) < len(self.vowels):
            yield f"vowels={self.vowels!r} must be two or more different vowels"
        if self.train_speakers + self.test_speakers > NUM_SPEAKERS:
            yield (
                f"train_speakers={self.train_speakers} and test_speakers={self.test_speakers} add up to more than "
                f"the {NUM_SPEAKERS} speakers there are"
            )

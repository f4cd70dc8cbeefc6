"""The vowel data: one batch of all training cases and one of all test cases, from the formant table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from moekit.contracts import Batch, Data
from moekit.errors import MoekitError
from moekit_data.vowels import Vowels
from moekit_data.vowels.table import Cases, Speakers, cases_of, read_table, targets_of


class VowelData(Data):
    """Utterances of some vowels, to classify by F1 and F2. Every batch holds all training cases.

    *Source*: the measurements of Peterson and Barney (1952), used as in Jacobs, Jordan, Nowlan and Hinton,
    "Adaptive mixtures of local experts" (1991). That paper does not say how it coded the four vowels; see the spec.

    *Shapes*: ``inputs`` ``[T, 2]`` fp32, F1/1000 and F2/1000 (Hz to kHz); ``targets`` ``[T, 1]`` fp32, 0 or 1.
    """

    def __init__(self, spec: Vowels) -> None:
        self.spec = spec
        self._speakers: Speakers | None = None

    def prepare(self) -> None:
        """Reads the table in the package: of the spec's vowels, the first speakers and the ones after them.

        Raises:
            DataError: the table is missing from the installation, or damaged.
        """
        if self._speakers is not None:
            return
        spec, num_train = self.spec, self.spec.train_speakers
        rows = [row for row in read_table() if row.vowel in spec.vowels]
        train = [row for row in rows if row.speaker <= num_train]
        test = [row for row in rows if num_train < row.speaker <= num_train + spec.test_speakers]
        target = targets_of(train, spec)
        self._speakers = Speakers(cases_of(train, target), cases_of(test, target), tuple(spec.vowels))

    @property
    def speakers(self) -> Speakers:
        """All cases.

        Raises:
            MoekitError: before ``prepare``.
        """
        if self._speakers is None:
            raise MoekitError("VowelData has read nothing yet: call prepare() first")
        return self._speakers

    @property
    def train(self) -> Cases:
        """The training cases; after ``prepare``."""
        return self.speakers.train

    @property
    def test(self) -> Cases:
        """The test cases; after ``prepare``."""
        return self.speakers.test

    def train_batch(self, generator: torch.Generator) -> Batch:
        """All training cases, in the table's order; the generator is not used."""
        cases = self.train
        return Batch(inputs=cases.x_TD, targets=cases.d_TO)

    def validation_batches(self) -> Iterator[Batch]:
        """All test cases, in one batch."""
        cases = self.test
        yield Batch(inputs=cases.x_TD, targets=cases.d_TO)

    def describe(self) -> Mapping[str, str]:
        """How many cases, of which speakers, and the target of each vowel."""
        train = self.train
        target = dict(zip(train.vowels, train.d_TO[:, 0].tolist(), strict=True))
        last = self.spec.train_speakers + self.spec.test_speakers
        return {
            "vowels": ", ".join(f"{v} -> {target[v]:.0f}" for v in self.spec.vowels),
            "train": f"{len(train.vowels)} cases, speakers 1 to {self.spec.train_speakers}",
            "test": f"{len(self.test.vowels)} cases, speakers {self.spec.train_speakers + 1} to {last}",
        }

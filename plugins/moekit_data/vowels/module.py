"""The vowel data: one batch of all training cases and one of all test cases, from the formant table."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from moekit.contracts import Batch, Data, Model
from moekit.errors import DataError, MoekitError
from moekit_data.vowels import Vowels


@dataclass(frozen=True)
class Cases:
    """Some utterances.

    Attributes:
        x_TD: fp32 ``[T, 2]``: F1 and F2 in kHz.
        d_TO: fp32 ``[T, 1]``: 0 or 1.
        vowels: the vowel of each.
    """

    x_TD: Tensor
    d_TO: Tensor
    vowels: tuple[str, ...]


@dataclass(frozen=True)
class Speakers:
    """The cases of the training speakers, those of the test speakers, and the vowels in the spec's order."""

    train: Cases
    test: Cases
    vowels: tuple[str, ...]


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
        rows = [row for row in _read_table() if row.vowel in spec.vowels]
        train = [row for row in rows if row.speaker <= num_train]
        test = [row for row in rows if num_train < row.speaker <= num_train + spec.test_speakers]
        target = _targets(train, spec)
        self._speakers = Speakers(_cases(train, target), _cases(test, target), tuple(spec.vowels))

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
        return Batch(inputs=self.train.x_TD, targets=self.train.d_TO)

    def validation_batches(self) -> Iterator[Batch]:
        """All test cases, in one batch."""
        yield Batch(inputs=self.test.x_TD, targets=self.test.d_TO)

    def describe(self) -> Mapping[str, str]:
        """How many cases, of which speakers, and the target of each vowel."""
        target = dict(zip(self.train.vowels, self.train.d_TO[:, 0].tolist(), strict=True))
        last = self.spec.train_speakers + self.spec.test_speakers
        return {
            "vowels": ", ".join(f"{v} -> {target[v]:.0f}" for v in self.spec.vowels),
            "train": f"{len(self.train.vowels)} cases, speakers 1 to {self.spec.train_speakers}",
            "test": f"{len(self.test.vowels)} cases, speakers {self.spec.train_speakers + 1} to {last}",
        }

    def picture(self, model: Model, folder: Path) -> list[Path]:
        """``vowels.png``: the cases, the model's decision boundary, and which expert has the largest gate."""
        from moekit_data.vowels.picture import draw  # loads matplotlib

        return [draw(model, self.speakers, folder / "vowels.png")]


@dataclass(frozen=True)
class _Row:
    speaker: int
    vowel: str
    f1: float
    f2: float


def _read_table() -> list[_Row]:
    path = files("moekit_data.vowels") / "peterson_barney.csv"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [_Row(int(r["speaker"]), r["vowel"], float(r["f1"]), float(r["f2"])) for r in csv.DictReader(lines)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"cannot read the formant table {path}: {error}\n  reinstall moekit to restore it") from error


def _targets(rows: list[_Row], spec: Vowels) -> dict[str, float]:
    """The target of each vowel, from its rank by mean F1."""
    by_f1 = sorted(spec.vowels, key=lambda v: mean(row.f1 for row in rows if row.vowel == v))
    if spec.coding == "turns":
        return {v: float(rank % 2 == 0) for rank, v in enumerate(by_f1)}
    return {v: float(rank in (0, len(by_f1) - 1)) for rank, v in enumerate(by_f1)}


def _cases(rows: list[_Row], target: Mapping[str, float]) -> Cases:
    return Cases(
        x_TD=torch.tensor([[row.f1 / 1000, row.f2 / 1000] for row in rows]),
        d_TO=torch.tensor([[target[row.vowel]] for row in rows]),
        vowels=tuple(row.vowel for row in rows),
    )

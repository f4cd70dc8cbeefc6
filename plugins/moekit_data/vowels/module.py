"""Reads the formant table and makes one batch of all training cases and one of all test cases."""

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


class VowelData(Data):
    """Utterances of some vowels, to be told apart by F1 and F2. Every batch holds all training cases.

    *Source*: the measurements of Peterson and Barney (1952), used as in Jacobs, Jordan, Nowlan and Hinton,
    "Adaptive mixtures of local experts" (1991). How the four vowels were coded there is not known; see the spec.

    *Shapes*: ``inputs`` ``[T, 2]`` fp32, F1/1000 and F2/1000 (Hz to kHz); ``targets`` ``[T, 1]`` fp32, 0 or 1.
    """

    def __init__(self, spec: Vowels) -> None:
        self.spec = spec
        self._train: Cases | None = None
        self._test: Cases | None = None

    def prepare(self) -> None:
        """Reads the table that the package brings.

        Raises:
            DataError: the table is missing from the installation or damaged.
        """
        if self._train is not None:
            return
        rows = _read_table()
        num_train, num_all = self.spec.train_speakers, self.spec.train_speakers + self.spec.test_speakers
        rows = [row for row in rows if row.vowel in self.spec.vowels and row.speaker <= num_all]
        train = [row for row in rows if row.speaker <= num_train]
        target = _code(train, self.spec)
        self._train = _cases(train, target)
        self._test = _cases([row for row in rows if row.speaker > num_train], target)

    @property
    def train(self) -> Cases:
        """The training cases; needs ``prepare``."""
        return _ready(self._train)

    @property
    def test(self) -> Cases:
        """The test cases; needs ``prepare``."""
        return _ready(self._test)

    def train_batch(self, generator: torch.Generator) -> Batch:
        """All training cases, in the table's order; draws nothing."""
        return Batch(inputs=self.train.x_TD, targets=self.train.d_TO)

    def validation_batches(self) -> Iterator[Batch]:
        """All test cases, in one batch."""
        yield Batch(inputs=self.test.x_TD, targets=self.test.d_TO)

    def describe(self) -> Mapping[str, str]:
        """How many cases, of whom, and which target each vowel has."""
        target = dict(zip(self.train.vowels, self.train.d_TO[:, 0].tolist(), strict=True))
        last = self.spec.train_speakers + self.spec.test_speakers
        return {
            "vowels": ", ".join(f"{v} -> {target[v]:.0f}" for v in self.spec.vowels),
            "train": f"{len(self.train.vowels)} cases, speakers 1 to {self.spec.train_speakers}",
            "test": f"{len(self.test.vowels)} cases, speakers {self.spec.train_speakers + 1} to {last}",
        }

    def picture(self, model: Model, folder: Path) -> list[Path]:
        """``vowels.png``: the cases, the model's decision boundary, and which expert has the largest gate where."""
        from moekit_data.vowels.picture import draw  # matplotlib: only when there is something to draw

        return [draw(model, self, folder / "vowels.png")]


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
        raise DataError(f"cannot read the formant table {path}: {error}\n  reinstall moekit to get it back") from error


def _code(rows: list[_Row], spec: Vowels) -> dict[str, float]:
    """The target of each vowel, from its place among the others along mean F1."""
    by_f1 = sorted(spec.vowels, key=lambda v: mean(row.f1 for row in rows if row.vowel == v))
    if spec.coding == "turns":
        return {v: float(place % 2 == 0) for place, v in enumerate(by_f1)}
    return {v: float(place in (0, len(by_f1) - 1)) for place, v in enumerate(by_f1)}


def _cases(rows: list[_Row], target: Mapping[str, float]) -> Cases:
    return Cases(
        x_TD=torch.tensor([[row.f1 / 1000, row.f2 / 1000] for row in rows]),
        d_TO=torch.tensor([[target[row.vowel]] for row in rows]),
        vowels=tuple(row.vowel for row in rows),
    )


def _ready(cases: Cases | None) -> Cases:
    if cases is None:
        raise MoekitError("VowelData has read nothing yet: call prepare() first")
    return cases

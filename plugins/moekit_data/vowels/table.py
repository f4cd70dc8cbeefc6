"""The formant table: read, cut into training and test speakers, and coded."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from statistics import mean

import torch
from torch import Tensor

from moekit.errors import DataError
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


def read_speakers(spec: Vowels) -> Speakers:
    """The table's utterances of a spec's vowels, by its first speakers and the ones after them.

    Raises:
        DataError: the table is missing from the installation or damaged.
    """
    num_train, num_all = spec.train_speakers, spec.train_speakers + spec.test_speakers
    rows = [row for row in _read_table() if row.vowel in spec.vowels and row.speaker <= num_all]
    train = [row for row in rows if row.speaker <= num_train]
    target = _code(train, spec)
    test = [row for row in rows if row.speaker > num_train]
    return Speakers(train=_cases(train, target), test=_cases(test, target), vowels=tuple(spec.vowels))


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

"""The formant table, and its utterances as tensors."""

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
    vowels: list[str]


@dataclass(frozen=True)
class Speakers:
    """The cases of the training speakers, those of the test speakers, and the vowels in the spec's order."""

    train: Cases
    test: Cases
    vowels: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One utterance: its speaker, its vowel, and its first two formants in Hz."""

    speaker: int
    vowel: str
    f1: float
    f2: float


def read_table() -> list[Row]:
    """The rows of the formant table in the package.

    Raises:
        DataError: it cannot be read.
    """
    path = files("moekit_data.vowels") / "peterson_barney.csv"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Row(int(r["speaker"]), r["vowel"], float(r["f1"]), float(r["f2"])) for r in csv.DictReader(lines)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"cannot read the formant table {path}: {error}\n  reinstall moekit to restore it") from error


def targets_of(rows: list[Row], spec: Vowels) -> dict[str, float]:
    """The target of each vowel, from its rank by mean F1."""
    by_f1 = sorted(spec.vowels, key=lambda v: mean([row.f1 for row in rows if row.vowel == v]))
    if spec.coding == "turns":
        return {v: float(rank % 2 == 0) for rank, v in enumerate(by_f1)}
    return {v: float(rank in (0, len(by_f1) - 1)) for rank, v in enumerate(by_f1)}


def cases_of(rows: list[Row], target: Mapping[str, float]) -> Cases:
    """The rows as tensors, with the target of each row's vowel."""
    return Cases(
        x_TD=torch.tensor([[row.f1 / 1000, row.f2 / 1000] for row in rows]),
        d_TO=torch.tensor([[target[row.vowel]] for row in rows]),
        vowels=[row.vowel for row in rows],
    )

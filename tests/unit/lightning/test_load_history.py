"""The callback that records the load of every expert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from moekit_lightning.load_history import LoadHistory

Change = Callable[[bytes], bytes]


def write(path: Path, **changes: Any) -> Path:
    arrays = {"step": np.array([2, 4, 6]), "blocks.1.ffn": np.arange(12).reshape(3, 4), **changes}
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def test_a_resumed_load_history_drops_later_steps(tmp_path: Path) -> None:
    history = LoadHistory(write(tmp_path / "load.npz"), last_step=4)
    assert (history.steps, history.damage) == ([2, 4], "")
    assert history.arrays()["blocks.1.ffn"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert history.state_dict() == {"step": 4}


@pytest.mark.parametrize("change", [lambda b: b[:100], lambda b: b"", lambda b: b"\xff\xfe junk", lambda b: b[:-9]])
def test_a_damaged_file_is_not_used_and_the_reason_is_known(tmp_path: Path, change: Change) -> None:
    path = write(tmp_path / "load.npz")
    path.write_bytes(change(path.read_bytes()))
    history = LoadHistory(path, last_step=9)
    assert history.steps == [] and history.loads == {} and history.damage.startswith("cannot be read: ")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"step": np.array([4, 2, 6])}, "its steps do not ascend"),
        ({"step": np.array([2, 4])}, "its arrays differ in length"),
        ({"step": np.array([2.0, 4.0, 6.0])}, "its arrays differ in length"),
        ({"blocks.1.ffn": np.arange(3)}, "an array is not of rows of experts"),
        ({"blocks.1.ffn": np.array([None] * 3)}, "allow_pickle=False"),
    ],
)
def test_a_file_of_other_contents_is_not_used(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    assert why in LoadHistory(write(tmp_path / "load.npz", **changes), last_step=9).damage


def test_rows_of_other_layers_are_dropped(tmp_path: Path) -> None:
    history = LoadHistory(write(tmp_path / "load.npz"), last_step=6)
    load = SimpleNamespace(load_E={"blocks.1.ffn": torch.tensor([1, 2])})
    module = SimpleNamespace(step_load=load, logged_step=7, sparse_layers=["blocks.1.ffn"])
    history.on_train_batch_end(cast(Any, SimpleNamespace(global_step=7)), module)
    assert history.steps == [7] and history.arrays()["blocks.1.ffn"].tolist() == [[1, 2]]

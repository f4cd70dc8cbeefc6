"""The callback that records the load of every expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moekit.training.callbacks.load_history import LoadHistory


def test_a_resumed_load_history_drops_later_steps(tmp_path: Path) -> None:
    with (tmp_path / "load.npz").open("wb") as file:
        np.savez(file, step=np.array([2, 4, 6]), **{"blocks.1.ffn": np.arange(12).reshape(3, 4)})  # type: ignore[arg-type]
    history = LoadHistory(tmp_path / "load.npz", last_step=4)
    assert history.steps == [2, 4]
    assert history.arrays()["blocks.1.ffn"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]

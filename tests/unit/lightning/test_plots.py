"""Plots of ordinary and odd values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from moekit_lightning.plots import Curve, draw_curves, draw_load


def share_of(path: Path, colour: tuple[float, float, float]) -> float:
    image = imread(path)[..., :3]
    return float((np.abs(image - np.array(colour)).max(-1) < 0.12).mean())


@pytest.mark.parametrize(
    "curves",
    [
        [
            Curve(label="a", x=[1, 2, 3], y=[3.0, 2.0, 1.0]),
            Curve(label="b", x=[1, 2], y=[3.0, float("nan")], faint=True),
        ],
        [Curve(label="a", x=[5], y=[2.0])],
        [Curve(label="a", x=[], y=[])],
        [Curve(label="a", x=[1, 2], y=[0.0, 0.0])],
        [],
    ],
    ids=["two", "one_point", "empty", "flat", "none"],
)
def test_curves_can_be_plotted_for_ordinary_and_odd_values(curves: list[Curve], tmp_path: Path) -> None:
    path = draw_curves(tmp_path / "new" / "loss.png", curves, title="loss", y_label="nats")
    height, width = imread(path).shape[:2]
    assert 300 < height < 1000 and 800 < width < 1600


def test_only_an_overloaded_expert_is_red(tmp_path: Path) -> None:
    even = np.full((5, 8), 10)
    skewed = even.copy()
    skewed[:, 2] = 40
    red = (0.4, 0.0, 0.12)  # the dark end of the scale
    calm = draw_load(tmp_path / "even.png", [1, 2, 3, 4, 5], {"a": even}, title="t")
    busy = draw_load(tmp_path / "skewed.png", [1, 2, 3, 4, 5], {"a": skewed}, title="t")
    assert share_of(busy, red) > share_of(calm, red) + 0.01


@pytest.mark.parametrize("layers", [1, 3])
def test_a_load_of_zero_at_one_step_can_be_plotted(layers: int, tmp_path: Path) -> None:
    loads = {f"blocks.{i}.ffn": np.zeros((1, 4), dtype=np.int64) for i in range(layers)}
    assert draw_load(tmp_path / "load.png", [7], loads, title="t").is_file()

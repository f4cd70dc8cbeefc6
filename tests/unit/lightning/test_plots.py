"""Plots of ordinary and odd values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from moekit_lightning import plots
from moekit_lightning.plots import Curve, draw_curves, draw_load, loads_of, plain_name


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


def test_loads_are_those_of_recorded_steps_of_training() -> None:
    rows = [
        (step, part, layer, 10 * step + expert)
        for step in (2, 4)
        for part, layer in (("train", "a"), ("train", "b"), ("val", "a"))
        for expert in range(3)
        if (step, layer) != (2, "b")
    ]
    names = ("step", "part", "layer", "load")
    table = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    steps, loads = loads_of({"experts": table})
    assert steps == [2, 4] and {name: load.tolist() for name, load in loads.items()} == {
        "a": [[20, 21, 22], [40, 41, 42]]
    }
    assert loads_of({}) == ([], {})


def test_pictures_name_layers_in_words() -> None:
    names = ["blocks.1.ffn", "encoder.blocks.12.ffn", "mtp.0.block.ffn", "moe", "model.layers.3.mlp"]
    assert [plain_name(name) for name in names] == [
        "block 1", "encoder, block 12", "MTP module 0", "moe", "model.layers.3.mlp",
    ]  # fmt: skip


def test_every_panel_has_a_time_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plotted: list[Figure] = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (plotted.append(figure), save(figure, path))[1])
    loads = {f"blocks.{i}.ffn": np.full((3, 4), 5) for i in range(2)}
    draw_load(tmp_path / "load.png", [10, 20, 30], loads, title="t")
    panels = [axes for axes in plotted[0].axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left")[:7] for axes in panels] == ["block 0", "block 1", "MaxVio:"]
    for axes in panels:
        assert [label.get_text() for label in axes.get_xticklabels() if label.get_visible() and label.get_text()]


@pytest.mark.parametrize("layers", [1, 3])
def test_a_load_of_zero_at_one_step_can_be_plotted(layers: int, tmp_path: Path) -> None:
    loads = {f"blocks.{i}.ffn": np.zeros((1, 4), dtype=np.int64) for i in range(layers)}
    assert draw_load(tmp_path / "load.png", [7], loads, title="t").is_file()

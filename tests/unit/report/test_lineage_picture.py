"""The picture of all recipes has one legend, for both kinds of curve, whichever panel has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lineage
import matplotlib.pyplot as plt
import pytest


def test_the_legend_names_the_dashed_curve_also_if_the_first_panel_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plt.switch_backend("agg")
    plotted: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *given, **more: plotted.append(figure))
    one = {"metric": "loss", "curve": [(1, 2.0), (2, 1.0)], "dense_curve": []}
    lineage.draw({"a": one, "b": {**one, "dense_curve": [(1, 2.5), (2, 1.5)]}}, tmp_path / "lineage.png")
    (figure,) = plotted
    (legend,) = figure.legends
    styles = {
        text.get_text(): line.get_linestyle() for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert styles == {"mixture": "-", "dense": "--"}
    assert [axes.get_xlabel() for axes in figure.axes] == ["step", "step"]
    plt.close(figure)

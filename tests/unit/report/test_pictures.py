"""The picture of experts and domains: legible in both themes, with a text that states the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from moekit.cli import main
from moekit.errors import MoekitError
from moekit.run import Run
from moekit_report.pictures import THEMES, Theme, alt_text, contrast, draw, draw_of, order_of
from moekit_report.specialisation import Specialisation


def planted() -> Specialisation:
    """Three domains, each with two of six experts."""
    share_XE = np.kron(np.eye(3), [[0.4, 0.4]]) * 0.97 + 0.2 / 6
    share_XE /= share_XE.sum(1, keepdims=True)
    return Specialisation(share_XE=share_XE, bits=1.2, chance=0.1, p=0.001, high_XE=share_XE > 0.3)


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    with pytest.raises(ValueError, match="has a contrast of 4"):
        Theme(page="#ffffff", ink="#777777", scale=("#ffffff", "#000000"))


@pytest.mark.parametrize("name", THEMES)
def test_text_is_legible_and_the_scale_ascends_from_the_page(name: str) -> None:
    theme = THEMES[name]
    away = [contrast(theme.page, colour) for colour in theme.scale]
    assert theme.scale[0] == theme.page and away == sorted(away) and away[-1] > 10


def test_experts_are_ordered_by_their_domain() -> None:
    shuffled = planted().share_XE[:, [4, 0, 2, 5, 1, 3]]
    assert shuffled[:, order_of(shuffled)].argmax(0).tolist() == [0, 0, 1, 1, 2, 2]


def test_both_files_are_valid_svg_the_same_every_time(tmp_path: Path) -> None:
    special, domains = {"a": planted()}, ["one_kind", "<two>", "three"]
    paths, words = draw(tmp_path, special, domains)
    assert [path.name for path in paths] == ["experts.light.svg", "experts.dark.svg"]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in draw(tmp_path, special, domains)[0]] == before
    text = "".join(ElementTree.fromstring(before[0]).itertext())
    assert all(each in text for each in ("one kind", "<two>", "6 experts", "fair share"))
    assert words == alt_text("a", special["a"], domains)
    assert words in text, "the file has its words in its metadata"
    assert words.startswith("3 kinds of text (rows) by 6 experts of layer a (columns): the kinds of text have experts")
    with pytest.raises(MoekitError, match="no layer 'b' has domains"):
        draw(tmp_path, special, domains, "b")
    with pytest.raises(MoekitError, match="no picture without two domains"):
        draw_of(tmp_path, {})


def test_the_verb_draws_them(run: Run, tmp_path: Path, capsys: Any) -> None:
    assert main(["report", str(run.path), "--to", str(tmp_path / "x.html"), "--pictures", str(tmp_path)]) == 0
    assert "2 kinds of text (rows) by 4 experts" in capsys.readouterr().out
    assert (tmp_path / "experts.dark.svg").is_file()

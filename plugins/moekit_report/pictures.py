"""The picture of experts and domains, light and dark, as SVG; with a text for those who cannot see it.

One hue, from the page's background to full: a diverging scale would hide the diagonal. Experts are ordered by the
domain that has most of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from moekit.errors import MoekitError
from moekit.files import replace_file
from moekit_report.specialisation import Specialisation

MOST = 6.0
"""Colours saturate at this multiple of a fair share."""
LEGIBLE = 4.5
"""The least contrast of text with what is behind it (WCAG 2, level AA)."""


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of a picture.

    Attributes:
        page: background.
        ink: of text.
        scale: of cells, from no share to the highest.
    """

    page: str
    ink: str
    scale: tuple[str, ...]

    def __post_init__(self) -> None:
        if (found := contrast(self.page, self.ink)) < LEGIBLE:
            raise ValueError(f"text {self.ink} on {self.page} has a contrast of {found:.1f}; expected {LEGIBLE}")


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21, as WCAG 2 defines it."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


THEMES = {
    "light": Theme(page="#ffffff", ink="#1f2328", scale=("#ffffff", "#9ecae1", "#2171b5", "#08306b")),
    "dark": Theme(page="#0d1117", ink="#e6edf3", scale=("#0d1117", "#10467f", "#1f6feb", "#cae8ff")),
}


def order_of(share_XE: np.ndarray) -> np.ndarray:
    """The experts by the domain that has most of them, then from the highest share down."""
    return np.lexsort((-share_XE.max(0), share_XE.argmax(0)))


def alt_text(layer: str, found: Specialisation, domains: Sequence[str]) -> str:
    """What the picture shows, in words."""
    X, E = found.share_XE.shape
    times_XE = found.share_XE * E
    favourite = [int(times_XE[x].argmax()) for x in range(X)]
    least = min(range(X), key=lambda x: times_XE[x, favourite[x]])
    most = max(range(X), key=lambda x: times_XE[x, favourite[x]])
    own = int(found.high_XE.any(0).sum())
    says = "the kinds of text have experts of their own" if found.is_found else "no more pattern than chance gives"
    return (
        f"{X} kinds of text (rows) by {E} experts of layer {layer} (columns): {says}. Mutual information "
        f"{found.bits:.2f} of {np.log2(X):.2f} bits; {own} experts have a kind beyond chance. The favourite expert of "
        f"{domains[most]} has {times_XE[most, favourite[most]]:.1f} times a fair share, that of {domains[least]} "
        f"{times_XE[least, favourite[least]]:.1f} times."
    )


def draw(
    folder: Path, special: Mapping[str, Specialisation], domains: Sequence[str], layer: str = ""
) -> tuple[list[Path], str]:
    """Writes ``experts.light.svg`` and ``experts.dark.svg``.

    Args:
        folder: for the files.
        special: of every layer.
        domains: names of the rows.
        layer: which layer; default: the one with the highest mutual information.

    Returns:
        The files, and the text for those who cannot see them.

    Raises:
        MoekitError: there is no such layer.
    """
    if layer and layer not in special:
        raise MoekitError(f"no layer '{layer}' has domains\n  expected one of {', '.join(special)}")
    chosen = layer or max(special, key=lambda name: special[name].bits)
    words = alt_text(chosen, special[chosen], domains)
    paths = []
    for name, theme in THEMES.items():
        path = folder / f"experts.{name}.svg"
        _save(path, _figure(special[chosen], domains, theme), words)
        paths.append(path)
    return paths, words


def _save(path: Path, figure: Figure, words: str) -> None:
    def save(partial: Path) -> None:
        with rc_context({"svg.hashsalt": "moekit", "svg.fonttype": "none", "font.family": "sans-serif"}):
            figure.savefig(partial, format="svg", metadata={"Date": None, "Description": words})

    replace_file(path, save)


def draw_of(folder: Path, shown: Mapping[str, Any]) -> tuple[list[Path], str]:
    """The same from the domains in the contents of a report.

    Raises:
        MoekitError: the report has no domains.
    """
    if not shown:
        raise MoekitError("there is no picture without two domains of text\n  expected data with domains, or --text")
    special = {
        name: Specialisation(
            share_XE=np.array(each["share"]), bits=each["bits"], chance=each["chance"], p=each["p"],
            high_XE=np.array(each["high"], dtype=bool),
        )
        for name, each in shown["layers"].items()
    }  # fmt: skip
    return draw(folder, special, shown["names"])


def _figure(found: Specialisation, domains: Sequence[str], theme: Theme) -> Figure:
    X, E = found.share_XE.shape
    order = order_of(found.share_XE)
    figure = Figure(figsize=(8.4, 0.9 + 0.36 * X), layout="constrained", facecolor=theme.page)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("share", theme.scale)
    times_XE = found.share_XE[:, order] * E
    image = axes.pcolormesh(
        np.arange(E + 1), np.arange(X + 1), times_XE, cmap=colours, vmin=0, vmax=MOST, rasterized=False, linewidth=0
    )
    axes.set_ylim(X, 0)
    axes.set_yticks(np.arange(X) + 0.5, [each.replace("_", " ") for each in domains], color=theme.ink, fontsize=10)
    axes.set_xticks([])
    axes.set_xlabel(f"{E} experts", color=theme.ink, fontsize=10)
    axes.tick_params(length=0)
    axes.set_facecolor(theme.page)
    for side in axes.spines.values():
        side.set_color(theme.ink)
        side.set_alpha(0.3)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, ticks=[0, 1, MOST])
    bar.ax.set_yticklabels(["none", "fair share", f"{MOST:.0f} times"], color=theme.ink, fontsize=9)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    return figure

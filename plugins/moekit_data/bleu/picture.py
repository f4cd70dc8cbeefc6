"""Files that show translations: a table of all of them, and a plot of chrF by language."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from unicodedata import category

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from moekit_data.bleu.scoring import Translation, by_language, chrf

INK, GREY, BLUE = "#222222", "#777777", "#1f5fa8"


def write(made: Sequence[Translation], path: Path) -> Path:
    """Writes language, source, reference and output, separated by tabs.

    Tabs, line breaks and other control characters inside a text are written as ``\\t``, ``\\n``, ``\\x85``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ("\t".join(map(_cell, row)) + "\n" for row in (Translation._fields, *made))
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _cell(text: str) -> str:
    escaped = ("Cc", "Zl", "Zp")  # control characters, separators of lines and paragraphs
    return "".join(ascii(c)[1:-1] if category(c) in escaped else c for c in text)


def draw(made: Sequence[Translation], path: Path) -> Path:
    """Plots a bar for each language, the best on top."""
    parts = by_language(made)
    values = sorted((chrf(part), name) for name, part in parts.items())
    figure = Figure(figsize=(6.4, 1.2 + 0.24 * len(values)), dpi=144, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bars = axes.barh([name for _, name in values], [value for value, _ in values], color=BLUE, height=0.66)
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8, color=INK)
    axes.set_xlim(0, max(10.0, 1.1 * values[-1][0]))
    axes.set_ylim(-0.7, len(values) - 0.3)
    title = f"chrF by language: {len(made)} validation pairs, greedy (100 is the reference)"
    axes.set_title(title, loc="left", fontsize=10, color=INK, pad=8)
    axes.tick_params(labelsize=8, colors=GREY, length=0)
    axes.set_xticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path

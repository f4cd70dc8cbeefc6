"""Generates the drawings of the docs, each for light and dark backgrounds, and the plots of ``by_hand.md``.

python docs/make_figures.py

Labels are symbols and names of components, so the same file serves every language. The plots are those that the code on
the page saves.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

DOCS = Path(__file__).parent
IMAGES, PAGE = DOCS / "images", DOCS / "by_hand.md"
EXPERT_OF = (0, 1, 0, 2, 0, 1)  # the expert of each of six tokens


@dataclass(frozen=True)
class Theme:
    """Colours on one background: of lines and text, of faint lines, and of three experts."""

    suffix: str
    ink: str
    faint: str
    experts: tuple[str, str, str]


THEMES = (
    Theme("", "#1f2328", "#9aa0a6", ("#9ecae9", "#ffd28a", "#94d8bf")),
    Theme(".dark", "#e6edf3", "#7d8590", ("#0b5a8a", "#8a5a00", "#006b4f")),
)


@dataclass(frozen=True)
class Sketch:
    """Axes without ticks, and the shapes that drawings are made of."""

    axes: Axes
    theme: Theme

    def box(self, x: float, y: float, text: str, fill: str = "none", size: tuple[float, float] = (0.8, 0.5)) -> None:
        """A box with its centre at x, y."""
        width, height = size
        shape = FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=fill, edgecolor=self.theme.ink, linewidth=1,
        )  # fmt: skip
        self.axes.add_patch(shape)
        self.text(x, y, text)

    def text(self, x: float, y: float, text: str, size: float = 9) -> None:
        """Text around x, y."""
        self.axes.text(x, y, text, ha="center", va="center", fontsize=size, color=self.theme.ink)

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], faint: bool = False, style: str = "-"
    ) -> None:
        """An arrow; a faint one has no weight in what the drawing says."""
        look = {
            "color": self.theme.faint if faint else self.theme.ink,
            "linestyle": style,
            "linewidth": 0.7 if faint else 1.1,
        }
        self.axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **look})


def layer(figure: Figure, theme: Theme) -> None:
    """The layer: router, dispatcher, experts, sum, balancer; and its place in a transformer block."""
    left, right = (Sketch(axes, theme) for axes in plain(figure, (1, 2), (10, 3.4)))
    left.axes.set(xlim=(0, 8.2), ylim=(0, 4.6))
    left.box(0.6, 2.2, "$x$", size=(0.6, 0.6))
    left.box(2.0, 3.9, "$p=\\mathrm{softmax}(W_r x)$", size=(2.5, 0.6))
    left.arrow((0.75, 2.5), (1.4, 3.6))
    left.box(2.4, 2.2, "top-2", size=(1.0, 0.6))
    left.arrow((0.9, 2.2), (1.9, 2.2))
    left.arrow((2.4, 3.6), (2.4, 2.5))
    for i, (y, used) in enumerate(((3.7, False), (2.7, True), (1.7, False), (0.7, True))):
        left.box(4.6, y, f"$E_{i + 1}$", theme.experts[0] if used else "none")
        left.arrow((2.9, 2.2), (4.2, y), faint=not used, style="-" if used else ":")
        if used:
            left.arrow((5.0, y), (6.6, 2.2))
            left.text(5.9, (y + 2.2) / 2 + (0.25 if y > 2.2 else -0.4), f"$\\times\\, g_{i + 1}$")
    left.box(6.9, 2.2, "$\\Sigma$", size=(0.6, 0.6))
    left.arrow((7.2, 2.2), (7.9, 2.2))
    left.text(8.05, 2.2, "$y$", 10)
    for i, height in enumerate((0.15, 0.5, 0.25, 0.4)):  # the load of the experts, which a balancer reads
        look = {"color": theme.experts[1], "edgecolor": theme.ink, "linewidth": 0.6}
        left.axes.bar(1.9 + 0.35 * i, height, 0.25, bottom=0.35, **look)
    left.text(2.45, 0.15, "$c$")
    left.arrow((2.65, 1.9), (2.65, 1.0))
    left.arrow((2.15, 1.0), (2.15, 1.9))
    left.text(1.85, 1.45, "$+\\,b$")

    right.axes.set(xlim=(0, 3.4), ylim=(-0.4, 5.2))
    for y, text, fill in (
        (0.7, "norm", "none"),
        (1.5, "attention", "none"),
        (3.0, "norm", "none"),
        (3.8, "MoE", theme.experts[0]),
    ):
        right.box(2.1, y, text, fill, size=(1.5, 0.5))
    for start, end in (
        (-0.3, 0.45),
        (0.95, 1.25),
        (1.75, 2.05),
        (2.35, 2.75),
        (3.25, 3.55),
        (4.05, 4.35),
        (4.65, 5.15),
    ):
        right.arrow((2.1, start), (2.1, end))
    for y, below in ((2.2, 0.1), (4.5, 2.55)):
        right.box(2.1, y, "+", size=(0.3, 0.3))
        right.axes.plot([2.1, 0.8, 0.8], [below, below, y], color=theme.ink, linewidth=1.1)
        right.arrow((0.8, y), (1.95, y))


def dispatch(figure: Figure, theme: Theme) -> None:
    """Six tokens and three experts: soft, sorted, with a capacity, and over two devices."""
    soft, grouped, capacity, parallel = (Sketch(axes, theme) for axes in plain(figure, (2, 2), (9, 5.2)))
    for sketch, name in ((soft, "soft"), (grouped, "grouped"), (capacity, "capacity"), (parallel, "expert_parallel")):
        sketch.axes.set(xlim=(0, 7), ylim=(0, 4.2))
        sketch.axes.set_title(name, family="monospace", fontsize=10, color=theme.ink)
        for token, expert in enumerate(EXPERT_OF):
            sketch.box(
                token + 1, 3.6, str(token + 1), theme.experts[expert] if sketch is not soft else "none", (0.6, 0.5)
            )
    for expert in range(3):
        soft.box(2 * expert + 1.5, 0.8, f"$E_{expert + 1}$", theme.experts[expert])
        for token in range(6):
            soft.arrow((token + 1, 3.35), (2 * expert + 1.5, 1.05), faint=True)

    by_expert = sorted(range(6), key=lambda token: EXPERT_OF[token])
    for place, token in enumerate(by_expert):
        grouped.box(place + 1, 2.0, str(token + 1), theme.experts[EXPERT_OF[token]], (0.9, 0.5))
        grouped.arrow((token + 1, 3.35), (place + 1, 2.25), faint=True)
    for expert, (first, last) in enumerate(((1, 3), (4, 5), (6, 6))):
        grouped.box((first + last) / 2, 0.8, f"$E_{expert + 1}$", theme.experts[expert], (last - first + 0.9, 0.5))
        grouped.arrow(((first + last) / 2, 1.75), ((first + last) / 2, 1.05))

    for expert in range(3):
        line = [token for token in range(6) if EXPERT_OF[token] == expert]
        for place in range(2):
            x = 2 * expert + 1.1 + 0.8 * place
            filled = place < len(line)
            capacity.box(
                x, 2.0, str(line[place] + 1) if filled else "", theme.experts[expert] if filled else "none", (0.7, 0.5)
            )
            if filled:
                capacity.arrow((line[place] + 1, 3.35), (x, 2.25), faint=True)
        capacity.box(2 * expert + 1.5, 0.8, f"$E_{expert + 1}$", theme.experts[expert], (1.5, 0.5))
        capacity.arrow((2 * expert + 1.5, 1.75), (2 * expert + 1.5, 1.05))
    capacity.arrow((5, 3.35), (5, 2.85), style=":")
    capacity.text(5, 2.7, "$\\times$", 12)

    for device in range(2):
        parallel.axes.add_patch(
            FancyBboxPatch((3.1 * device + 0.5, 0.3), 2.9, 3.7, boxstyle="round,pad=0,rounding_size=0.1",
                           facecolor="none", edgecolor=theme.faint, linestyle="--")
        )  # fmt: skip
    home = {0: 1.2, 1: 2.6, 2: 5.0}
    for expert, x in home.items():
        parallel.box(x, 0.8, f"$E_{expert + 1}$", theme.experts[expert])
    for token, expert in enumerate(EXPERT_OF):
        crosses = (token < 3) != (expert < 2)
        parallel.arrow((token + 1, 3.35), (home[expert], 1.05), faint=not crosses)


def forms(figure: Figure, theme: Theme) -> None:
    """Six tokens (rows) and four experts (columns): the pairs of each form of routing, shaded by their gates."""
    tenths = {  # of a gate; a row is a token
        "token_choice": ("7030", "0640", "8002", "0055", "6400", "0091"),
        "expert_choice": ("7030", "0641", "8002", "0000", "6400", "0191"),
        "soft": ("7171", "1111", "7171", "1111", "7171", "1111"),
    }
    chosen = {
        name: {(t, e): int(gate) / 10 for t, row in enumerate(rows) for e, gate in enumerate(row) if gate != "0"}
        for name, rows in tenths.items()
    }
    for axes, (name, gates) in zip(plain(figure, (1, 3), (9, 3.2)), chosen.items(), strict=True):
        sketch = Sketch(axes, theme)
        axes.set(xlim=(-1, 4.2), ylim=(7.2, -0.3))
        axes.set_title(name, family="monospace", fontsize=10, color=theme.ink)
        for (token, expert), gate in gates.items():
            look = {"facecolor": theme.experts[0], "alpha": 0.25 + 0.75 * gate, "edgecolor": "none"}
            axes.add_patch(Rectangle((expert, token), 1, 1, **look))
        for i in range(7):
            axes.plot([0, 4], [i, i], color=theme.faint, linewidth=0.6)
        for i in range(5):
            axes.plot([i, i], [0, 6], color=theme.faint, linewidth=0.6)
        for token in range(6):
            sketch.text(-0.5, token + 0.5, f"$x_{token + 1}$")
        for expert in range(4):
            count = sum(pair[1] == expert for pair in gates)
            sketch.text(expert + 0.5, 6.5, f"$E_{expert + 1}$")
            sketch.text(expert + 0.5, 7.0, f"$c={count}$", 7)


def spec(figure: Figure, theme: Theme) -> None:
    """From YAML to a layer: the registry says what the names in a recipe mean; each spec is built."""
    (sketch,) = (Sketch(axes, theme) for axes in plain(figure, (1, 1), (9.5, 3.0)))
    sketch.axes.set(xlim=(0, 13), ylim=(0, 4))
    sketch.box(1.6, 2.6, "deepseek_v3.yaml\nkey=value", size=(2.6, 1.0))
    sketch.box(5.0, 2.6, "Recipe", theme.experts[1], (1.6, 0.8))
    for i, (one, made) in enumerate(
        (("TopK", "TopKRouter"), ("Glu", "GluExperts"), ("Auto", "AutoDispatcher"), ("SignBias", "SignBiasBalancer"))
    ):
        y = 3.65 - 0.72 * i
        sketch.box(7.4, y, one, theme.experts[1], (1.5, 0.52))
        sketch.box(10.1, y, made, theme.experts[0], (2.4, 0.52))
        sketch.arrow((5.8, 2.6), (6.65, y))
        sketch.arrow((8.15, y), (8.9, y))
        sketch.arrow((11.3, y), (11.75, 2.6))
    sketch.box(12.35, 2.6, "MoELayer", theme.experts[0], (1.2, 0.8))
    sketch.arrow((2.9, 2.6), (4.2, 2.6))
    sketch.text(3.5, 2.85, "load", 8)
    sketch.text(8.5, 3.95, "build", 8)
    sketch.box(1.6, 0.6, "moekit_components()", size=(2.9, 0.6))
    sketch.box(5.0, 0.6, "registry", theme.experts[2], (1.6, 0.6))
    sketch.arrow((3.05, 0.6), (4.2, 0.6))
    sketch.arrow((5.0, 0.9), (5.0, 2.2))


def plain(figure: Figure, grid: tuple[int, int], size: tuple[float, float]) -> Sequence[Axes]:
    """Axes without frames; the figure has a transparent background."""
    figure.set_size_inches(*size)
    figure.patch.set_alpha(0)
    ratios = (2.6, 1) if grid == (1, 2) else (1,) * grid[1]
    axes = list(figure.subplots(*grid, squeeze=False, width_ratios=ratios).flat)
    for one in axes:
        one.axis("off")
    return axes


DRAWINGS: dict[str, Callable[[Figure, Theme], None]] = {
    "layer": layer,
    "dispatch": dispatch,
    "forms": forms,
    "spec": spec,
}


def draw(folder: Path) -> list[Path]:
    """Writes each drawing, for each background; the bytes depend on matplotlib's version alone."""
    written = []
    with matplotlib.rc_context({"svg.hashsalt": "moekit", "mathtext.fontset": "cm"}):
        for name, drawing in DRAWINGS.items():
            for theme in THEMES:
                figure = Figure(layout="constrained")
                drawing(figure, theme)
                written.append(folder / f"{name}{theme.suffix}.svg")
                figure.savefig(written[-1], metadata={"Date": None, "Creator": None})
    return written


def plots_of_the_page() -> dict[str, bytes]:
    """Runs the Python on the page, in order, in an empty folder; returns the pictures that it saves."""
    page = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "page"}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for block in re.finditer(r"^```(python|yaml)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
                if block[1] == "python":
                    exec(compile(block[2], str(PAGE), "exec", dont_inherit=True), names)
                else:
                    Path(block[2].split()[1]).write_text(block[2], encoding="utf-8")
        finally:
            os.chdir(here)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.png"))}


if __name__ == "__main__":
    for path in draw(IMAGES):
        print(path)
    for name, data in plots_of_the_page().items():
        (IMAGES / name).write_bytes(data)
        print(IMAGES / name)

"""Plots a trained model's answers over the formant plane. Without pyplot, so that no global state changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from moekit.contracts import LayerReport, Model, ModelOutput
from moekit.routing import ExpertChoice, Routing, Soft, TokenChoice
from moekit_data.vowels.table import Cases, Speakers

SIDE = 300  # points along each axis of the plane
WORDS = {
    "iy": "heed", "ih": "hid", "eh": "head", "ae": "had", "ah": "hud",
    "aa": "hod", "ao": "hawed", "uh": "hood", "uw": "who'd", "er": "heard",
}  # fmt: skip
VOWEL_COLOURS = ("#0072B2", "#C65300", "#007F5C", "#AA4499", "#8A6400", "#6A4FC4", "#882255", "#5A5A5A", "#6B6B00")
EXPERT_COLOURS = ("#88CCEE", "#EECC66", "#99DDAA", "#EE99AA", "#BBAADD", "#CCBBAA", "#FFAABB", "#AAAA88")
SHADES = ("#E2E2E2", "#FFFFFF", "#FFF6CC")
"""Of the answers 0, 0.5 and 1. No marker has their hues, and every marker has a contrast of 3 with each (WCAG 2)."""
INK = "#222222"


def draw(model: Model, data: Speakers, path: Path) -> Path:
    """Plots the cases with the model's decision boundary and, for a model with an MoE layer, its gate regions.

    Args:
        model: takes ``x_TD`` cases of two formants in kHz; its first output is plotted. Its mode is restored.
        data: the cases.
        path: the PNG to write; its folder is created.

    Returns:
        ``path``.
    """
    plane = _Plane(model, data)
    panels = 1 if plane.expert is None else 2
    figure = Figure(figsize=(7.2 * panels, 6.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, sharex=True, sharey=True, squeeze=False)[0]
    _draw_decision(axes[0], plane, data)
    if plane.expert is not None:
        _draw_gate(axes[1], plane, data)
    for ax in axes:
        ax.set_xlim(*plane.f1_range)
        ax.set_ylim(*plane.f2_range)
        ax.set_xlabel("F1, first formant (Hz)", color=INK)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("F2, second formant (Hz)", color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


class _Plane:
    """The model's answers on a grid over the formants, and on the cases.

    Attributes:
        f1, f2: Hz, the grid's coordinates along each axis.
        output: ``[F2, F1]``, the model's first output.
        num_experts: E; 0 for a model without an MoE layer.
        expert: ``[F2, F1]``, the expert with the largest gate; None for a model without an MoE layer.
        expert_output: ``[E, F2, F1]``, each expert's own output; None where the layer reports none.
        correct: share of cases on the right side of 0.5: training, test.
    """

    def __init__(self, model: Model, data: Speakers) -> None:
        hertz = 1000 * torch.cat([data.train.x_TD, data.test.x_TD])
        low, high = hertz.amin(0), hertz.amax(0)
        margin = 0.06 * (high - low)
        (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
        self.f1_range, self.f2_range = (left, right), (bottom, top)
        f1, f2 = torch.linspace(left, right, SIDE), torch.linspace(bottom, top, SIDE)
        grid = torch.cartesian_prod(f2, f1).flip(1) / 1000
        was_training = model.training
        model.eval()
        with torch.no_grad():
            out = _run(model, grid)
            self.correct = tuple(_share_correct(model, cases) for cases in (data.train, data.test))
        model.train(was_training)
        self.f1, self.f2 = f1.numpy(), f2.numpy()
        self.output = _square(out.y[:, 0])
        report: LayerReport | None = next(iter(out.reports.values()), None)
        self.num_experts = 0 if report is None else report.routing.num_experts
        self.expert = None if report is None else _square(largest_gate_T(report.routing))
        own = None if report is None or report.expert_TEO is None else report.expert_TEO[:, :, 0]
        self.expert_output = None if own is None else [_square(column) for column in own.unbind(1)]


def _run(model: Model, x_TD: Tensor) -> ModelOutput:
    weight = next(model.parameters())
    output: ModelOutput = model(x_TD.to(weight))
    return output


def _share_correct(model: Model, cases: Cases) -> float:
    y_T = _run(model, cases.x_TD).y[:, 0].cpu()
    return float(((y_T > 0.5) == (cases.d_TO[:, 0] > 0.5)).double().mean())


def _square(value_T: Tensor) -> Any:
    return value_T.cpu().reshape(SIDE, SIDE).numpy()


def largest_gate_T(routing: Routing) -> Tensor:
    """int64: for each token, the expert with the largest gate (over all slots), in any form of routing."""
    if isinstance(routing, Soft):
        return routing.combine_TEP.sum(2).argmax(1)
    assert isinstance(routing, TokenChoice | ExpertChoice)
    pairs = routing.pairs()
    T, E = routing.scores_TE.shape
    gate_TE = pairs.gate_N.new_zeros(T, E + 1)  # the last column is for pairs without an expert
    gate_TE.index_put_((pairs.token_N, pairs.expert_N), pairs.gate_N, accumulate=True)
    return gate_TE[:, :E].argmax(1)


def _draw_decision(ax: Axes, plane: _Plane, data: Speakers) -> None:
    shades = LinearSegmentedColormap.from_list("answer", SHADES)
    ax.pcolormesh(plane.f1, plane.f2, plane.output, cmap=shades, vmin=0, vmax=1, shading="nearest", rasterized=True)
    _boundary(ax, plane)
    target = dict(zip(data.train.vowels, data.train.d_TO[:, 0].tolist(), strict=True))
    handles: list[Line2D | Patch] = []
    for number, vowel in enumerate(data.vowels):
        colour = VOWEL_COLOURS[number % len(VOWEL_COLOURS)]
        marker = "o" if target[vowel] else "^"
        for cases, fill in ((data.train, colour), (data.test, "white")):
            f1, f2 = _hertz(cases, vowel)
            ax.scatter(
                f1, f2, s=26, marker=marker, facecolor=fill, edgecolor=colour, linewidth=1.1, alpha=0.85, zorder=3
            )
        label = f"{vowel}, as in {WORDS[vowel]}: {target[vowel]:.0f}"
        handles.append(Line2D([], [], marker=marker, color=colour, linestyle="", label=label))
    handles += [
        Line2D([], [], marker="o", color=INK, markerfacecolor=INK, linestyle="", label="training speaker"),
        Line2D([], [], marker="o", color=INK, markerfacecolor="white", linestyle="", label="test speaker"),
        Line2D([], [], color=INK, linewidth=2, label="output 0.5"),
        Patch(facecolor=SHADES[2], edgecolor="#BBBBBB", label="output 1: circles"),
        Patch(facecolor=SHADES[0], edgecolor="#BBBBBB", label="output 0: triangles"),
    ]
    ax.legend(handles=handles, loc="upper right", frameon=True, framealpha=0.92, edgecolor="#DDDDDD", fontsize=9)
    train, test = plane.correct
    ax.set_title(f"Decision: {train:.1%} of training cases right, {test:.1%} of test cases", color=INK, fontsize=12)


def _draw_gate(ax: Axes, plane: _Plane, data: Speakers) -> None:
    assert plane.expert is not None
    present = sorted(set(plane.expert.flatten().tolist()))
    colours = {e: EXPERT_COLOURS[e % len(EXPERT_COLOURS)] for e in range(max(present) + 1)}
    ax.pcolormesh(
        plane.f1,
        plane.f2,
        plane.expert,
        cmap=ListedColormap([colours[e] for e in range(max(present) + 1)]),
        vmin=-0.5,
        vmax=max(present) + 0.5,
        shading="nearest",
        alpha=0.6,
        rasterized=True,
    )
    for cases in (data.train, data.test):
        for vowel in data.vowels:
            f1, f2 = _hertz(cases, vowel)
            ax.scatter(f1, f2, s=7, color="#555555", alpha=0.35, linewidth=0, zorder=3)
    _boundary(ax, plane)
    for expert in present:
        dark = tuple(0.5 * channel for channel in to_rgb(colours[expert]))
        if plane.expert_output is not None:
            own = plane.expert_output[expert]
            ax.contour(plane.f1, plane.f2, own, levels=[0.5], colors=[dark], linestyles="--", linewidths=2.2, zorder=5)
        f1, f2 = _label_position(plane, data, expert)
        ax.text(
            f1, f2, f"expert {expert}", ha="center", va="center", color=dark, fontsize=14, fontweight="bold", zorder=6
        )
    handles = [Line2D([], [], color=INK, linewidth=2, label="blended output 0.5")]
    if plane.expert_output is not None:
        handles.append(
            Line2D([], [], color="#666666", linestyle="--", linewidth=2.2, label="an expert's own output 0.5")
        )
    ax.legend(handles=handles, loc="upper right", frameon=True, framealpha=0.92, edgecolor="#DDDDDD", fontsize=9)
    ax.set_title(f"Gate: {len(present)} of {plane.num_experts} experts lead in some region", color=INK, fontsize=12)


def _boundary(ax: Axes, plane: _Plane) -> None:
    if plane.output.min() < 0.5 < plane.output.max():
        ax.contour(plane.f1, plane.f2, plane.output, levels=[0.5], colors=[INK], linewidths=2, zorder=4)


def _label_position(plane: _Plane, data: Speakers, expert: int) -> tuple[float, float]:
    """F1 and F2 in Hz of the point in an expert's region that is farthest from cases, lines, edges and the legend."""
    region = torch.from_numpy(plane.expert == expert)
    above = torch.from_numpy(plane.output > 0.5)
    lines = torch.zeros_like(above)
    for field in (region, above):
        lines[1:] |= field[1:] != field[:-1]
        lines[:, 1:] |= field[:, 1:] != field[:, :-1]
    lines[0] = lines[-1] = lines[:, 0] = lines[:, -1] = True
    lines[-SIDE // 8 :, SIDE // 2 :] = True  # the legend
    step = 6
    low = torch.tensor([plane.f2_range[0], plane.f1_range[0]])
    high = torch.tensor([plane.f2_range[1], plane.f1_range[1]])
    cases = (1000 * torch.cat([data.train.x_TD, data.test.x_TD]).flip(1) - low) / (high - low) * SIDE
    obstacles = torch.cat([lines.nonzero()[::3].float(), cases])
    candidates = region[::step, ::step].nonzero().float() * step
    if not len(candidates):  # a region smaller than the step
        candidates = region.nonzero().float()
    wide = torch.tensor([1.0, 0.4])  # a label is wider than it is high
    clearance = torch.cdist(candidates * wide, obstacles * wide).amin(1)
    row, column = candidates[clearance.argmax()].long().tolist()
    return float(plane.f1[column]), float(plane.f2[row])


def _hertz(cases: Cases, vowel: str) -> tuple[Any, Any]:
    """F1 and F2 in Hz of one vowel's cases."""
    rows = torch.tensor([v == vowel for v in cases.vowels])
    f1, f2 = (1000 * cases.x_TD[rows]).unbind(1)
    return f1.numpy(), f2.numpy()

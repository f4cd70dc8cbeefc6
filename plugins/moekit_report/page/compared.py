"""The page of a comparison: a table, curves, and what the recipes differ in. It loads nothing, as a report's."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import moekit
from moekit_report.comparison import Comparison, points, table_of
from moekit_report.packing import POINTS, every
from moekit_report.page import filled, scripts_of

SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "compare.js")


def html_of(compared: Comparison) -> str:
    """The page.

    Args:
        compared: the groups of runs.
    """
    changes = [
        f"<h3>{escape(group.label)}</h3><ul>{_joined('<li class=key>', group.changes, '</li>')}</ul>"
        for group in compared.groups[1:]
        if group.changes
    ]
    parts = {
        "table": _table(table_of(compared)),
        "metric": escape(compared.info.with_unit()),
        "changes": "".join(changes) or "<p>Nothing but seeds.</p>",
        "version": escape(moekit.__version__),
    }
    data = {
        "metric": compared.info.with_unit(),
        "labels": [group.label for group in compared.groups],
        "curves": _curves(compared),
    }
    return filled("compare.html", parts, data, scripts_of(SCRIPTS))


def _curves(compared: Comparison) -> list[dict[str, Any]]:
    out = []
    for group in compared.groups:
        for run in group.runs:
            curve: dict[str, Any] = {"label": group.label}
            for x in ("step", "seconds", "tokens"):
                xs, ys = points(run, f"val/{compared.metric}", x)
                step = every(len(xs), POINTS)
                if xs:
                    curve |= {x: xs[::step], "y": ys[::step]}
            if "y" in curve:
                out.append(curve)
    return out


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = _joined('<th scope="col">', rows[0], "</th>")
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{_joined("<td class=n>", row[1:], "</td>")}</tr>' for row in rows[1:]
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _joined(before: str, texts: Sequence[str], after: str) -> str:
    return "".join(f"{before}{escape(text)}{after}" for text in texts)

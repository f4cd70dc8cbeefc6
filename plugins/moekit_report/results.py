"""The results of a run for a report: facts, curves, the comparison with its dense baseline."""

from __future__ import annotations

import math
from typing import Any

from moekit.run import Run
from moekit.spec.fields import MetricInfo
from moekit_report.findings import Finding
from moekit_report.packing import POINTS, plain, thinned


def facts(run: Run, metric: str, info: MetricInfo) -> list[tuple[str, str]]:
    """The head of a report: sizes, steps, the main result."""
    outcome, recipe = run.outcome, run.recipe
    found = [("run", run.path.as_posix())]
    if recipe.paper is not None:
        found.append(("paper", f"{recipe.paper.title} ({recipe.paper.year})"))
    if outcome:
        found += [
            ("steps", f"{outcome['steps']:,}"),
            ("tokens", f"{outcome['tokens']:,.0f}"),
            ("training time", f"{outcome['seconds']:,.0f} s"),
            ("parameters", f"{outcome['total']:,}; active in a token {outcome['active']:,}"),
        ]
        if metric in outcome["validation"]:
            found.append((f"validation, {info.with_unit()}", info.format(outcome["validation"][metric])))
        if outcome["max_violation"]:
            found.append(
                ("MaxVio at the start and at the end", " and ".join(f"{v:.2f}" for v in outcome["max_violation"]))
            )
    elif run.metrics:
        found.append(("steps so far", f"{run.metrics['step'][-1]:,.0f}"))
    return found


def against_dense(run: Run, metric: str, info: MetricInfo) -> list[Finding]:
    """Whether the mixture is better than its dense baseline, after the same tokens and the same time."""
    compared = run.outcome.get("comparison") if run.outcome else None
    if not compared:
        return []
    out, moe = [], compared["moe"]
    for when, dense in (
        ("after the same tokens", compared["dense"]),
        (f"that trained for the same {compared['moe_seconds']:,.0f} s", compared["dense_as_long"]),
    ):
        if all(value is not None and math.isfinite(value) for value in (moe, dense)):
            better = (moe < dense) == info.lower_is_better
            text = (
                f"The mixture is {'better' if better else 'worse'} than its dense baseline {when}: "
                f"{info.format(moe)} against {info.format(dense)} {info.label}."
            )
            out.append(Finding(kind="dense", level="good" if better else "note", text=text))
    return out


def curves(run: Run, metric: str) -> list[dict[str, Any]]:
    """Loss and throughput of the run and of its dense baseline, over steps, seconds and tokens."""
    out = []
    for label, each in (("mixture", run), ("dense", run.dense)):
        if each is None or not each.metrics:
            continue
        columns = each.metrics
        wanted = [("train", f"train/{metric}"), ("val", f"val/{metric}"), ("speed", "tokens_per_second")]
        for part, key in wanted:
            logged = [i for i, value in enumerate(columns.get(key, ())) if value is not None]
            rows = [logged[i] for i in thinned(len(logged), POINTS)]
            over = [x for x in ("step", "seconds", "tokens") if x in columns]
            point: dict[str, Any] = {x: [plain(columns[x][i]) for i in rows] for x in over}
            if rows:
                out.append({"label": label, "part": part, **point, "y": [plain(columns[key][i]) for i in rows]})
    return out

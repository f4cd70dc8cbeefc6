"""Everything that a report shows, as plain values: what ``moekit report --json`` prints and the page draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import moekit
from moekit.errors import MoekitError
from moekit.run import Run
from moekit.spec import to_plain
from moekit.spec.fields import MetricInfo
from moekit.training.metrics import headline
from moekit_report.examination import Examination, examine, passages, text_batches, typical_tokens
from moekit_report.findings import Finding, findings
from moekit_report.packing import LOAD_SCALE, every, packed, packed_lift, plain, rounded, shares, thinned, within
from moekit_report.reading import LayerLog, last_matrix, last_pairs, layer_logs
from moekit_report.routing.classes import CLASSES
from moekit_report.routing.sums import MEANS
from moekit_report.specialisation import Specialisation, specialisation

FRAMES = 100  # of the heat map and of biases over time
POINTS = 400  # of a curve
PAIR_BYTES = 1_500_000  # of all matrices of pairs


def contents(run: Run, *, text: Sequence[Path] = (), sequences: int = 256, model: bool = True) -> dict[str, Any]:
    """What a report shows of a run.

    Args:
        run: finished or not.
        text: files to examine the model with, each a domain; the run's validation set if there are none.
        sequences: how many to examine.
        model: whether to examine the trained model; else the report has what was recorded in training alone.

    Raises:
        MoekitError: a file of ``text`` cannot be read, or the run's record is damaged.
    """
    tables, notes = run.routing, []
    train, validation = layer_logs(tables, "train"), layer_logs(tables, "val")
    examined: Examination | None = None
    if model:
        try:
            examined = _examined(run, text, sequences)
        except MoekitError as error:
            if text:
                raise
            notes.append(f"The trained model was not examined: {str(error).splitlines()[0]}")
    special = None
    if examined is not None and len(np.unique(examined.domain_N)) > 1:
        special = specialisation(examined.load_NE, examined.domain_N.tolist())
    if not tables:
        notes.append("The run has no record of its routing: it was trained without the callback 'routing'.")
    metric, info = headline(run.recipe, set(run.metrics))
    step_every = every(len(next(iter(train.values())).step_X), FRAMES) if train else 1
    rows = len(next(iter(train.values())).step_X) if train else 0
    if step_every > 1:
        notes.append(f"Pictures over time are thinned: they show every {step_every}th of {rows:,} recorded steps.")
    said = [*_against_dense(run, metric, info), *findings(train, validation, to_plain(run.recipe), special)]
    names = list(dict.fromkeys([*train, *validation, *([] if examined is None else examined.load_NE)]))
    layers = {
        name: {
            "experts": _num_experts(name, train, validation, examined),
            "train": _log(train.get(name)),
            "val": _log(validation.get(name)),
        }
        for name in names
    }
    pairs = last_pairs(tables, {name: each["experts"] for name, each in layers.items()})
    kept = within(pairs, PAIR_BYTES)
    if len(kept) < len(pairs):
        notes.append(
            f"Pairs of experts are shown for {len(kept)} of {len(pairs)} layers, which would take too much room."
        )
    classes = last_matrix(tables, "classes", "class", CLASSES)
    return {
        "version": moekit.__version__,
        "name": run.recipe.name or run.path.parent.name,
        "folder": run.path.as_posix(),
        "summary": run.recipe.summary,
        "facts": _facts(run, metric, info),
        "notes": notes,
        "findings": [each.plain() for each in said],
        "metric": {"name": metric, "label": info.with_unit(), "digits": info.digits},
        "curves": _curves(run, metric),
        "layers": layers,
        "pairs": {name: packed_lift(pairs[name], validation[name]) for name in kept},
        "domains": _domains(examined, special),
        "classes": {name: {"names": list(CLASSES), "share": shares(load_XE)} for name, load_XE in classes.items()},
        "typical": _typical(run, examined),
        "passages": [] if examined is None else passages(examined, _spelling(run)),
    }


def _examined(run: Run, text: Sequence[Path], sequences: int) -> Examination:
    data, tokenizer = run.data, run.tokenizer
    if data is None or tokenizer is None:
        raise MoekitError("its data is not text")
    if text:
        batches = text_batches(text, tokenizer, seq=int(getattr(run.recipe.data, "seq", 128)))
        return examine(run.model, batches, [path.stem for path in text], sequences=sequences)
    data.prepare()
    return examine(run.model, data.validation_batches(), data.domain_names(), sequences=sequences)


def _spelling(run: Run) -> Sequence[bytes]:
    return () if run.tokenizer is None else run.tokenizer.spelling


def _typical(run: Run, examined: Examination | None) -> dict[str, Any]:
    if examined is None:
        return {}
    found = typical_tokens(examined, _spelling(run))
    return {name: [[asdict(token) for token in tokens] for tokens in experts] for name, experts in found.items()}


def _num_experts(
    name: str, train: Mapping[str, LayerLog], val: Mapping[str, LayerLog], examined: Examination | None
) -> int:
    if name in train or name in val:
        return int((train.get(name) or val[name]).load_XE.shape[1])
    assert examined is not None
    return int(examined.load_NE[name].shape[1])


def _facts(run: Run, metric: str, info: MetricInfo) -> list[tuple[str, str]]:
    outcome, recipe = run.outcome, run.recipe
    facts = [("run", run.path.as_posix())]
    if recipe.paper is not None:
        facts.append(("paper", f"{recipe.paper.title} ({recipe.paper.year})"))
    if outcome:
        facts += [
            ("steps", f"{outcome['steps']:,}"),
            ("tokens", f"{outcome['tokens']:,.0f}"),
            ("training time", f"{outcome['seconds']:,.0f} s"),
            ("parameters", f"{outcome['total']:,}; active in a token {outcome['active']:,}"),
        ]
        if metric in outcome["validation"]:
            facts.append((f"validation, {info.with_unit()}", info.format(outcome["validation"][metric])))
        if outcome["max_violation"]:
            facts.append(
                ("MaxVio at the start and at the end", " and ".join(f"{v:.2f}" for v in outcome["max_violation"]))
            )
    elif run.metrics:
        facts.append(("steps so far", f"{run.metrics['step'][-1]:,.0f}"))
    return facts


def _against_dense(run: Run, metric: str, info: MetricInfo) -> list[Finding]:
    compared = run.outcome.get("comparison") if run.outcome else None
    if not compared:
        return []
    out = []
    for when, moe, dense in (
        ("after the same tokens", compared["moe"], compared["dense"]),
        (f"after the same {compared['seconds']:,.0f} s", compared["moe_then"], compared["dense_then"]),
    ):
        if all(value is not None and math.isfinite(value) for value in (moe, dense)):
            better = (moe < dense) == info.lower_is_better
            text = (
                f"The mixture is {'better' if better else 'worse'} than its dense baseline {when}: "
                f"{info.format(moe)} against {info.format(dense)} {info.label}."
            )
            out.append(Finding(kind="dense", level="good" if better else "note", text=text))
    return out


def _curves(run: Run, metric: str) -> list[dict[str, Any]]:
    """Loss and throughput of the run and of its dense baseline, over steps, seconds and tokens."""
    out = []
    for label, each in (("mixture", run), ("dense", run.dense)):
        if each is None or not each.metrics:
            continue
        columns = each.metrics
        wanted = [("train", f"train/{metric}"), ("val", f"val/{metric}"), ("speed", "tokens_per_second")]
        for part, key in wanted:
            rows = [i for i, value in enumerate(columns.get(key, ())) if value is not None]
            rows = rows[:: every(len(rows), POINTS)] + rows[-1:] * (len(rows) % every(len(rows), POINTS) != 1)
            point = {x: [plain(columns[x][i]) for i in rows] for x in ("step", "seconds", "tokens") if x in columns}
            if rows:
                out.append({"label": label, "part": part, **point, "y": [plain(columns[key][i]) for i in rows]})
    return out


def _log(log: LayerLog | None) -> dict[str, Any] | None:
    """A layer's record, thinned; loads and biases as packed frames."""
    if log is None:
        return None
    few, some = thinned(len(log.step_X), FRAMES), thinned(len(log.step_X), POINTS)
    pairs = np.maximum(log.values["pairs"] + log.values["unsent_pairs"], 1)
    tokens = np.maximum(log.values["tokens"], 1)
    all_tokens = np.maximum(log.values["tokens"] + log.values["padded_tokens"], 1)
    percentiles_XN = log.percentiles((10, 50, 90))
    series = {
        "MaxVio": log.max_violation_X,
        "dead experts": log.dead_X,
        "starved experts": log.starved_X,
        "load, 10th percentile": percentiles_XN[:, 0],
        "load, median": percentiles_XN[:, 1],
        "load, 90th percentile": percentiles_XN[:, 2],
        "entropy (bits)": log.values["entropy"],
        "gate of the first choice": log.values["first_gate"],
        "margin to the next expert": log.values["margin"],
        "norm of the logits": log.values["logit_norm"],
        "dropped pairs": log.values["dropped_pairs"] / pairs,
        "dropped tokens": log.values["dropped_tokens"] / tokens,
        "choices not sent": log.values["unsent_pairs"] / pairs,
        "padding": log.values["padded_tokens"] / all_tokens,
        "changed first choices": log.values["changed"],
    }
    has_bias = not np.isnan(log.bias_XE).all()
    return {
        "frames": log.step_X[few].tolist(),
        "load": packed(np.clip(np.rint(log.share_XE[few] * LOAD_SCALE), 0, 255).astype(np.uint8)),
        "bias": packed(log.bias_XE[few].astype("<f4")) if has_bias else None,
        "step": log.step_X[some].tolist(),
        "series": {
            name: [plain(value) for value in column[some]]
            for name, column in series.items()
            if np.isfinite(column).any() and (name in ("MaxVio", *MEANS) or np.nanmax(np.abs(column)) > 0)
        },
    }


def _domains(examined: Examination | None, special: Mapping[str, Specialisation] | None) -> dict[str, Any]:
    if examined is None or special is None:
        return {}
    present = [examined.domains[i] for i in np.unique(examined.domain_N)]
    return {
        "names": present,
        "sequences": len(examined.domain_N),
        "layers": {
            name: {
                "share": rounded(each.share_XE),
                "high": each.high_XE.astype(int).tolist(),
                "bits": round(each.bits, 4),
                "chance": round(each.chance, 4),
                "p": round(each.p, 4),
                "found": each.is_found,
                "entropy": [round(value, 3) for value in each.entropy_E.tolist()],
            }
            for name, each in special.items()
        },
    }

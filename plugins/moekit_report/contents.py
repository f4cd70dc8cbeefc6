"""Everything that a report shows, as plain values: what ``moekit report --json`` prints and the page draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import moekit
from moekit.errors import MoekitError
from moekit.run import Run
from moekit.spec import to_plain
from moekit.training.metrics import headline
from moekit_report.examination import Examination, examine, passages, text_batches, typical_tokens
from moekit_report.findings import findings
from moekit_report.packing import (
    LOAD_SCALE,
    POINTS,
    every,
    packed,
    packed_lift,
    plain,
    rounded,
    shares,
    thinned,
    within,
)
from moekit_report.reading import LayerLog, last_matrix, last_pairs, layer_logs, table_of
from moekit_report.results import against_dense, curves, facts
from moekit_report.routing.classes import CLASSES
from moekit_report.routing.sums import COUNTS, MEANS
from moekit_report.scoring import data_of
from moekit_report.specialisation import Specialisation, specialisation

FRAMES = 100  # of the heat map and of biases over time
PAIR_BYTES = 1_500_000  # of all matrices of pairs


def contents(
    run: Run, *, text: Sequence[Path] = (), data: Sequence[str] = (), sequences: int = 256, model: bool = True
) -> dict[str, Any]:
    """What a report shows of a run.

    Args:
        run: finished or not.
        text: files to examine the model with, each a domain; the run's validation set if there are none.
        data: ``data.option=value``, to examine it with the validation set of other data.
        sequences: how many to examine.
        model: whether to examine the trained model; else the report has what was recorded in training alone.

    Raises:
        MoekitError: a file of ``text`` or other data cannot be read, or the run's record is damaged.
    """
    tables, notes = run.routing, []
    train, validation = layer_logs(tables, "train"), layer_logs(tables, "val")
    if tables:
        table_of(tables, "layers", *COUNTS, *MEANS)
    examined: Examination | None = None
    spelling: Sequence[bytes] = ()
    if model:
        try:
            examined, spelling = _examined(run, text, data, sequences)
        except MoekitError as error:
            if text or data:
                raise
            notes.append(f"The trained model was not examined: {str(error).splitlines()[0]}")
    special = None
    if examined is not None and len(np.unique(examined.domain_N)) > 1:
        special = specialisation(examined.load_NE, examined.domain_N.tolist())
    if not tables and not run.metrics:
        notes.append("Nothing was trained here, so nothing was recorded: the report examines the model.")
    elif not tables:
        notes.append("There is no record of routing: every expert sees every token, or the callback 'routing' was off.")
    metric, info = headline(run.recipe, set(run.metrics))
    step_every = every(len(next(iter(train.values())).step_X), FRAMES) if train else 1
    rows = len(next(iter(train.values())).step_X) if train else 0
    if step_every > 1:
        notes.append(f"Pictures over time are thinned: they show every {step_every}th of {rows:,} recorded steps.")
    said = [*against_dense(run, metric, info), *findings(train, validation, to_plain(run.recipe), special)]
    names = list(dict.fromkeys([*train, *validation, *([] if examined is None else examined.load_NE)]))
    experts = {name: _num_experts(name, train, validation, examined) for name in names}
    layers = {
        name: {
            "experts": experts[name],
            "train": _log(train.get(name)),
            "val": _log(validation.get(name)),
        }
        for name in names
    }
    pairs = last_pairs(tables, experts)
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
        "facts": facts(run, metric, info),
        "notes": notes,
        "findings": [each.plain() for each in said],
        "metric": {"name": metric, "label": info.with_unit(), "digits": info.digits},
        "curves": curves(run, metric),
        "layers": layers,
        "pairs": {name: packed_lift(pairs[name], validation[name]) for name in kept},
        "domains": _domains(examined, special),
        "classes": {name: {"names": list(CLASSES), "share": shares(load_XE)} for name, load_XE in classes.items()},
        "typical": _typical(examined, spelling),
        "passages": [] if examined is None else passages(examined, spelling),
    }


def _examined(
    run: Run, text: Sequence[Path], other: Sequence[str], sequences: int
) -> tuple[Examination, Sequence[bytes]]:
    if text:
        if run.tokenizer is None:
            raise MoekitError("its data is not text")
        batches = text_batches(text, run.tokenizer, seq=int(getattr(run.recipe.data, "seq", 128)))
        found = examine(run.model, batches, [path.stem for path in text], sequences=sequences)
        return found, run.tokenizer.spelling
    data, _ = data_of(run, other)
    if data.tokenizer is None:
        raise MoekitError("its data is not text")
    found = examine(run.model, data.validation_batches(), data.domain_names(), sequences=sequences)
    return found, data.tokenizer.spelling


def _typical(examined: Examination | None, spelling: Sequence[bytes]) -> dict[str, Any]:
    if examined is None:
        return {}
    found = typical_tokens(examined, spelling)
    return {name: [[asdict(token) for token in tokens] for tokens in experts] for name, experts in found.items()}


def _num_experts(
    name: str, train: Mapping[str, LayerLog], val: Mapping[str, LayerLog], examined: Examination | None
) -> int:
    if name in train or name in val:
        return int((train.get(name) or val[name]).load_XE.shape[1])
    assert examined is not None
    return int(examined.load_NE[name].shape[1])


def _log(log: LayerLog | None) -> dict[str, Any] | None:
    """A layer's record, thinned; loads and biases as packed frames."""
    if log is None:
        return None
    few, some = thinned(len(log.step_X), FRAMES), thinned(len(log.step_X), POINTS)
    pairs = np.maximum(log.values["pairs"] + log.values["unsent_pairs"], 1)
    tokens = np.maximum(log.values["tokens"], 1)
    all_tokens = np.maximum(log.values["tokens"] + log.values["padded_tokens"], 1)
    percentiles_XN = log.percentiles((10, 50, 90))
    series: dict[str, np.ndarray] = {
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
            if np.isfinite(column).any() and (name == "MaxVio" or np.nanmax(np.abs(column)) > 0)
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

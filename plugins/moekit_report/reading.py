"""What follows from the recorded tables: loads as arrays, MaxVio, dead experts, percentiles. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moekit.errors import MoekitError
from moekit.tables import Table

STARVED = 0.1
"""An expert with less than this part of a fair share is starved."""


@dataclass(frozen=True, kw_only=True)
class LayerLog:
    """The record of one layer in one part, X rows by step.

    Attributes:
        step_X: optimizer steps.
        load_XE: int64, tokens sent to each expert.
        bias_XE: selection bias after the step; NaN without one.
        values: columns of the table ``layers``, by name, each ``[X]``.
    """

    step_X: np.ndarray
    load_XE: np.ndarray
    bias_XE: np.ndarray
    values: Mapping[str, np.ndarray]

    @property
    def share_XE(self) -> np.ndarray:
        """Load as a multiple of a fair share: 1 for every expert at balance, 0 for a dead one."""
        total_X1 = self.load_XE.sum(1, keepdims=True)
        return np.asarray(self.load_XE * self.load_XE.shape[1] / np.maximum(total_X1, 1))

    @property
    def max_violation_X(self) -> np.ndarray:
        """MaxVio of each row: of a step in training (its batch MaxVio), of the whole set in validation (global)."""
        share_XE = self.share_XE
        return np.asarray(np.where(self.load_XE.sum(1) > 0, share_XE.max(1) - 1, 0.0))

    @property
    def dead_X(self) -> np.ndarray:
        """Number of experts without any token, of each row."""
        return np.asarray((self.load_XE == 0).sum(1))

    @property
    def starved_X(self) -> np.ndarray:
        """Number of experts with less than a tenth of a fair share, of each row."""
        return np.asarray((self.share_XE < STARVED).sum(1))

    def percentiles(self, of: Sequence[float] = (0, 25, 50, 75, 100)) -> np.ndarray:
        """``[X, len(of)]``: percentiles over experts of the load, as multiples of a fair share."""
        return np.asarray(np.percentile(self.share_XE, of, axis=1).T)


def layer_logs(tables: Mapping[str, Table], part: str) -> dict[str, LayerLog]:
    """The record of every layer in a part: ``train`` or ``val``.

    Args:
        tables: ``moekit.open(run).routing``.
        part: which of the two.

    Raises:
        MoekitError: a table lacks a column.
    """
    if "experts" not in tables:
        return {}
    experts = _of_part(table_of(tables, "experts", "step", "part", "layer", "expert", "load", "bias"), part)
    layers = _of_part(table_of(tables, "layers", "step", "part", "layer"), part)
    out: dict[str, LayerLog] = {}
    for name, rows in _by_name(experts["layer"]).items():
        num = int(experts["expert"][rows].max()) + 1
        rows = rows[: len(rows) // num * num]
        values_at = _by_name(layers["layer"])[name]
        out[name] = LayerLog(
            step_X=experts["step"][rows].reshape(-1, num)[:, 0],
            load_XE=experts["load"][rows].reshape(-1, num),
            bias_XE=experts["bias"][rows].reshape(-1, num),
            values={key: column[values_at] for key, column in layers.items()},
        )
    return dict(sorted(out.items(), key=lambda each: _natural(each[0])))


def last_matrix(tables: Mapping[str, Table], table: str, rows: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Of every layer, the load by label of the last validation, int64 ``[len(names), E]``.

    Args:
        tables: as recorded.
        table: ``domains`` or ``classes``.
        rows: its column of labels.
        names: the labels in order.
    """
    if table not in tables:
        return {}
    columns = table_of(tables, table, "step", "layer", "expert", "load", rows)
    index = {name: i for i, name in enumerate(names)}
    out: dict[str, np.ndarray] = {}
    for name, at in _by_name(columns["layer"]).items():
        at = at[columns["step"][at] == columns["step"][at].max()]
        load_XE = np.zeros((len(names), int(columns["expert"][at].max()) + 1), np.int64)
        label = [index[each] for each in columns[rows][at]]
        load_XE[label, columns["expert"][at]] = columns["load"][at]
        out[name] = load_XE
    return dict(sorted(out.items(), key=lambda each: _natural(each[0])))


def last_pairs(tables: Mapping[str, Table], experts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Of every layer, the tokens that went to both of two experts in the last validation: int64 ``[E, E]``, symmetric.

    Args:
        tables: as recorded.
        experts: the number of experts of each layer.
    """
    out: dict[str, np.ndarray] = {}
    if "pairs" not in tables:
        return out
    columns = table_of(tables, "pairs", "step", "layer", "first", "second", "tokens")
    for name, at in _by_name(columns["layer"]).items():
        at = at[columns["step"][at] == columns["step"][at].max()]
        count_EE = np.zeros((experts[name], experts[name]), np.int64)
        count_EE[columns["first"][at], columns["second"][at]] = columns["tokens"][at]
        out[name] = count_EE + count_EE.T
    return out


def table_of(tables: Mapping[str, Table], name: str, *columns: str) -> Table:
    """A table that has these columns.

    Raises:
        MoekitError: it lacks one.
    """
    found = tables.get(name, {})
    if lacking := [column for column in columns if column not in found]:
        raise MoekitError(f"the run's routing statistics are damaged: table '{name}' has no column '{lacking[0]}'")
    return found


def _of_part(table: Table, part: str) -> Table:
    keep = table["part"] == part
    return {name: column[keep] for name, column in table.items()}


def _by_name(column: np.ndarray) -> dict[str, np.ndarray]:
    """The row numbers of each text in a column, in order."""
    index: dict[str, int] = {}
    code = np.fromiter((index.setdefault(name, len(index)) for name in column), np.int64, len(column))
    order = np.argsort(code, kind="stable")
    ends = np.searchsorted(code[order], np.arange(len(index) + 1))
    return {name: order[ends[i] : ends[i + 1]] for name, i in index.items()}


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A sort key by which layer 2 comes before layer 10."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]

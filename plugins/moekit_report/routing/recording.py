"""Statistics of some forward passes: of one optimizer step, or of one validation. Sums become rows of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from moekit.contracts import Batch, ModelOutput
from moekit.moe_layer import MoELayer
from moekit_report.routing.classes import CLASSES
from moekit_report.routing.sums import COUNTS, MEANS, Sent, Sums, layer_sums, load_by, pairs_EE, sent_of

Rows = Mapping[str, Mapping[str, np.ndarray]]
"""The columns of the rows of one step, by table."""

TRAIN, VALIDATION = 0, 1
PARTS = ("train", "val")


class Passes:
    """Sums up forward passes.

    Args:
        layers: the MoE layers of the model by name, for their biases.
        part: ``TRAIN`` or ``VALIDATION``. A validation also counts pairs of experts, and loads by domain and by class.
        domains: number of domains; 0 if the data has none.
        class_V: the class of each token of the vocabulary; None for data that is not text.
        before: the first choice of every token in the last validation, by layer and batch.
    """

    def __init__(
        self,
        layers: Mapping[str, MoELayer],
        part: int,
        *,
        domains: int = 0,
        class_V: Tensor | None = None,
        before: Mapping[tuple[str, int], Tensor] | None = None,
    ) -> None:
        self.layers = layers
        self.part = part
        self.domains = domains
        self.class_V = class_V
        self.before = before or {}
        self.first: dict[tuple[str, int], Tensor] = {}
        self._sums = Sums()
        self._names: list[str] = []
        self._passes = 0

    @torch.no_grad()
    def add(self, output: ModelOutput, batch: Batch) -> None:
        """Adds one forward pass. Layers with soft routing are ignored: every expert sees every token."""
        for name, report in output.reports.items():
            if report.routing.form == "soft":
                continue
            if name not in self._names:
                self._names.append(name)
            counts, totals = layer_sums(report, self.layers[name].selection_bias())
            self._sums.add(f"counts {name}", counts)
            self._sums.add(f"totals {name}", totals)
            if self.part == VALIDATION:
                tokens = batch.source.tokens if batch.source and name in output.of_source else batch.inputs
                self._add_labels(name, sent_of(report.routing), tokens, batch.domain)
        self._passes += 1

    def _add_labels(self, name: str, sent: Sent, tokens: Tensor, domain_B: Tensor | None) -> None:
        self._sums.add(f"pairs {name}", pairs_EE(sent))
        T = len(sent.sent_TE)
        if domain_B is not None and self.domains and T % len(domain_B) == 0:
            domain_T = domain_B.repeat_interleave(T // len(domain_B))
            self._sums.add(f"domains {name}", load_by(domain_T, self.domains, sent))
        if self.class_V is not None and tokens.numel() == T and not tokens.is_floating_point():
            class_V = self.class_V.to(tokens.device)
            id_T = tokens.flatten()
            class_T = torch.where(id_T < len(class_V), class_V[id_T.clamp(max=len(class_V) - 1)], 0)
            self._sums.add(f"classes {name}", load_by(class_T, len(CLASSES), sent))
        first_T = sent.first_T().to(torch.int32)
        self.first[name, self._passes] = first_T
        before_T = self.before.get((name, self._passes))
        if before_T is not None and before_T.shape == first_T.shape:
            both_T = (first_T >= 0) & (before_T >= 0)
            changed = (both_T & (first_T != before_T)).sum()
            self._sums.add(f"changed {name}", torch.stack([changed, both_T.sum()]))

    def take(self, step: int, names: Sequence[str]) -> Rows:
        """The rows of these passes, over all ranks; ``names`` lists the layers. Every rank must call it.

        A layer without the table ``changed`` has NaN there, as in the first validation of a run.
        """
        if not self._sums:
            return {}
        sums = self._sums.take()
        tables: dict[str, list[dict[str, np.ndarray]]] = {}
        for name in self._names:
            counts, totals = sums[f"counts {name}"].numpy(), sums[f"totals {name}"].numpy()
            E = len(counts) - len(COUNTS) - len(MEANS)
            at = {"step": step, "part": self.part, "layer": names.index(name)}
            bias_E = self.layers[name].selection_bias()
            bias = np.full(E, np.nan, np.float32) if bias_E is None else bias_E.float().cpu().numpy()
            experts = {"expert": np.arange(E), "load": counts[:E], "importance": totals[:E], "bias": bias}
            tables.setdefault("experts", []).append(columns(at, experts, E))
            counted = counts[E + len(COUNTS) :]
            with np.errstate(invalid="ignore"):
                means = dict(zip(MEANS, totals[E:] / counted, strict=True))
            changed = sums.get(f"changed {name}")
            share = np.nan if changed is None or not changed[1] else float(changed[0] / changed[1].double())
            single = dict(zip(COUNTS, counts[E:], strict=False)) | means | {"changed": share}
            layer = {"experts": E, **single}
            tables.setdefault("layers", []).append(columns(at, {k: np.array([v]) for k, v in layer.items()}, 1))
            for table, label in (("domains", "domain"), ("classes", "class")):
                if f"{table} {name}" in sums:
                    load_XE = sums[f"{table} {name}"].numpy()
                    label_N, expert_N = (each.flatten() for each in np.indices(load_XE.shape))
                    found = {label: label_N, "expert": expert_N, "load": load_XE.flatten()}
                    tables.setdefault(table, []).append(columns(at, found, load_XE.size))
            if f"pairs {name}" in sums:
                count_EE = np.triu(sums[f"pairs {name}"].numpy(), 1)
                first_N, second_N = np.nonzero(count_EE)
                found = {"first": first_N, "second": second_N, "tokens": count_EE[first_N, second_N]}
                tables.setdefault("pairs", []).append(columns(at, found, len(first_N)))
        return {table: joined(rows) for table, rows in tables.items()}


SMALL = {"step": np.int32, "part": np.int8, "layer": np.int16, "expert": np.int32, "first": np.int32}
SMALL |= {"second": np.int32, "domain": np.int16, "class": np.int8}


def columns(at: Mapping[str, int], values: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """Columns of so many rows: those of ``at`` hold one value. Indices are stored as small integers."""
    both = {name: np.full(rows, value) for name, value in at.items()} | dict(values)
    return {name: value.astype(SMALL.get(name, value.dtype)) for name, value in both.items()}


def joined(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The columns of several groups of rows, one after the other."""
    return {name: np.concatenate([each[name] for each in rows]) for name in rows[0]}

"""The tables of a plan: rows of text, for the console and for docs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moekit_plan.plan import RunPlan

TERMS = {
    "parameters": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "gathered": "gathered",
    "gathered_gradients": "their grads",
    "copies": "copies",
    "activations": "activations",
    "outside": "outside",
    "transient": "transient",
    "exchange": "exchange",
}
"""The terms of ``Memory``, with their names in the table."""


def bytes_of(number: float) -> str:
    """A number of bytes to three digits or more, in units of 1024: ``1.31G``, ``812M``, ``0``."""
    if number == 0:
        return "0"
    for unit in ("", "K", "M", "G", "T"):
        if number < 1000 or unit == "T":
            digits = 0 if number >= 100 or not unit else 1 if number >= 10 else 2
            return f"{number:.{digits}f}{unit}"
        number /= 1024
    raise AssertionError


def memory_table(plan: RunPlan) -> list[tuple[str, ...]]:
    """Memory of a device: a header, and a row for each layout."""
    used = [name for name in TERMS if any(row.memory.terms()[name] for row in plan.rows)]
    rows: list[tuple[str, ...]] = [("ep", *(TERMS[name] for name in used), "total", "fits")]
    for row in plan.rows:
        terms = row.memory.terms()
        fits = "yes" if plan.fits(row) else "no"
        rows.append((str(row.layout.ep), *(bytes_of(terms[n]) for n in used), bytes_of(row.memory.total), fits))
    return rows


def traffic_table(plan: RunPlan) -> list[tuple[str, ...]]:
    """What a device sends in a step: a header, and a row for each layout."""
    replicated = plan.request.dense == "replicate"
    names = ("ranks/token", "rows/token", "bytes/token", "sent", "messages", "gathers", "scatters")
    rows: list[tuple[str, ...]] = [("ep", *names, *(["sums"] if replicated else []), "calls")]
    for row in plan.rows:
        layers = list(row.traffic.layers.values())
        count = max(len(layers), 1)
        rows.append(
            (
                str(row.layout.ep),
                f"{sum(layer.reached for layer in layers) / count:.2f}",
                f"{sum(layer.rows for layer in layers) / count:.2f}",
                bytes_of(sum(layer.bytes_per_token for layer in layers)),
                bytes_of(row.traffic.exchanged),
                f"{row.traffic.messages:,}",
                bytes_of(row.traffic.gathers),
                bytes_of(row.traffic.scatters),
                *([bytes_of(row.traffic.sums)] if replicated else []),
                f"{row.traffic.collectives:,}",
            )
        )
    return rows


def links_table(plan: RunPlan) -> list[tuple[str, ...]]:
    """What a node sends to others in a step: a header, and a row for each layout; empty without nodes."""
    rows: list[tuple[str, ...]] = [("ep", "rows/token", "sent", "gathers", "scatters")]
    for row in plan.rows:
        if (links := row.links) is not None:
            sent = (bytes_of(links.exchanged), bytes_of(links.gathers), bytes_of(links.scatters))
            rows.append((str(row.layout.ep), f"{links.rows:.2f}", *sent))
    return rows if len(rows) > 1 else []

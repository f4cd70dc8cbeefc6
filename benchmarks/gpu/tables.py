"""The results of a run on a card as tables of docs/benchmarks.md: ``benchmarks/gpu.sh --docs gpu.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import measured

from moekit.files import replace_text

PAGE = measured.TOP / "docs" / "benchmarks.md"
PLACE = re.compile(r"(<!-- results of benchmarks/gpu.sh -->\n).*(<!-- end of results -->\n)", re.DOTALL)
Part = Mapping[str, Any]


def publish(results: Path) -> None:
    """Stores a table for each subject, and shows them all on the page.

    Raises:
        ValueError: the results are of a rehearsal.
    """
    found = json.loads(results.read_text(encoding="utf-8"))
    if found["rehearsal"]:
        raise ValueError(f"{results} is of a rehearsal: its figures are those of a CPU with tiny sizes")
    made = tables(found)
    measured.FOLDER.mkdir(exist_ok=True)
    for name, table in made.items():
        replace_text(measured.FOLDER / f"{name}.json", json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    blocks = "\n".join(f"<!-- written by benchmarks/gpu.sh: {name} -->\n<!-- end -->\n" for name in made)
    page = PAGE.read_text(encoding="utf-8")
    replace_text(PAGE, PLACE.sub(lambda place: f"{place[1]}{blocks}{place[2]}", page))
    measured.fill()


def tables(found: Mapping[str, Any]) -> dict[str, measured.Table]:
    """By name: what was checked, and the figures of each part that has any."""
    parts: dict[str, Part] = {part["name"]: part for part in found["parts"]}
    made = {"gpu_checks": (CHECKS, list(_checks(found["parts"])), list(_failures(found["parts"])))}
    for name, (columns, rows) in {
        "dispatchers": (DISPATCHERS, _dispatchers),
        "layers": (LAYERS, _layers),
        "olmoe": (OLMOE, _olmoe),
        "training": (TRAINING, _training),
        "reads": (READS, _reads),
    }.items():
        if name in parts and (of_part := list(rows(parts[name]["cases"]))):
            made[f"gpu_{name}"] = (columns, of_part, [])
    return {name: _table(found, *of) for name, of in made.items()}


def _table(
    found: Mapping[str, Any], columns: Mapping[str, str], rows: Sequence[Sequence[Any]], words: Sequence[str]
) -> measured.Table:
    """A table that says which card it is of."""
    cases = [case for part in found["parts"] if part["name"] == "machine" for case in part["cases"]]
    about: Part = next((case["figures"] for case in cases if case["name"] == "machine"), {})
    values = {f"line{i}": line for i, line in enumerate(words)}
    table = measured.table(
        columns,
        rows,
        words="\n\n".join(f"{{{name}}}" for name in values),
        values=values,
        command="benchmarks/gpu.sh",
        device="{card}, CUDA {CUDA}, triton {triton}".format_map(_Unknown(about)),
    )
    return table | {
        "date": found["started"].partition(" ")[0],
        "machine": "{processor} ({cores} cores)".format_map(_Unknown(about)),
        **{name: _Unknown(about)[name] for name in ("torch", "python", "moekit")},
    }


class _Unknown(dict[str, Any]):
    """Says so of what a run did not tell: its first part may have failed."""

    def __missing__(self, name: str) -> str:
        return f"unknown {name}"


CHECKS = {"part": "{}", "ended": "{}", "s": "{:.0f}", "checks": "{}", "held": "{}", "figures only": "{}"}


def _checks(parts: Sequence[Part]) -> Iterator[list[Any]]:
    for part in parts:
        verdicts = [case["ok"] for case in part["cases"]]
        held = sum(verdict is True for verdict in verdicts)
        judged = sum(verdict is not None for verdict in verdicts)
        yield [part["title"], part["ended"], part.get("seconds"), judged, held, len(verdicts) - judged]


def _failures(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        for case in part["cases"]:
            if case["ok"] is False:
                yield f"Failed: {part['name']}, {case['name']}: {case['note']}"


DISPATCHERS = {"dispatcher": "{}", "dtype": "{}", "sizes": "{}", "largest error, of its bound": "{:.2f}", "at": "{}"}


def _dispatchers(cases: Sequence[Part]) -> Iterator[list[Any]]:
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for case in cases:
        name, _, rest = case["name"].partition(", ")
        kind, _, size = rest.partition(", ")
        if "of the bound" in case["figures"]:
            groups.setdefault((name, kind), {})[size] = case["figures"]["of the bound"]
    for (name, kind), errors in groups.items():
        worst = max(errors, key=errors.__getitem__)
        yield [f"`{name}`", kind, len(errors), errors[worst], worst]


LAYERS = {"shape": "{}", "variant": "{}", "ms": "{:.2f}", "÷ dense, best": "{:.2f}"}
LAYERS |= {"median (quartiles)": measured.QUARTILES, "peak, MiB": "{}"}


def _layers(cases: Sequence[Part]) -> Iterator[list[Any]]:
    for case in cases:
        for row in case["figures"].get("rows", []):
            spread = {name: row[name] for name in ("median", "low", "high")}
            yield [case["name"], f"`{row['variant']}`", row["ms"], row["ratio"], spread, row["peak MiB"]]


OLMOE = {"dispatcher": "{}", "ms": "{:.2f}", "ms to launch": "{:.2f}", "products": "{:.0%}", "peak, GiB": "{:.2f}"}
OLMOE |= {"longest kernels, ms": "{}"}


def _olmoe(cases: Sequence[Part]) -> Iterator[list[Any]]:
    for case in cases:
        found = case["figures"]
        if "ms" in found:
            longest = ", ".join(f"`{kernel['name'][:40]}` {kernel['ms']:.2f}" for kernel in found["kernels"][:4])
            peak = found.get("peak GiB")
            yield [case["name"], found["ms"], found["ms to launch"], found["share of products"], peak, longest]


TRAINING = {"precision": "{}", "loss": "{:.3f}", "tokens per s": "{:,.0f}", "peak, GiB": "{:.2f}"}


def _training(cases: Sequence[Part]) -> Iterator[list[Any]]:
    for case in cases:
        found = case["figures"]
        if "loss" in found:
            yield [case["name"], found["loss"], found["tokens per s"], found.get("peak GiB")]


READS = {"run": "{}", "reads in three steps": "{}", "where": "{}"}


def _reads(cases: Sequence[Part]) -> Iterator[list[Any]]:
    for case in cases:
        if "reads" in case["figures"]:
            where = "<br>".join(f"`{line}`" for line in case["figures"]["lines"][:4])
            yield [case["name"], case["figures"]["reads"], where]

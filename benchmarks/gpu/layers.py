"""``moekit bench layer``: all dispatchers and the layer as first written, with other libraries, over a dense layer."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch

from gpu.case import Case, Result, Where
from moekit.errors import MoekitError
from moekit_bench import peers
from moekit_bench.layers import compare_layers
from moekit_bench.measure import Settings
from moekit_bench.request import FOR_GPU, SHAPES, Shape

LIBRARIES = ("transformers", "scattermoe", "megablocks")
TINY = {"tiny": Shape(64, 32, 16, 8, 2)}


def cases(where: Where) -> Iterator[Case]:
    """The libraries that are there; then shape by shape in bf16, the widest use first, and the first in fp32."""
    there: list[str] = []
    for library in LIBRARIES:
        yield Case(name=library, run=lambda name=library: found(name, there))  # type: ignore[misc]
    shapes = where.size({name: SHAPES[name] for name in ("olmoe", *(n for n in FOR_GPU if n != "olmoe"))}, TINY)
    for name, shape in shapes.items():
        yield Case(name=name, run=lambda n=name, s=shape: compared(where, n, s, there, torch.bfloat16))  # type: ignore[misc]
    name, shape = next(iter(shapes.items()))
    yield Case(name=f"{name} in fp32", run=lambda: compared(where, name, shape, there, torch.float32))


def found(library: str, there: list[str]) -> Result:
    """Whether a library can be imported."""
    try:
        peers.load(library)
    except MoekitError as error:
        return Result(note=str(error).split("\n")[0])
    there.append(library)
    return Result(note="installed")


def compared(where: Where, name: str, shape: Shape, there: list[str], dtype: torch.dtype) -> Result:
    """Forward and backward of each variant over the dense layer's, and its peak of memory.

    A library that does not take the shape is skipped, by name; a dispatcher that computes something else fails.
    """
    settings = Settings(device=where.device, dtype=dtype, rounds=where.size(7, 2), warmup=2, memory=True, explain=True)
    trial, skipped = Settings(device=where.device, dtype=dtype, rounds=1, warmup=1), []
    for library in tuple(there):
        try:
            compare_layers(name, Shape(64, *shape[1:]), trial, dispatchers=["grouped"], against=[library])
        except Exception as error:
            skipped.append(f"{library}: {type(error).__name__}: {str(error)[:150]}")
    against = [library for library in there if not any(line.startswith(f"{library}:") for line in skipped)]
    names = ["grouped", "triton", "capacity", "auto"]
    result = compare_layers(name, shape, settings, dispatchers=names, against=against)
    gc.collect()
    if not where.rehearsal:
        torch.cuda.empty_cache()
    rows = [
        {
            "variant": row.name,
            "ms": round(row.ms, 3),
            "ratio": round(row.ratio.best, 3),
            "median": round(row.ratio.median, 3),
            "low": round(row.ratio.low, 3),
            "high": round(row.ratio.high, 3),
            "peak MiB": None if row.peak is None else row.peak >> 20,
            "error": row.error,
        }
        for row in result.rows
    ]
    wrong = [row["variant"] for row in rows if isinstance(row["error"], float) and not row["error"] < 0.05]
    notes = [*skipped, *(f"{variant}: {why}" for variant, why in result.skips.items())]
    if wrong:
        notes.insert(0, f"{', '.join(map(str, wrong))} differ from the others")
    return Result(ok=not wrong, note="; ".join(notes), figures={"rows": rows, "auto": result.explained.get("auto", "")})

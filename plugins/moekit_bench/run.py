"""Runs ``moekit bench``: from the request to tables or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console

from moekit.errors import MoekitError
from moekit.screen import Screen, status_line
from moekit.spec.recipe import Recipe
from moekit_bench import peers
from moekit_bench.components import Selection, dispatchers_for, routers_for
from moekit_bench.layers import compare_dispatch, compare_layers, compare_routers
from moekit_bench.measure import Settings
from moekit_bench.report import sentence, show, show_steps, show_summary
from moekit_bench.request import FOR_CPU, FOR_GPU, BenchRequest, Shape, check_cpu_limits, select_shapes, series_of
from moekit_bench.results import ShapeResult, machine, to_json

Compare = Callable[[str, Shape, Settings], ShapeResult]


def run(request: BenchRequest, recipe: Recipe | None = None) -> None:
    """Measures, and prints tables as results arrive, or JSON at the end. Progress goes to stderr.

    ``step`` needs a ``recipe``; the other benchmarks take None.

    Raises:
        MoekitError: something requested does not exist, does not fit, or does not fit this machine.
    """
    device = device_of(request.device)
    dtype: torch.dtype = getattr(torch, request.dtype or ("bfloat16" if device == "cuda" else "float32"))
    if request.threads:
        torch.set_num_threads(request.threads)
    out, err = Screen(), Screen(stderr=True)
    with status_line(err) as on_progress:
        settings = Settings(
            device=device,
            dtype=dtype,
            rounds=request.rounds,
            warmup=request.warmup,
            memory=request.memory,
            explain=request.explain,
            on_progress=on_progress,
        )
        about = machine(device, dtype)
        if recipe is not None:
            results = [_run_steps(request, recipe, settings, None if request.json else out)]
        else:
            results = _run_shapes(request, settings, None if request.json else out, err)
    if request.json:
        method = {"rounds": request.rounds, "warmup": request.warmup}
        print(json.dumps({"what": request.what, "machine": about, **method, "results": results}, indent=2))
    else:
        rounds = f"{request.rounds} round{'s' * (request.rounds != 1)}"
        warmup = f"{request.warmup} round{'s' * (request.warmup != 1)} of warm-up"
        out.print(f"{sentence(about)}; {rounds} after {warmup}", highlight=False)


def _run_steps(request: BenchRequest, recipe: Recipe, settings: Settings, out: Console | None) -> object:
    from moekit_bench.step import compare_steps  # imports Lightning, which layers do not need

    result = compare_steps(" ".join(request.names), recipe, settings, against=request.against)
    if out is not None:
        show_steps(out, result)
    return to_json(result)


def _run_shapes(request: BenchRequest, settings: Settings, out: Console | None, err: Console) -> list[object]:
    compare: dict[str, Compare] = {
        "layer": partial(compare_layers, dispatchers=request.dispatchers, against=request.against),
        "dispatch": partial(compare_dispatch, dispatchers=request.dispatchers),
        "router": partial(compare_routers, routers=request.routers),
    }
    # Report every mistake before anything is timed.
    for peer in request.against:
        peers.load(peer)
    shapes = shapes_of(request, settings)
    for shape in shapes.values():
        _selected(request, shape)
    results: list[ShapeResult] = []
    seen: set[str] = set()
    for name, shape in shapes.items():
        if not err.is_terminal:
            err.print(f"{request.what} {name}: {shape}", highlight=False)
        result = compare[request.what](name, shape, settings)
        results.append(result)
        if out is not None:
            show(out, result, seen)
    if out is not None and len(results) > 1:
        show_summary(out, results)
    return [to_json(result) for result in results]


def shapes_of(request: BenchRequest, settings: Settings) -> dict[str, Shape]:
    """The requested shapes, each made a series where the request has ``growth``.

    Raises:
        MoekitError: an unknown shape, or one that is too large for a CPU.
    """
    default = ("fine",) if request.growth else FOR_GPU if settings.device == "cuda" else FOR_CPU
    shapes = select_shapes(request.names, request.shapes, request.tokens, default)
    if request.growth:
        shapes = {k: v for name, shape in shapes.items() for k, v in series_of(name, shape, request.growth).items()}
    for name, shape in shapes.items() if settings.device == "cpu" else ():
        check_cpu_limits(request.what, name, shape, settings.dtype.itemsize)
    return shapes


def _selected(request: BenchRequest, shape: Shape) -> Selection:
    if request.what == "router":
        return routers_for(shape, request.routers)
    return dispatchers_for(shape, request.dispatchers, explain=request.explain)


def device_of(requested: str) -> str:
    """``cpu`` or ``cuda``; where nothing is requested, a GPU if there is one.

    Raises:
        MoekitError: this torch cannot use a GPU.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise MoekitError("--device cuda: this torch sees no GPU\n  use --device cpu")
    return requested or ("cuda" if torch.cuda.is_available() else "cpu")

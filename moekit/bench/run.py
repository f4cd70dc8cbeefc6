"""From what was asked for to tables or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console

from moekit.bench import peers
from moekit.bench.dispatch import compare_dispatch
from moekit.bench.layer import compare_layers
from moekit.bench.machine import machine, sentence
from moekit.bench.measure import Settings
from moekit.bench.parts import Chosen, dispatchers_for, routers_for
from moekit.bench.report import show, show_summary
from moekit.bench.request import Request
from moekit.bench.result import Comparison, to_json
from moekit.bench.router import compare_routers
from moekit.bench.shapes import FOR_CPU, FOR_GPU, Shape, chosen, grown, refuse_on_cpu, refuse_to_choose, refuse_to_move
from moekit.errors import MoekitError
from moekit.screen import Screen, status_line
from moekit.spec.recipe import Recipe

Compare = Callable[[str, Shape, Settings], Comparison]


def run(request: Request, recipe: Recipe | None = None) -> None:
    """Measures, and prints tables as they come, or JSON at the end. Progress goes to stderr.

    Args:
        request: what, and how.
        recipe: what ``step`` trains; None for the others.

    Raises:
        MoekitError: what was asked for does not exist, does not fit, or does not fit this machine.
    """
    device = device_of(request.device)
    dtype: torch.dtype = getattr(torch, request.dtype or default_dtype(device))
    if request.threads:
        torch.set_num_threads(request.threads)
    out, err = Screen(), Screen(stderr=True)
    with status_line(err) as tell:
        settings = Settings(
            device=device,
            dtype=dtype,
            rounds=request.rounds,
            warmup=request.warmup,
            memory=request.memory,
            explain=request.explain,
            tell=tell,
        )
        about = machine(device, dtype)
        if recipe is not None:
            results = [_steps(request, recipe, settings, None if request.json else out)]
        else:
            results = _layers(request, settings, None if request.json else out, err)
    if request.json:
        method = {"rounds": request.rounds, "warmup": request.warmup}
        print(json.dumps({"what": request.what, "machine": about, **method, "results": results}, indent=2))
    else:
        out.print(
            f"{sentence(about)}; {counted(request.rounds)} after {counted(request.warmup)} of warm-up", highlight=False
        )


def _steps(request: Request, recipe: Recipe, settings: Settings, out: Console | None) -> object:
    from moekit.bench.step import compare_steps  # imports Lightning, which layers do not need

    found = compare_steps(" ".join(request.names), recipe, settings, against=request.against)
    if out is not None:
        from moekit.bench.report import show_steps

        show_steps(out, found)
    return to_json(found)


def _layers(request: Request, settings: Settings, out: Console | None, err: Console) -> list[object]:
    compare: dict[str, Compare] = {
        "layer": partial(compare_layers, dispatchers=request.dispatchers, against=request.against),
        "dispatch": partial(compare_dispatch, dispatchers=request.dispatchers),
        "router": partial(compare_routers, routers=request.routers),
    }
    for peer in request.against:
        peers.load(peer)  # what is missing is told before anything is timed
    shapes = shapes_of(request, settings)
    for shape in shapes.values():
        chosen_for(request, shape)  # what is wrong with any of them is told before the first is timed
    results: list[Comparison] = []
    told: set[str] = set()
    for name, shape in shapes.items():
        if not err.is_terminal:
            err.print(f"{request.what} {name}: {shape}", highlight=False)
        found = compare[request.what](name, shape, settings)
        results.append(found)
        if out is not None:
            show(out, found, told)
    if out is not None and len(results) > 1:
        show_summary(out, results)
    return [to_json(found) for found in results]


def shapes_of(request: Request, settings: Settings) -> dict[str, Shape]:
    """The shapes asked for, grown where that was asked for too.

    Raises:
        MoekitError: an unknown shape, or one that is too much for a CPU.
    """
    default = ("fine",) if request.growth else FOR_GPU if settings.device == "cuda" else FOR_CPU
    shapes = chosen(request.names, request.shapes, request.tokens, default)
    if request.growth:
        shapes = {k: v for name, shape in shapes.items() for k, v in grown(name, shape, request.growth).items()}
    for name, shape in shapes.items() if settings.device == "cpu" else ():
        if request.what == "router":
            refuse_to_choose(name, shape)
        else:
            refuse_to_move(name, shape, settings.dtype.itemsize)
            if request.what == "layer":
                refuse_on_cpu(name, shape, settings.dtype.itemsize)
    return shapes


def chosen_for(request: Request, shape: Shape) -> Chosen:
    """The parts to be measured at a shape.

    Raises:
        MoekitError: one that was asked for does not exist, or does not fit.
    """
    if request.what == "router":
        return routers_for(shape, request.routers)
    return dispatchers_for(shape, request.dispatchers, explain=request.explain)


def device_of(asked: str) -> str:
    """``cpu`` or ``cuda``; a GPU where there is one and nothing else was asked for.

    Raises:
        MoekitError: there is no GPU that this torch can use.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise MoekitError("--device cuda: this torch sees no GPU\n  use --device cpu")
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def counted(rounds: int) -> str:
    """``1 round``, ``9 rounds``."""
    return f"{rounds} round{'s' * (rounds != 1)}"


def default_dtype(device: str) -> str:
    """bfloat16 on a GPU, float32 on a CPU."""
    return "bfloat16" if device == "cuda" else "float32"

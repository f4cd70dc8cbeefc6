"""A training step of a recipe, as ``moekit train`` takes it, against its dense twin's or another library's model's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from moekit.bench import peers
from moekit.bench.measure import Settings
from moekit.bench.plain_loop import LoopRunner
from moekit.bench.result import StepComparison
from moekit.bench.timing import rotated
from moekit.bench.trained import RecipeRunner, Runner
from moekit.spec.recipe import Compare, Recipe
from moekit.training.build import FOR_A_RUN, check_trainable, dense_recipe
from moekit.training.run.prepare import quiet


def compare_steps(title: str, recipe: Recipe, settings: Settings, *, against: Sequence[str] = ()) -> StepComparison:
    """Trains a recipe and what it is compared with in turns, a few steps at a time.

    Args:
        title: how the recipe is called.
        recipe: with objective, optimizer and data.
        settings: how to measure.
        against: names of other libraries, whose models take the dense twin's place.

    Raises:
        SpecError, DataError: the recipe cannot be trained.
        MoekitError: a library that was asked for cannot be used, or has no such model.
    """
    check_trainable(recipe, FOR_A_RUN)  # first of all: it may be too large to be built
    loaded = [peers.load_models(name) for name in against]
    with quiet(), tempfile.TemporaryDirectory() as temporary:
        settings.tell("building and reading data")
        mixture = RecipeRunner("mixture", recipe, settings, Path(temporary) / "mixture")
        runners: list[Runner] = [mixture, *_loops(loaded, mixture, recipe, settings)]
        if not against:
            runners += _dense(recipe, settings, Path(temporary) / "dense")
        for turn in range(settings.warmup + settings.rounds):
            for runner in rotated(runners, turn):
                counts = turn >= settings.warmup
                settings.tell(f"{f'round {turn + 1 - settings.warmup}' if counts else 'warm-up'}, {runner.name}")
                _with_peak(runner, settings, counts)
        base = None if len(runners) == 1 else runners[0 if against else -1]
        rows = [runner.row(base, settings) for runner in runners]
    return StepComparison(title=title, baseline="" if base is None else base.name, rows=rows)


def _loops(
    loaded: Sequence[peers.ModelPeer], mixture: RecipeRunner, recipe: Recipe, settings: Settings
) -> Iterator[LoopRunner]:
    """Of each library's ways of running its model, the one that is fastest in a trial; its note tells of the others."""
    for peer in loaded:
        seconds: dict[str, float] = {}
        loops: dict[str, LoopRunner] = {}
        for model in peer.models(recipe):
            loop = LoopRunner(peer=model, recipe=recipe, data=mixture.module.prepare(), settings=settings)
            settings.tell(f"trial of {loop.name}")
            loops[loop.name], seconds[loop.name] = loop, loop.trial()
        first, *others = sorted(seconds, key=lambda name: seconds[name])
        for other in others:
            loops[first].note += f"; {other}: {seconds[other] / seconds[first]:.1f} times its time in a trial"
        yield loops[first]


def _dense(recipe: Recipe, settings: Settings, folder: Path) -> Iterator[RecipeRunner]:
    twin = dense_recipe(replace(recipe, start=None, compare=recipe.compare or Compare()))
    if twin is not None:
        yield RecipeRunner("dense", twin, settings, folder)


def _with_peak(runner: Runner, settings: Settings, counts: bool) -> None:
    if settings.memory and settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        runner.round(counts=counts)
        runner.peak = int(torch.cuda.max_memory_allocated())
    else:
        runner.round(counts=counts)

"""Runs a study: searches rates and trains every arm with every seed. Finished measurements are not repeated."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

import moekit
from moekit.component import imported
from moekit.errors import MoekitError
from moekit.machine import processor_name
from moekit.spec import load, to_plain
from moekit_reproduce.runs import prepared
from moekit_reproduce.store import Store
from moekit_reproduce.study import Arm, ClaimSpec, Found, Seen, Study, Values

EXTENSIONS = 2
"""How often a search of rates continues beyond its end."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the engine reports while it works; each is called with words.

    Attributes:
        step: the current run.
        done: a finished measurement, in a line; and whether it was kept from an earlier command.
    """

    step: Callable[[str], None]
    done: Callable[[str, bool], None]


def planned(study: Study, spec: ClaimSpec) -> int:
    """How many measurements a study needs, if no search continues beyond its rates."""
    searched = sum(len(arm.rates) for arm in study.arms if not arm.rate_of) if spec.tune else 0
    return searched * study.tuning_seeds + len(study.arms) * spec.seeds


class Engine:
    """Runs one study.

    Args:
        study, spec: what the claim's component says.
        store: where measurements are kept.
        progress: gets a report of each step.
    """

    def __init__(self, study: Study, spec: ClaimSpec, store: Store, progress: Progress) -> None:
        self.study = study
        self.spec = spec
        self.store = store
        self.progress = progress
        self._spent: dict[str, tuple[float, float]] = {}

    def run(self) -> dict[str, Found]:
        """Measures everything, seed by seed. Every arm's rate is searched in the same way.

        Raises:
            MoekitError: a recipe cannot be trained, or an arm takes the rate of one that does not exist.
        """
        arms = {arm.name: arm for arm in self.study.arms}
        searched = {arm.name: self._search(arm) for arm in self.study.arms if not arm.rate_of}
        rates: dict[str, float | None] = {}
        for arm in self.study.arms:
            if arm.rate_of and arm.rate_of not in searched:
                raise MoekitError(f"arm '{arm.name}' takes the rate of '{arm.rate_of}', which searches none")
            best = searched[arm.rate_of or arm.name][0]
            rates[arm.name] = None if best is None else best * arm.factor
        values: dict[str, dict[int, Values]] = {name: {} for name in arms}
        for seed in range(1, self.spec.seeds + 1):
            for name, arm in arms.items():
                values[name][seed] = self._measure(arm, rates[name], seed)
        return {
            name: Found(
                rate=rates[name],
                tried=searched[name][1] if name in searched else {},
                values=values[name],
                seconds=self._spent[name][0],
                cpu_seconds=self._spent[name][1],
            )
            for name in arms
        }

    def _search(self, arm: Arm) -> tuple[float | None, dict[float, float]]:
        """The rate with the lowest score, before the arm's factor; and every rate that was tried."""
        if not arm.rates:
            return None, {}
        if not self.spec.tune or len(arm.rates) == 1:
            return arm.rates[len(arm.rates) // 2], {}
        tried = {rate: self._score(arm, rate) for rate in arm.rates}
        ratio = arm.rates[1] / arm.rates[0]
        for _ in range(EXTENSIONS):
            best = min(tried, key=lambda rate: tried[rate])
            beyond = best * ratio if best == max(tried) else best / ratio if best == min(tried) else None
            if beyond is None:
                break
            beyond = float(f"{beyond:.6g}")
            tried[beyond] = self._score(arm, beyond)
        return min(tried, key=lambda rate: tried[rate]), dict(sorted(tried.items()))

    def _score(self, arm: Arm, rate: float) -> float:
        scores = [
            self._measure(replace(arm, probe=""), rate, -number)[self.study.score]
            for number in range(self.study.tuning_seeds)
        ]
        mean = fmean(scores)
        return mean if mean == mean else float("inf")

    def _measure(self, arm: Arm, rate: float | None, seed: int) -> Values:
        """One model: read if it was measured before, else trained and kept."""
        overrides: list[dict[str, Any]] = [{"seed": seed_of(seed)}]
        if rate is not None:
            overrides.append({"optimizer": {"lr": rate}})
        recipe = load([*arm.recipe, *overrides])
        assert recipe.data is not None
        what = {
            "recipe": to_plain(recipe, full_names=True),
            "seed": seed,
            "measure": [arm.measure, arm.probe, arm.validations, self.study.version],
            "data": prepared(recipe.data)[1],
            "versions": versions(),
            "threads": torch.get_num_threads(),
        }
        label = f"{arm.name} {'' if rate is None else f'{rate:g} '}seed {seed}"
        path = self.store.path(label, what)
        kept = self.store.read(path)
        if kept is None:
            self.progress.step(label)
            measure = imported(arm.measure, f"arm '{arm.name}': cannot import its measure")
            wall, cpu = time.perf_counter(), time.process_time()
            values = measure(recipe, arm, seed, lambda text: self.progress.step(f"{label}: {text}"))
            spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            kept = {"arm": arm.name, "rate": rate, **what, **spent, "machine": machine(), "values": values}
            self.store.write(path, kept)
            self.progress.done(self._line(label, values, spent["seconds"]), False)
        else:
            self.progress.done(self._line(label, kept["values"], kept["seconds"]), True)
        before = self._spent.get(arm.name, (0.0, 0.0))
        self._spent[arm.name] = (before[0] + kept["seconds"], before[1] + kept["cpu_seconds"])
        found: Values = kept["values"]
        return found

    def _line(self, label: str, values: Values, seconds: float) -> str:
        return f"{label}: {self.study.score} {values[self.study.score]:.4g}, {seconds:.0f} s"


def seed_of(seed: int) -> int:
    """The recipe's seed: those of searches, 0 and below, are counted from 1000."""
    return seed if seed > 0 else 1000 - seed


def by_seed(found: Mapping[str, Found]) -> Sequence[Seen]:
    """The values of every arm, for one seed after the other."""
    seeds = next(iter(found.values())).values
    return [{name: arm.values[seed] for name, arm in found.items()} for seed in seeds]


def versions() -> dict[str, str]:
    """What a measurement depends on besides its recipe and its data."""
    return {"moekit": moekit.__version__, "torch": torch.__version__, "python": platform.python_version()}


def machine() -> str:
    """The processor's name, its cores, and the threads in use."""
    threads = torch.get_num_threads()
    return f"{processor_name()}, {os.cpu_count()} cores, {threads} thread{'' if threads == 1 else 's'}"

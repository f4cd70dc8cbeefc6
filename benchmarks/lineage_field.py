"""Trains the field of ``lineage/``: the same decoder, data, tokens and schedule, and only the mixture differs.

    python benchmarks/lineage_field.py                      # trains what docs/lineage_field.json lacks
    python benchmarks/lineage_field.py --out mine.json --rates 0.004 --seeds 1   # a smaller field of your own

Each recipe's learning rate is tuned over the same rates with the first seed; the best is trained with the other seeds.
For each seed, dense models follow: as wide as the work that each mixture executed, where that differs, and dense models
of more steps with a schedule over these, from which the page reads what the dense model reaches in a mixture's time.

A run is recorded when it ends, all in one file, so the command may be stopped at any time and resumes with the next.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

import moekit
from moekit.files import replace_file
from moekit.registry import current

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "lineage_field.json"
METRIC = "bits_per_byte"
VALIDATIONS = 4
SAME_WORK = 0.01
LONGER = (1.5, 2.0)
"""Times the steps: what the dense model reaches in a mixture's time is interpolated between these runs."""

DENSE = "dense"

LARGER_GATES = "gates of a dense layer's size"
CHANGES: dict[str, dict[str, list[str]]] = {
    "switch": {
        LARGER_GATES: ["model.moe.router.scale=8"],  # the largest of 16 probabilities is about 1/8 at first
        "no drops": ["model.moe.dispatcher={use: auto}"],
        "gated experts": ["model.moe.experts={use: glu, count: 16, hidden: 216}"],
    },
    "gshard": {LARGER_GATES: ["model.moe.router.scale=2"]},  # two experts of half the width, each with gate 1
    "glam": {
        LARGER_GATES: ["model.moe.router.scale=2"],
        "gated experts": ["model.moe.experts={use: glu, count: 47, hidden: 108}"],
    },
    "st_moe": {
        LARGER_GATES: ["model.moe.router.scale=2"],
        "no drops, every second choice": ["model.moe.router.send_threshold=null", "model.moe.dispatcher={use: auto}"],
    },
}
"""What may keep a recipe behind, by a name: options that undo it, at the same number of parameters."""

Runs = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the field.

    Attributes:
        recipe: its name below ``lineage/``.
        rate: learning rate.
        seed: of weights, batches and noise.
        hidden: width of a dense model; None for the recipe's.
        steps: None for the recipe's.
        change: the name of what is changed in the recipe; empty for nothing.
    """

    recipe: str
    rate: float
    seed: int
    hidden: int | None = None
    steps: int | None = None
    change: str = ""

    @property
    def key(self) -> str:
        """Its name in the file."""
        more = {"hidden": self.hidden, "steps": self.steps, "change": self.change}
        given = "".join(f" {name}={value}" for name, value in more.items() if value)
        return f"{self.recipe} lr={self.rate:g} seed={self.seed}{given}"

    def overrides(self) -> list[str]:
        """Its options, over those of its recipe."""
        steps = self.steps or moekit.load(f"lineage/{self.recipe}").trainer.max_steps
        found = [
            f"optimizer.lr={self.rate:g}",
            f"seed={self.seed}",
            f"trainer.max_steps={steps}",
            f"trainer.val_check_interval={steps // VALIDATIONS}",
            "trainer.enable_checkpointing=false",
        ]
        found += [] if self.hidden is None else [f"model.ffn.hidden={self.hidden}"]
        return found + (CHANGES[self.recipe][self.change] if self.change else [])


class StepTimes(Callback):
    """Measures each step in seconds of the processor, which other processes do not lengthen as they do wall time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        """Starts the clock."""
        self._since = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        """Stops the clock."""
        self.seconds.append(time.process_time() - self._since)


def train(trial: Trial) -> dict[str, Any]:
    """Trains one run, and returns what the file keeps of it."""
    times = StepTimes()
    with tempfile.TemporaryDirectory() as out:
        run = moekit.train(
            f"lineage/{trial.recipe}", trial.overrides(), out=out, compare=False, quiet=True, callbacks=[times]
        )
        found, metrics = run.outcome, run.metrics
    values = zip(metrics["step"], metrics[f"val/{METRIC}"], strict=True)
    return {
        "value": found["validation"][METRIC],
        "curve": [[int(step or 0), value] for step, value in values if value is not None],
        "steps": found["steps"],
        "tokens": found["tokens"],
        "step_seconds": statistics.median(times.seconds),
        "experts_per_token": found["experts_per_token"],
        "dropped": found["dropped"],
        "max_violation": found["max_violation"],
        "total": found["total"],
        "active": found["active"],
    }


@dataclass(frozen=True, kw_only=True)
class Field:
    """What is to be trained, and what has been."""

    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    runs: Runs

    def planned(self) -> Iterator[Trial]:
        """All runs, in the order in which they are trained; later ones depend on the results of earlier ones.

        The first rates are tried with the first seed, then what depends on the best of these; then the other rates and
        seeds. If a later rate is better for some recipe, what depends on it is trained again.
        """
        names, first = recipes(), self.seeds[0]
        middle_first = sorted(self.rates, key=lambda rate: abs(self.rates.index(rate) - len(self.rates) // 2))
        for rates, seeds in ((middle_first[:2], self.seeds[:1]), (middle_first[2:], self.seeds)):
            for rate in rates:
                yield from (Trial(recipe=name, rate=rate, seed=first) for name in names)
            for seed in seeds:
                yield from self.at_best(seed)
                yield from self.changed(seed)
                yield from self.longer(seed)

    def at_best(self, seed: int) -> list[Trial]:
        """The recipes at their best rates so far, and dense models of their work."""
        found = [trial for name in recipes() if (trial := self.best(name, seed)) is not None]
        dense = [trial for name in recipes() if (trial := self.same_work(name, seed)) is not None]
        return list(dict.fromkeys([*found, *dense]))

    def changed(self, seed: int) -> list[Trial]:
        """Recipes with something undone that may keep them behind."""
        found = [trial for name in CHANGES if (trial := self.best(name, seed)) is not None]
        return [replace(trial, change=change) for trial in found for change in CHANGES[trial.recipe]]

    def best(self, recipe: str, seed: int) -> Trial | None:
        """A run at the rate of the lowest value with the first seed, of the rates that have been tried; None before."""
        trials = [Trial(recipe=recipe, rate=rate, seed=self.seeds[0]) for rate in self.rates]
        tried = [trial for trial in trials if trial.key in self.runs]
        return replace(min(tried, key=lambda trial: float(self.runs[trial.key]["value"])), seed=seed) if tried else None

    def same_work(self, recipe: str, seed: int) -> Trial | None:
        """The dense model as wide as the work that a mixture executed with the first seed; it may be the dense recipe.

        None for the dense recipe itself, and until both have been trained.
        """
        best, dense = self.best(recipe, self.seeds[0]), self.best(DENSE, seed)
        if recipe == DENSE or best is None or dense is None:
            return None
        baseline = moekit.load(f"lineage/{recipe}").model.dense_baseline(self.runs[best.key]["experts_per_token"])
        hidden, whole = (int(model.ffn.hidden) for model in (baseline, moekit.load(f"lineage/{DENSE}").model))  # type: ignore
        return dense if abs(hidden / whole - 1) < SAME_WORK else replace(dense, hidden=hidden)

    def longer(self, seed: int) -> list[Trial]:
        """Dense models that train for more steps, each with a schedule over its own."""
        dense = self.best(DENSE, seed)
        steps = moekit.load(f"lineage/{DENSE}").trainer.max_steps
        return [] if dense is None else [replace(dense, steps=round(times * steps)) for times in LONGER]


def recipes() -> list[str]:
    """The recipes of the field: the dense one first, then by year of the paper, as the file of each says."""
    names = [c.name.removeprefix("lineage/") for c in current().recipes if c.name.startswith("lineage/")]
    return sorted(names, key=lambda name: (name != DENSE, ORDER.index(name) if name in ORDER else len(ORDER), name))


ORDER = ("shazeer2017", "gshard", "switch", "hash", "glam", "st_moe", "deepseek_moe", "deepseek_v2", "aux_free")
"""Oldest paper first; a recipe that is not here comes last."""


def read(path: Path, settings: dict[str, Any]) -> Runs:
    """The runs in the file; none without one.

    Raises:
        SystemExit: they were made with other settings.
    """
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        raise SystemExit(
            f"{path} has runs of other settings: {found['settings']}\n  expected {settings}, or another --out"
        )
    runs: Runs = found["runs"]
    return runs


def write(path: Path, settings: dict[str, Any], runs: Runs) -> None:
    """Replaces the file as a whole."""
    text = json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of all runs")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3], help="learning rates to try")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)  # so that the processor's seconds are those that one core needs
    settings = {"rates": sorted(args.rates), "seeds": args.seeds}
    field = Field(rates=tuple(settings["rates"]), seeds=tuple(args.seeds), runs=read(args.out, settings))
    while trial := next((each for each in field.planned() if each.key not in field.runs), None):
        began = time.perf_counter()
        field.runs[trial.key] = train(trial)
        write(args.out, settings, field.runs)
        print(f"{trial.key}: {field.runs[trial.key]['value']:.4f} in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""Trains the field of ``lineage/``: the same decoder, data, tokens and schedule, and only the mixture differs.

    python benchmarks/lineage_field.py                      # trains what docs/lineage_field.json lacks
    python benchmarks/lineage_field.py --out mine.json --rates 0.004 --seeds 1   # a smaller field of your own

Each recipe's learning rate is tuned over the same rates with the first seed; the best is trained with the other seeds.
Then dense models follow: one as wide as the work that a mixture executed, where that differs, and one that trains for
as many steps as fit into a mixture's time, with a schedule over these steps.

A run is recorded when it ends, all in one file, so the command may be stopped at any time and resumes with the next.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
DENSE = "dense"

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
    """

    recipe: str
    rate: float
    seed: int
    hidden: int | None = None
    steps: int | None = None

    @property
    def key(self) -> str:
        """Its name in the file."""
        more = {"hidden": self.hidden, "steps": self.steps}
        given = "".join(f" {name}={value}" for name, value in more.items() if value is not None)
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
        return found if self.hidden is None else [*found, f"model.ffn.hidden={self.hidden}"]


class Counts(Callback):
    """Counts the processor's seconds of each step, and the token-expert pairs that experts computed."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.pairs = torch.zeros(2, dtype=torch.int64)
        self._since = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        """Starts the clock."""
        self._since = time.process_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Stops the clock, and adds the step's pairs and tokens over all mixture layers."""
        self.seconds.append(time.process_time() - self._since)
        if (load := pl_module.step_load) is not None:
            for name, load_E in load.load_E.items():
                self.pairs += torch.stack([load_E.sum() - load.dropped[name], load.tokens[name]])

    def experts_per_token(self) -> float | None:
        """Experts that computed a token, mean over tokens and mixture layers; None without mixtures."""
        pairs, tokens = self.pairs.tolist()
        return pairs / tokens if tokens else None


def train(trial: Trial) -> dict[str, Any]:
    """Trains one run, and returns what the file keeps of it."""
    counts = Counts()
    with tempfile.TemporaryDirectory() as out:
        run = moekit.train(
            f"lineage/{trial.recipe}", trial.overrides(), out=out, compare=False, quiet=True, callbacks=[counts]
        )
        found, metrics = run.outcome, run.metrics
    values = zip(metrics["step"], metrics[f"val/{METRIC}"], strict=True)
    return {
        "value": found["validation"][METRIC],
        "curve": [[int(step or 0), value] for step, value in values if value is not None],
        "steps": found["steps"],
        "tokens": found["tokens"],
        "step_seconds": statistics.median(counts.seconds),
        "experts_per_token": counts.experts_per_token(),
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

    def best_rate(self, recipe: str) -> float | None:
        """The rate of the lowest value with the first seed; None until all have been trained."""
        values = {rate: self.runs.get(Trial(recipe=recipe, rate=rate, seed=self.seeds[0]).key) for rate in self.rates}
        if any(found is None for found in values.values()):
            return None
        return min(self.rates, key=lambda rate: values[rate]["value"])  # type: ignore[index]

    def planned(self) -> Iterator[Trial]:
        """All runs, in the order in which they are trained; later ones depend on the results of earlier ones."""
        names = recipes()
        middle_first = sorted(self.rates, key=lambda rate: abs(self.rates.index(rate) - len(self.rates) // 2))
        for rate in middle_first:
            yield from (Trial(recipe=name, rate=rate, seed=self.seeds[0]) for name in names)
        best = {name: rate for name in names if (rate := self.best_rate(name)) is not None}
        for seed in self.seeds[1:]:
            yield from (Trial(recipe=name, rate=best[name], seed=seed) for name in names if name in best)


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

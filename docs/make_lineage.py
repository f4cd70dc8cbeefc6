"""Generates ``docs/lineage.md`` and its plot from the runs that ``benchmarks/lineage_field.py`` has recorded.

python docs/make_lineage.py
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from moekit import load

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from lineage_field import CHANGES, DENSE, RESULTS, Field, Trial, recipes  # noqa: E402

PAGE = Path(__file__).with_name("lineage.md")
PLOT = Path(__file__).with_name("images") / "lineage_field.png"
YEARS = {
    "shazeer2017": 2017, "gshard": 2020, "switch": 2021, "hash": 2021, "glam": 2021, "st_moe": 2022,
    "deepseek_moe": 2024, "deepseek_v2": 2024, "aux_free": 2024, "deepseek_v3": 2024,
}  # fmt: skip
INK, FAINT = "#1f5fa8", "#999999"

HEAD = """\
# One field for all

What did each step since 2017 bring, here? Papers differ in everything. The recipes of `lineage/` differ in the mixture
alone: decoder, rotary attention, data, tokens, optimizer and schedule are the same, and so are the total and the active
width of experts. `moekit config diff lineage/switch lineage/deepseek_v3` prints what a step changed.

`python benchmarks/lineage_field.py` trains them, and `python docs/make_lineage.py` generates this page from what has
been trained so far. Each recipe's learning rate is the best of the same rates with the first seed; further seeds follow
at that rate. All figures are bits per byte of text that was not trained on; lower is better.

"""

COMPARED = """
## The result

Experts computed: how many experts computed a token in a mixture layer, of those that the router chose. The rest were
dropped beyond a capacity, or were second choices that were not sent. Work: multiply-adds that feed-forward parts
executed in training, in percent of the dense model's. Routers and empty places of a capacity do not count.

The last three columns are differences to a dense model: after the same tokens; after the same tokens with the same
work, so as wide as what the mixture executed; and after the same time, with a schedule over the steps that fit into it.
Negative is better than dense. Differences are between runs of equal seeds, so of equal batches: mean ± SD over seeds.
It is a tie if 0 is within two SD. One seed alone decides nothing.

"""

TIME = """
The same time is that of one core: processor seconds of a training step, the lowest median of a recipe's runs, since
other processes of the machine make a step longer and never shorter. What the dense model reaches in that time is
interpolated, in the logarithm of steps, between dense models that trained {times} steps, each with its own schedule.

"""

RATES = """
## Learning rates

With the first seed. The best is bold; a best at the end of the grid says that the grid is too short.

"""

BEHIND = """
## What keeps a recipe behind

One thing changed at a time, at the recipe's best rate and the same number of parameters. The difference is to the
recipe as it is; negative means that this had kept it behind. A gate multiplies an expert's output. Switch's is the
largest of 16 probabilities, and two gates that sum to 1 halve the output of experts of half the width, where a dense
layer adds all its hidden units with weight 1. So a mixture begins with less effect.

"""


READ = """
## What we read from it

Three seeds are few. Dense models of nearly equal widths, trained for the first table, differ by some hundredths of a
bit: smaller differences than that mean nothing.

- At equal tokens, fine-grained experts (2024) are clearly ahead of the dense model; among themselves the four recipes
  tie. The recipes of 2020 to 2022 tie with it, and noisy top-k of 2017 is behind.
- Less work alone is not what keeps those behind: dense models of as little work are hardly worse. But computing every
  choice helps: ST-MoE gains 0.12 bits by it, which brings it level with fine-grained experts. Switch gains 0.03 without
  drops, within the spread.
- Gated experts, as the dense model has them, change Switch and GLaM by no more than the spread. Larger gates help none.
- A hash table, whose router learns nothing, ties with the best learned routers in a training this short. Its experts
  are Switch's, without drops and gates. So routers are still learning here what a table gives from the first step on.
- At equal time the dense model is ahead of every learned router, and ties with the hash table: a step of a mixture
  takes longer on one core, and in a training this short each further step is worth a lot.
"""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The field with what the page reads from it."""

    field: Field

    def value(self, trial: Trial | None) -> float | None:
        """Bits per byte of a run; None if it has not been trained."""
        found = None if trial is None else self.field.runs.get(trial.key)
        return None if found is None else float(found["value"])

    def of_seeds(self, recipe: str, change: str = "") -> dict[int, float]:
        """The values of a recipe at its best rate, by seed."""
        trials = {seed: self.field.best(recipe, seed) for seed in self.field.seeds}
        found = {s: self.value(None if trial is None else replace(trial, change=change)) for s, trial in trials.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def of_same_work(self, recipe: str) -> dict[int, float]:
        """The values of the dense model of the recipe's work, by seed."""
        found = {seed: self.value(self.field.same_work(recipe, seed)) for seed in self.field.seeds}
        return {seed: value for seed, value in found.items() if value is not None}

    def in_same_time(self, recipe: str) -> dict[int, float]:
        """What the dense model reaches in the recipe's time, by seed."""
        times, found = self.step_seconds(recipe) / self.step_seconds(DENSE), {}
        for seed in self.field.seeds:
            trials = [self.field.best(DENSE, seed), *self.field.longer(seed)]
            points = [self.field.runs[t.key] for t in trials if t is not None and t.key in self.field.runs]
            steps = [point["steps"] for point in points]
            if len(points) > 1 and steps[0] * times <= steps[-1]:
                logs = [math.log(step) for step in steps]
                at = math.log(steps[0] * times)
                found[seed] = float(np.interp(at, logs, [point["value"] for point in points]))
        return found

    def step_seconds(self, recipe: str) -> float:
        """Processor seconds of a step, the lowest median of the recipe's runs."""
        trials = (Trial(recipe=recipe, rate=rate, seed=seed) for rate in self.field.rates for seed in self.field.seeds)
        return min(float(self.field.runs[t.key]["step_seconds"]) for t in trials if t.key in self.field.runs)

    def computed(self, recipe: str) -> float | None:
        """Experts that computed a token at the best rate, mean over seeds; None without a mixture."""
        trials = (self.field.best(recipe, seed) for seed in self.field.seeds)
        found = [
            self.field.runs[t.key]["experts_per_token"] for t in trials if t is not None and t.key in self.field.runs
        ]
        return None if found[0] is None else statistics.mean(found)

    def work(self, recipe: str) -> float:
        """Executed feed-forward work, as a fraction of the dense recipe's."""
        dense = load(f"lineage/{DENSE}").model.feed_forward_work()
        return load(f"lineage/{recipe}").model.feed_forward_work(self.computed(recipe)) / dense  # type: ignore[operator]

    def trained(self) -> list[str]:
        """The recipes of which at least one run has ended."""
        return [name for name in recipes() if self.of_seeds(name)]


def spread(values: dict[int, float]) -> str:
    """Mean and SD over seeds."""
    mean = statistics.mean(values.values())
    return f"{mean:.3f}" + (f" ± {statistics.stdev(values.values()):.3f}" if len(values) > 1 else "")


def verdict(ours: dict[int, float], others: dict[int, float]) -> str:
    """The difference of runs of equal seeds, and ``tie`` if the spread covers it."""
    apart = [ours[seed] - others[seed] for seed in ours if seed in others]
    if not apart:
        return "-"
    mean = statistics.mean(apart)
    if len(apart) == 1:
        return f"{mean:+.3f} (one seed)"
    sd = statistics.stdev(apart)
    words = "tie" if abs(mean) <= 2 * sd else ("better" if mean < 0 else "worse")
    return f"{mean:+.3f} ± {sd:.3f}: {words}"


def page(results: Results) -> str:
    """The whole page."""
    names = results.trained()
    planned = list(results.field.planned())
    done = sum(trial.key in results.field.runs for trial in dict.fromkeys(planned))
    recipe: Any = load(f"lineage/{DENSE}")
    tokens = recipe.trainer.max_steps * recipe.data.batch * recipe.data.seq
    parts = [HEAD]
    parts.append(
        f"The field: {recipe.trainer.max_steps} steps, {tokens:,} tokens; width {recipe.model.dim}, "
        f"{recipe.model.depth} layers. Trained so far: {done} of {len(set(planned))} planned runs.\n\n"
        f"![Loss over steps, over executed work and over time](images/{PLOT.name})\n"
    )
    parts += [COMPARED, *main_table(results, names)]
    steps = [trial.steps or recipe.trainer.max_steps for trial in results.field.longer(results.field.seeds[0])]
    parts.append(TIME.format(times=", ".join(map(str, [recipe.trainer.max_steps, *steps[:-1]])) + f" and {steps[-1]}"))
    parts += [summary(results, names), RATES, *rates_table(results, names)]
    if changed := list(changes_table(results)):
        parts += [BEHIND, *changed]
    parts.append(READ)
    return "".join(parts)


def main_table(results: Results, names: list[str]) -> Iterator[str]:
    """One row for each recipe."""
    dense = results.of_seeds(DENSE)
    yield (
        "| recipe | year | rate | seeds | bits per byte | experts computed | work | parameters, active | same tokens "
        "| same tokens and work | same time |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    for name in names:
        ours, trial = results.of_seeds(name), results.field.best(name, results.field.seeds[0])
        assert trial is not None
        run = results.field.runs[trial.key]
        cells = ["-", "-", "-"]
        if name != DENSE:
            cells = [verdict(ours, other) for other in (dense, results.of_same_work(name), results.in_same_time(name))]
        computed = results.computed(name)
        of = "-" if computed is None else f"{computed:.2f} of {chosen(name):g}"
        sizes = f"{run['total'] / 1e6:.2f}M, {run['active'] / 1e6:.2f}M"
        yield (
            f"| `lineage/{name}` | {YEARS.get(name, '')} | {trial.rate:g} | {len(ours)} | {spread(ours)} | {of} "
            f"| {results.work(name):.0%} | {sizes} | {' | '.join(cells)} |\n"
        )


def chosen(recipe: str) -> float:
    """How many experts the router of a recipe chooses for a token."""
    moe: Any = load(f"lineage/{recipe}").model.moe  # type: ignore[attr-defined]
    return float(moe.router.active(moe.experts.count))


def summary(results: Results, names: list[str]) -> str:
    """Which recipes are ahead of the dense models, tied with them and behind, in a line for each comparison."""
    dense, mixtures, lines = results.of_seeds(DENSE), [name for name in names if name != DENSE], []
    kinds = {
        "the same tokens": lambda name: dense,
        "the same tokens and work": results.of_same_work,
        "the same time": results.in_same_time,
    }
    for words, others in kinds.items():
        found = {name: verdict(results.of_seeds(name), others(name)) for name in mixtures}
        by = {
            label: [f"`{name}`" for name, text in found.items() if text.endswith(end)]
            for label, end in (("ahead", ": better"), ("tied", ": tie"), ("behind", ": worse"))
        }
        said = "; ".join(f"{label}: {', '.join(items)}" for label, items in by.items() if items)
        lines.append(f"- Against the dense model of {words}: {said or 'no recipe has several seeds yet'}.\n")
    return "".join(lines)


def rates_table(results: Results, names: list[str]) -> Iterator[str]:
    """The value of each recipe at each rate, with the first seed."""
    rates, seed = results.field.rates, results.field.seeds[0]
    yield f"| recipe | {' | '.join(f'{rate:g}' for rate in rates)} |\n|---|{'---|' * len(rates)}\n"
    for name in names:
        best, cells = results.field.best(name, seed), []
        for rate in rates:
            trial = Trial(recipe=name, rate=rate, seed=seed)
            value = results.value(trial)
            text = "-" if value is None else f"{value:.3f}"
            cells.append(f"**{text}**" if trial == best else text)
        yield f"| `lineage/{name}` | {' | '.join(cells)} |\n"


def changes_table(results: Results) -> Iterator[str]:
    """One row for each change that has been trained."""
    rows = []
    for name, changes in CHANGES.items():
        for change in changes:
            if found := results.of_seeds(name, change):
                rows.append(
                    f"| `lineage/{name}` | {change} | {len(found)} | {spread(found)} "
                    f"| {verdict(found, results.of_seeds(name))} |\n"
                )
    if rows:
        yield "| recipe | changed | seeds | bits per byte | against the recipe |\n|---|---|---|---|---|\n"
        yield from rows


def draw(results: Results, path: Path) -> None:
    """Loss over steps; the last loss over executed work; and over processor time."""
    figure = Figure(figsize=(12.5, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    curves, work, seconds = figure.subplots(1, 3)
    names = results.trained()
    for i, name in enumerate(names):
        trials = [results.field.best(name, seed) for seed in results.field.seeds]
        runs = [results.field.runs[t.key] for t in trials if t is not None and t.key in results.field.runs]
        values_RX = np.array([[value for _, value in run["curve"]] for run in runs])
        colour = "#222222" if name == DENSE else f"C{i % 10}"
        style = "--" if name == DENSE else "-"
        steps = [step for step, _ in runs[0]["curve"]]
        curves.plot(steps, values_RX.mean(0), style, color=colour, linewidth=1.4, label=name)
        curves.fill_between(steps, values_RX.min(0), values_RX.max(0), color=colour, alpha=0.15, linewidth=0)
        values = values_RX[:, -1]
        error = [[values.mean() - values.min()], [values.max() - values.mean()]]
        for axes, x in ((work, results.work(name)), (seconds, results.step_seconds(name) * runs[0]["steps"])):
            axes.errorbar([x], [values.mean()], yerr=error, fmt="s" if name == DENSE else "o", color=colour, capsize=3)
            axes.annotate(name, (x, values.mean()), xytext=(5, 3), textcoords="offset points", fontsize=7, color=colour)
    _draw_dense(results, work, seconds)
    for axes, x_label in (
        (curves, "step"),
        (work, "executed feed-forward work (dense: 1)"),
        (seconds, "processor seconds of training"),
    ):
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.25)
    curves.set_ylabel("bits per byte, validation")
    curves.legend(fontsize=7, frameon=False)
    for axes in (work, seconds):
        axes.margins(x=0.15)
    figure.savefig(path, dpi=110)


def _draw_dense(results: Results, work: Any, seconds: Any) -> None:
    """The dense models of other widths and of other numbers of steps, as lines to compare with."""
    whole = int(load(f"lineage/{DENSE}").model.ffn.hidden)  # type: ignore[attr-defined]
    base = results.field.best(DENSE, results.field.seeds[0])
    assert base is not None
    widths, lengths = {}, {}
    for key, run in results.field.runs.items():
        if key.startswith(f"{DENSE} lr={base.rate:g} "):
            given = dict(part.split("=") for part in key.split() if "=" in part)
            if "steps" not in given:
                widths.setdefault(int(given.get("hidden", whole)) / whole, []).append(run["value"])
            if "hidden" not in given:
                lengths.setdefault(run["steps"] * results.step_seconds(DENSE), []).append(run["value"])
    for axes, found in ((work, widths), (seconds, lengths)):
        xs = sorted(found)
        axes.plot(xs, [statistics.mean(found[x]) for x in xs], "--", color=FAINT, linewidth=1, marker=".", zorder=0)


def stored() -> Results:
    """What docs/lineage_field.json holds."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    settings = found["settings"]
    return Results(field=Field(rates=tuple(settings["rates"]), seeds=tuple(settings["seeds"]), runs=found["runs"]))


if __name__ == "__main__":
    PAGE.write_text(page(stored()), encoding="utf-8")
    draw(stored(), PLOT)

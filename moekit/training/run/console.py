"""The text that a run prints: a header before training, a summary after it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moekit.checkpoints.reading import Checkpoint
from moekit.errors import MoekitError
from moekit.params import count_parameters
from moekit.spec.fields import MetricInfo, metrics_of
from moekit.spec.recipe import Recipe
from moekit.training.metrics import has_stopped
from moekit.training.module import LitMoE
from moekit.training.run.outcome import Comparison, Outcome
from moekit.training.run.prepare import Prepared
from moekit.training.run.start import describe

NO_ROW = ("objective", "max_violation")  # validation metrics without a row of their own


def print_summary(outcome: Outcome, module: LitMoE, console: Console) -> None:
    """Prints the results of a run, and which commands to try next."""
    unit, metrics = counted_unit(module.recipe), metrics_of(module.recipe)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    first = [outcome.metric] if outcome.metric in outcome.validation else []
    for name in [*first, *(n for n in outcome.validation if n not in (outcome.metric, *NO_ROW))]:
        info = info_of(name, metrics)
        trained = f"   (training {info.format(outcome.train[name])})" if name in outcome.train else ""
        grid.add_row(f"validation {info.label}", f"[bold]{info.format(outcome.validation[name])}[/bold]{trained}")
    for name in metrics:
        if name in outcome.train and name not in outcome.validation:  # a callback's
            info = info_of(name, metrics)
            grid.add_row(f"training {info.label}", info.format(outcome.train[name]))
    dense = outcome.comparison.dense_scores if outcome.comparison is not None else None
    for words, value in score_rows(outcome.scores, metrics, dense):
        grid.add_row(words, value)
    if outcome.stopped_after is not None and module.recipe.stop is not None:
        stop = module.recipe.stop
        name = stop.metric.rpartition("/")[2]
        grid.add_row(
            "reached", f"{info_of(name, metrics).label} <= {stop.below:g} after {outcome.stopped_after:,} steps"
        )
    elif module.recipe.stop is not None:
        grid.add_row("not reached", f"{module.recipe.stop.metric} <= {module.recipe.stop.below:g}")
    if outcome.max_violation is not None:
        start, end = outcome.max_violation
        validation = outcome.validation.get("max_violation")
        whole = "" if validation is None else f", {validation:.2f} over the validation set"
        grid.add_row("MaxVio", f"{start:.2f} at the start, {end:.2f} at the end{whole} (0 is an even load)")
        grid.add_row(
            "dropped", f"{outcome.dropped:.1%} of token-expert pairs; {outcome.dropped_tokens:.1%} of tokens lost all"
        )
    if outcome.experts_per_token is not None:
        work = "" if outcome.work is None else f", {outcome.work:,.0f} multiply-adds of feed-forward parts"
        grid.add_row("computed", f"{outcome.experts_per_token:.2f} experts a token{work}")
    if outcome.skipped:
        grid.add_row(
            "skipped", f"{outcome.skipped:,} of {outcome.steps:,} steps, whose loss or gradients were not finite"
        )
    rate = outcome.tokens / outcome.seconds if outcome.seconds else 0.0
    grid.add_row(
        "training", f"{outcome.steps:,} steps, {outcome.tokens:,.0f} {unit} in {_seconds(outcome.seconds)} "
        f"({rate:,.0f} {unit}/s)"
    )  # fmt: skip
    for name, value in outcome.reported.items():
        grid.add_row(escape(name), escape(value))
    console.print()
    console.print(grid, highlight=False)
    if outcome.comparison is not None:
        console.print()
        for line in comparison_lines(outcome.comparison, outcome, metrics):
            console.print(line, highlight=False, markup=False)
    elif module.recipe.compare is not None and module.recipe.model.dense_baseline() is None:
        console.print("no comparison: this model has no dense baseline", highlight=False)
    _print_files(outcome, module, console)


def info_of(name: str, metrics: Mapping[str, MetricInfo]) -> MetricInfo:
    """How a metric is shown, also one that no part of the recipe declares."""
    return metrics.get(name.rpartition("/")[2]) or MetricInfo(name.replace("_", " "))


def comparison_lines(c: Comparison, outcome: Outcome, metrics: Mapping[str, MetricInfo]) -> list[str]:
    """The comparison as text: per token and per second."""
    info = info_of(c.metric, metrics)
    better = "lower" if info.lower_is_better else "higher"
    lines = [
        f"against a dense model of as many multiply-adds a token ({info.label}, {better} is better):",
        f"  active parameters  {c.moe_active:,} of {c.moe_total:,}; dense {c.dense_active:,}",
        *(
            []
            if c.moe_work is None
            else [f"  feed-forward work  {c.moe_work:,.0f} multiply-adds a token; dense {c.dense_work:,.0f}"]
        ),
        f"  per token          {info.format(c.moe)}, dense {info.format(c.dense)}, "
        f"after the same {outcome.tokens:,.0f} tokens: " + _verdict(c.moe, c.dense, info),
    ]
    if c.dense_as_long is None:
        lines.append("  per second         the same: a step of each takes as long here")
        return lines
    lines += [
        f"  per second         {info.format(c.moe)}, dense {info.format(c.dense_as_long)}, "
        f"after the same {_seconds(c.moe_seconds)}: " + _verdict(c.moe, c.dense_as_long, info),
        f"                     (the dense model trained {c.as_long_steps:,} steps in {_seconds(c.as_long_seconds)}, "
        "with a schedule over them)",
    ]
    return lines


def score_rows(
    scores: Mapping[str, float], metrics: Mapping[str, MetricInfo], dense: Mapping[str, float] | None = None
) -> list[tuple[str, str]]:
    """The name and value of each score as text, with the dense model's value if it differs."""
    rows = []
    for name, value in scores.items():
        info = info_of(name, metrics)
        ours, other = info.format(value), info.format(dense[name]) if dense and name in dense else ""
        rows.append((info.label, f"{ours}   (dense {other})" if other not in ("", ours) else ours))
    return rows


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _verdict(moe: float, dense: float, info: MetricInfo) -> str:
    if info.format(moe) == info.format(dense):
        return "a tie"
    winner = "the mixture" if (moe < dense) == info.lower_is_better else "the dense model"
    return f"{winner} is better by {info.format(abs(moe - dense))} ({abs(moe - dense) / max(moe, dense):.1%})"


def _print_files(outcome: Outcome, module: LitMoE, console: Console) -> None:
    run, quoted = outcome.folder.as_posix(), shlex.quote(outcome.folder.as_posix())
    pictures = [p.relative_to(outcome.folder).as_posix() for p in outcome.files]
    names = ("spec.yaml", "metrics.csv", "routing", "summary.json")
    kept = ("checkpoints/last", "checkpoints/best", "tensorboard")
    written, held = ([name for name in part if (outcome.folder / name).exists()] for part in (names, kept))
    can_resume = kept[0] in held
    if can_resume and module.data is not None and module.data.tokenizer is not None:
        first = f'moekit generate {quoted} "{module.data.tokenizer.example()}"'
    else:
        first = f"look at {run}/{pictures[-1] if pictures else 'metrics.csv'}"
    again = f"moekit train {shlex.quote(f'{run}/spec.yaml')}"
    if module.recipe.trainer.fast_dev_run:
        second = f"{again} trainer.fast_dev_run=false"
    elif can_resume and outcome.stopped_after is None:
        second = f"moekit train --resume {quoted} trainer.max_steps={2 * outcome.steps}"
    else:
        second = f"{again} seed={module.recipe.seed + 1}"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("folder", escape(run))
    grid.add_row("files", "  ".join(written))
    grid.add_row("", "  ".join(held))
    if pictures:
        grid.add_row("pictures", "  ".join(pictures))
    console.print()
    console.print(grid, highlight=False)
    for head, command in (("try next", first), ("        ", second)):  # soft_wrap: no line breaks in what users copy
        console.print(f"[dim]{head}[/dim]  {escape(command)}", highlight=False, soft_wrap=True)


def counted_unit(recipe: Recipe) -> str:
    """The unit of a run's data."""
    return "cases" if recipe.model.takes == "cases" else "tokens"


def what_is_left(run: Prepared, saved: Checkpoint) -> str:
    """What a resumed run has left to do, if not just to train on."""
    nothing, step, module = "nothing is left to do, unless", run.info.upto, run.module
    if saved.plain["moekit"].get("unvalidated") and run.trainer.limit_val_batches:
        return ", which is validated first"
    if module.stopped_after is not None and step >= (module.recipe.trainer.min_steps or 0):
        return f": stop was reached after {module.stopped_after} steps; {nothing} stop changes"
    for each in run.trainer.early_stopping_callbacks:
        if has_stopped({**saved.plain["callbacks"].get(each.state_key, {}), "patience": each.patience}):
            return f": {type(each).__name__} has ended it; {nothing} its patience grows or it is removed"
    return "" if step < run.trainer.max_steps else f": {nothing} trainer.max_steps grows"


def print_header(run: Prepared, console: Console) -> None:
    """Prints model, data and settings of a run."""
    recipe, trainer = run.module.recipe, run.trainer
    lines: dict[str, str] = {}
    try:
        count = count_parameters(recipe)
        lines["model"] = f"{count.total:,} parameters, {count.active():,} active per token"
    except MoekitError:
        if run.module.is_built:
            lines["model"] = f"{sum(p.numel() for p in run.module.model.parameters()):,} parameters"
    described: Mapping[str, str] = {} if run.module.data is None else run.module.data.describe()
    lines |= {f"data: {key}": value for key, value in described.items()}
    device = trainer.strategy.root_device.type
    ranks = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    lines["training"] = f"{trainer.max_steps} steps on {device}, {trainer.precision}{ranks}"
    if run.checkpoint is None and recipe.start is not None:
        lines["start"] = describe(recipe.start, run.module.model if run.module.is_built else None)
    if run.checkpoint is not None:
        lines["resuming"] = f"from {run.checkpoint.path}, after step {run.info.upto}{what_is_left(run, run.checkpoint)}"
    lines["folder"] = run.folder.name
    width = max(map(len, lines))
    console.print(f"[bold]{escape(run.info.label)}[/bold]  {escape(recipe.summary)}", highlight=False)
    for key, value in lines.items():
        console.print(f"  {key:<{width}}  {value}", highlight=False, markup=False)

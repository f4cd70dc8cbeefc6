"""The opening lines of a run: what is about to be trained, on what, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape

from moekit.errors import MoekitError
from moekit.params import count_parameters
from moekit.training.prepared import Prepared


def introduce(run: Prepared, console: Console) -> None:
    """Prints what a person wants to know before it begins."""
    recipe, trainer = run.module.recipe, run.trainer
    lines: dict[str, str] = {}
    try:
        count = count_parameters(recipe)
        lines["model"] = f"{count.total:,} parameters, {count.active():,} active a token"
    except MoekitError:
        if run.module.is_built:
            lines["model"] = f"{sum(p.numel() for p in run.module.model.parameters()):,} parameters"
    described: Mapping[str, str] = {} if run.module.data is None else run.module.data.describe()
    lines |= {f"data: {key}": value for key, value in described.items()}
    device = trainer.strategy.root_device.type
    ranks = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    lines["training"] = f"{trainer.max_steps} steps on {device}, {trainer.precision}{ranks}"
    if run.checkpoint is None and (starting := run.module.starting.describe()):
        lines["start"] = starting
    if run.checkpoint is not None:
        left = "" if run.done < trainer.max_steps else ": nothing is left to do, unless trainer.max_steps grows"
        lines["going on"] = f"from {run.checkpoint.path}, after step {run.done}{left}"
    lines["folder"] = run.folder.name
    width = max(map(len, lines))
    console.print(f"[bold]{escape(run.label)}[/bold]  {escape(recipe.summary)}", highlight=False)
    for key, value in lines.items():
        console.print(f"  {key:<{width}}  {value}", highlight=False, markup=False)

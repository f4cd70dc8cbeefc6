"""A whole run: check everything, make the run folder, train, draw, compare, sum up.

Nothing is written before the spec is valid, the Trainer accepts its options, and the data is read.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.markup import escape

from moekit.errors import CheckpointError, MoekitError, Problem, SpecError
from moekit.observe.plots import Curve, draw_curves, draw_load
from moekit.params import count_parameters
from moekit.spec import dump, to_plain
from moekit.spec.recipe import Recipe
from moekit.training.checkpoint import read_checkpoint, refuse_other_model, replace_file
from moekit.training.closing import tell, unit_of
from moekit.training.failure import refuse_untrainable, unknown_metric
from moekit.training.folder import RUNS, RunFolder
from moekit.training.interrupt import StopOnInterrupt
from moekit.training.logs import LoadHistory, RunLog, curve
from moekit.training.module import LitMoE
from moekit.training.outcome import Outcome, compare, outcome_of, write_summary
from moekit.training.progress import TrainingProgress
from moekit.training.readings import metric_names
from moekit.training.scores import measure
from moekit.training.start import pinned
from moekit.training.trainer import make_trainer, quiet


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that has passed every check, and has written nothing yet."""

    label: str
    folder: RunFolder
    module: LitMoE
    trainer: L.Trainer
    log: RunLog
    loads: LoadHistory
    interrupt: StopOnInterrupt
    checkpoint: Path | None  # to go on from
    done: int  # optimizer steps that the checkpoint has behind it


def train(
    recipe: Recipe,
    *,
    root: Path = RUNS,
    name: str = "",
    resume: RunFolder | None = None,
    with_dense: bool = True,
    console: Console | None = None,
) -> Outcome:
    """Trains a recipe into a run folder, then the dense model it asks to be compared with.

    Args:
        recipe: what to train.
        root: folder of all runs.
        name: the run's name below ``root``; the recipe's own when left out.
        resume: go on in this folder, from its last checkpoint.
        with_dense: False skips the comparison that the recipe asks for.
        console: where to tell of it.

    Raises:
        SpecError, DataError, CheckpointError: before anything is written.
        MoekitError: the loss became NaN or infinite.
    """
    refuse_untrainable(recipe, ("objective", "data", "optimizer"))  # first of all: it may be too large to be built
    console = console or (Console() if sys.stdout.isatty() else Console(width=120))
    label = name or recipe.name or "run"
    recipe = recipe if resume is not None else pinned(recipe, root)
    dense = dense_recipe(recipe) if with_dense and recipe.compare is not None else None
    with quiet():
        folder = resume or RunFolder.new(root, label)
        run = prepare(recipe, folder, console, label=label, resume=resume is not None)
        second = prepare_dense(dense, folder, console) if dense is not None else None
        _introduce(run, console)
        outcome = fit(run, console)
        if second is not None:
            console.print(
                "\nnow the dense model of as many multiply-adds a token, on the same batches", highlight=False
            )
            twin = fit(second, console)
            if outcome.validation and twin.validation:
                outcome = replace(outcome, comparison=compare(outcome, twin))
        pictures = draw(run, second)
        outcome = replace(outcome, files=[*pictures, *run.module.data.picture(run.module.model, folder.path)])  # type: ignore[union-attr]
    write_summary(folder.summary, outcome)
    tell(outcome, run.module, console)
    return outcome


def prepare(recipe: Recipe, folder: RunFolder, console: Console, *, label: str, resume: bool) -> Prepared:
    """Builds everything and reads the data; creates no file.

    Raises:
        SpecError, DataError, CheckpointError: whatever would keep the run from working.
    """
    module = LitMoE(recipe)
    upto, checkpoint = 0, None
    if resume:
        checkpoint = folder.last
        contents = read_checkpoint(checkpoint)
        refuse_other_model(checkpoint, contents["hyper_parameters"]["spec"], to_plain(recipe))
        upto = int(contents["global_step"])
        module.on_load_checkpoint(contents)  # a learnt vocabulary must be there before the data is read
    log = RunLog(folder.metrics, folder.tensorboard, upto=upto)
    loads = LoadHistory(folder.loads, upto=upto)
    interrupt = StopOnInterrupt(lambda line: console.print(line, highlight=False))
    callbacks: list[Any] = [loads, interrupt]
    if recipe.trainer.get("enable_progress_bar", True):
        callbacks.append(TrainingProgress(console, label, unit_of(recipe)))
    trainer = make_trainer(recipe, folder, loggers=[log], callbacks=callbacks)
    module.prepare()
    if recipe.stop is not None and recipe.stop.metric not in (known := metric_names(module)):
        raise unknown_metric(recipe.stop.metric, known)
    return Prepared(
        label=label,
        folder=folder,
        module=module,
        trainer=trainer,
        log=log,
        loads=loads,
        interrupt=interrupt,
        checkpoint=checkpoint,
        done=upto,
    )


def fit(run: Prepared, console: Console) -> Outcome:
    """Trains, from the start or from a checkpoint; then measures the data's scores.

    Raises:
        KeyboardInterrupt, SystemExit: stopped by Ctrl-C, by SIGTERM; after telling how to go on.
        MoekitError: the loss became NaN or infinite; or the checkpoint does not fit.
    """
    run.folder.create()
    replace_file(run.folder.spec, lambda path: path.write_text(dump(run.module.recipe), encoding="utf-8"))
    try:
        run.trainer.fit(run.module, ckpt_path=run.checkpoint, weights_only=True)
        if run.interrupt.asked:
            raise KeyboardInterrupt
    except (SystemExit, KeyboardInterrupt):  # Lightning makes a SystemExit of Ctrl-C, and deafens the process to more
        signal.signal(signal.SIGINT, signal.default_int_handler)
        whole = run.folder.whole  # a dense model's run goes on with the run it belongs to
        how = "no checkpoint was written yet"
        if whole.last.is_file():
            how = f"go on: moekit train --resume {shlex.quote(whole.name)}"
        console.print(
            f"\nstopped at step {run.trainer.global_step}; {how}", highlight=False, markup=False, soft_wrap=True
        )
        if run.interrupt.asked == signal.SIGTERM:
            raise SystemExit(0) from None  # as whoever sent it expects of a process that obeys
        raise KeyboardInterrupt from None
    except (RuntimeError, KeyError) as error:
        if run.checkpoint is not None and run.trainer.global_step == 0:
            raise CheckpointError(f"cannot go on from {run.checkpoint}\n  {error}") from error
        raise
    if run.trainer.checkpoint_callback is not None and not run.folder.last.is_file():
        run.trainer.save_checkpoint(run.folder.last)  # checkpoints follow validations, and there was none
    scores = measure(run.module, run.label, console)
    return replace(outcome_of(run.label, run.folder, run.module, run.log.rows), scores=scores)


def dense_recipe(recipe: Recipe) -> Recipe | None:
    """The recipe of the dense model to compare with: same data, seed, steps and schedule. None where there is none.

    Raises:
        SpecError: ``compare.lr`` is given, but the optimizer has no ``lr``.
    """
    assert recipe.compare is not None
    twin = recipe.model.dense_twin()
    if twin is None:
        return None
    optimizer = recipe.optimizer
    if recipe.compare.lr is not None and optimizer is not None:
        if "lr" not in {f.name for f in fields(optimizer)}:  # type: ignore[arg-type]
            raise SpecError([Problem(what="the optimizer has no option 'lr' to set", at="compare.lr")])
        optimizer = replace(optimizer, lr=recipe.compare.lr)  # type: ignore[type-var]
    return replace(recipe, model=twin, optimizer=optimizer, compare=None, stop=None)


def prepare_dense(recipe: Recipe, folder: RunFolder, console: Console) -> Prepared:
    """The dense run, in a folder inside the run's; goes on from its own last checkpoint where there is one."""
    inside = folder.dense
    return prepare(recipe, inside, console, label="dense", resume=inside.last.is_file())


def draw(run: Prepared, dense: Prepared | None) -> list[Path]:
    """``loss.png``, and ``load.png`` where load can be uneven."""
    metric, words = "loss", "loss" if run.module.recipe.model.takes == "cases" else "loss (nats a token)"
    if any("val/bits_per_byte" in row for row in run.log.rows.values()):
        metric = words = "bits_per_byte"
    curves = []
    for each in (run, dense):
        if each is not None:
            for part, faint in (("train", True), ("val", False)):
                x, y = curve(each.log.rows, f"{part}/{metric}")
                curves.append(Curve(label=each.label, x=x, y=y, faint=faint))
    words = words.replace("_", " ")
    title = f"{run.label}: {words} on validation data (training data: faint)"
    paths = [draw_curves(run.folder.path / "loss.png", curves, title=title, y_label=words)]
    if run.loads.loads:
        title = f"{run.label}: load of each expert over time"
        paths.append(draw_load(run.folder.path / "load.png", run.loads.steps, run.loads.arrays(), title=title))
    return paths


def _introduce(run: Prepared, console: Console) -> None:
    recipe, trainer = run.module.recipe, run.trainer
    lines: dict[str, str] = {}
    try:
        count = count_parameters(recipe)
        lines["model"] = f"{count.total:,} parameters, {count.active():,} active a token"
    except MoekitError:
        lines["model"] = f"{sum(p.numel() for p in run.module.model.parameters()):,} parameters"
    described: Mapping[str, str] = {} if run.module.data is None else run.module.data.describe()
    lines |= {f"data: {key}": value for key, value in described.items()}
    device = trainer.strategy.root_device.type
    lines["training"] = f"{trainer.max_steps} steps on {device}, {trainer.precision}"
    if run.checkpoint is None and (starting := run.module.starting.describe()):
        lines["start"] = starting
    if run.checkpoint is not None:
        left = "" if run.done < trainer.max_steps else ": nothing is left to do, unless trainer.max_steps grows"
        lines["going on"] = f"from {run.checkpoint}, after step {run.done}{left}"
    lines["folder"] = run.folder.name
    width = max(map(len, lines))
    console.print(f"[bold]{escape(run.label)}[/bold]  {escape(recipe.summary)}", highlight=False)
    for key, value in lines.items():
        console.print(f"  {key:<{width}}  {value}", highlight=False, markup=False)

"""A whole run: check everything, make the run folder, train, draw, compare, sum up.

Nothing is written before the spec is valid, the Trainer accepts its options, and the data is read.
"""

from __future__ import annotations

import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch.distributed as dist
from rich.console import Console
from torch.distributed.fsdp import FSDPModule

from moekit.checkpoints.files import replace_file
from moekit.compat import kill_started_processes
from moekit.contracts import Data, Model
from moekit.distributed import is_distributed
from moekit.errors import CheckpointError, MoekitError
from moekit.parallel.launch import decide_on_rank_zero, is_rank_zero
from moekit.screen import Screen
from moekit.shards.gather import gather
from moekit.shards.shard import tensors_of
from moekit.spec import dump
from moekit.spec.recipe import Recipe
from moekit.training.build import FOR_A_RUN, build_model, check_trainable, dense_recipe
from moekit.training.module import LitMoE
from moekit.training.run.console import print_header, print_summary
from moekit.training.run.folder import RUNS, RunFolder, check_run_name, check_writable
from moekit.training.run.outcome import Outcome, compare, outcome_of, write_summary
from moekit.training.run.plots import draw_plots
from moekit.training.run.prepare import Prepared, prepare, quiet
from moekit.training.run.resume import read_checkpoint, verify_checkpoints
from moekit.training.run.start import with_checkpoint_path


def train(
    recipe: Recipe,
    *,
    root: Path = RUNS,
    name: str | None = None,
    resume: RunFolder | None = None,
    with_dense: bool = True,
    console: Console | None = None,
) -> Outcome | None:
    """Trains a recipe into a run folder, then the dense model it asks to be compared with.

    In a run of several processes each of them calls it; the first alone writes and speaks.

    Args:
        recipe: what to train.
        root: folder of all runs.
        name: the run's name below ``root``; the recipe's own when left out.
        resume: go on in this folder, from its last checkpoint or the one chosen.
        with_dense: False skips the comparison that the recipe asks for.
        console: where to tell of it.

    Returns:
        What the run came to; None on ranks other than the first.

    Raises:
        SpecError, DataError, CheckpointError: before anything is written.
        MoekitError: runs cannot be written there; the loss became NaN or infinite.
    """
    check_trainable(recipe, FOR_A_RUN)  # first of all: it may be too large to be built
    label = (recipe.name or "run") if name is None else name
    if resume is None:
        check_run_name(label)
    if is_rank_zero():
        check_writable(root / label if resume is None else resume.path)
        console = console or (Screen() if sys.stdout.isatty() else Screen(width=120))
    else:
        console = Console(quiet=True)
    recipe = recipe if resume is not None else with_checkpoint_path(recipe, root)
    dense = dense_recipe(recipe) if with_dense and recipe.compare is not None else None
    with quiet():
        path = decide_on_rank_zero("run_folder", lambda: (resume or RunFolder.new(root, label)).name)
        folder = RunFolder(Path(path), None if resume is None else resume.chosen)
        saved = None if resume is None else read_checkpoint(folder.checkpoint())
        kept = folder.dense.last if dense is not None else None
        dense_saved = None if kept is None else read_checkpoint(kept)
        verify_checkpoints([checkpoint for checkpoint in (saved, dense_saved) if checkpoint is not None])
        run = prepare(recipe, folder, console, label=label, saved=saved)
        second = None if dense is None else prepare(dense, folder.dense, console, label="dense", saved=dense_saved)
        print_header(run, console)
        fit(run, console)
        if second is not None:
            console.print(
                "\nnow the dense model of as many multiply-adds a token, on the same batches", highlight=False
            )
            fit(second, console)
        models = [gather_model(each.module) for each in (run, second) if each is not None]
        if not is_rank_zero():
            return None  # without waiting until the first has measured and drawn
        outcome = summarize(run, models[0], console)
        if second is not None:
            twin = summarize(second, models[1], console)
            if outcome.validation and twin.validation:
                outcome = replace(outcome, comparison=compare(outcome, twin))
        pictures = draw_plots(run, second)
        if models[0] is not None and run.module.data is not None:
            pictures += run.module.data.picture(models[0], folder.path)
        outcome = replace(outcome, files=pictures)
    write_summary(folder.summary, outcome)
    print_summary(outcome, run.module, console)
    return outcome


def fit(run: Prepared, console: Console) -> None:
    """Trains, from the start or from a checkpoint.

    Raises:
        KeyboardInterrupt, SystemExit: stopped by Ctrl-C, by SIGTERM; after telling how to go on.
        MoekitError: the loss became NaN or infinite; the checkpoint does not fit; or another process is gone.
    """
    if is_rank_zero():
        run.folder.create()
        replace_file(run.folder.spec, lambda path: path.write_text(dump(run.module.recipe), encoding="utf-8"))
    start = None if run.checkpoint is None else run.checkpoint.path
    try:
        run.trainer.fit(run.module, ckpt_path=start, weights_only=True)
        if run.interrupt.agree(run.trainer):
            raise KeyboardInterrupt
    except (SystemExit, KeyboardInterrupt):  # Lightning makes a SystemExit of Ctrl-C, and deafens the process to more
        signal.signal(signal.SIGINT, signal.default_int_handler)
        words = f"\nstopped at step {run.trainer.global_step}; {_how_to_go_on(run)}"
        console.print(words, highlight=False, markup=False, soft_wrap=True)
        if run.interrupt.asked == signal.SIGTERM:
            raise SystemExit(0) from None  # as whoever sent it expects of a process that obeys
        raise KeyboardInterrupt from None
    except (RuntimeError, KeyError) as error:
        if lost_rank(error):
            kill_started_ranks(run.trainer)
            at = f"after step {run.trainer.global_step}"
            raise MoekitError(f"{at} {LOST_RANK}\n  {str(error).splitlines()[0]}\n  {_how_to_go_on(run)}") from error
        if start is not None and run.trainer.global_step == 0:
            raise CheckpointError(f"cannot go on from {start}\n  {error}") from error
        raise


def _how_to_go_on(run: Prepared) -> str:
    whole = run.folder.whole  # a dense model's run goes on with the run it belongs to
    if whole.last is None:
        return "no checkpoint was written yet"
    return f"go on: moekit train --resume {shlex.quote(whole.name)}"


def summarize(run: Prepared, model: Model | None, console: Console) -> Outcome:
    """What a run came to, with the data's scores of the trained model."""
    outcome = outcome_of(run.label, run.folder, run.module, run.log.rows)
    return replace(outcome, scores=evaluate(run.module.data, model, run.label, console))


LOST_RANK = "another process of this run is gone, or did not answer in time"


def lost_rank(error: Exception) -> bool:
    """Whether a collective failed because of another process; gloo says so in words alone."""
    return is_distributed() and (isinstance(error, dist.DistError) or "/gloo/" in str(error))


def kill_started_ranks(trainer: L.Trainer) -> None:
    """Ends the processes that Lightning has started from this one: one that hangs would outlive it, with its memory."""
    kill_started_processes(trainer.strategy.launcher)


def evaluate(data: Data | None, model: Model | None, label: str, console: Console) -> dict[str, float]:
    """The data's scores of a model; empty where the data has none. Says that it is at work."""
    if data is None or model is None or type(data).scores is Data.scores:
        return {}
    doing = f"{label}: scoring the trained model"
    if not console.is_terminal:
        console.print(doing, highlight=False, markup=False)
    with console.status(doing):
        return dict(data.scores(model))


def gather_model(module: LitMoE) -> Model | None:
    """The trained model, whole, for whoever measures or draws: on rank 0; None elsewhere, and where nobody does.

    A model in shards is put together on the CPU of rank 0, tensor by tensor. Collective.
    """
    if not isinstance(module.model, FSDPModule):
        return module.model
    data = module.data
    if data is None or (type(data).scores is Data.scores and type(data).picture is Data.picture):
        return None
    tensors = gather(tensors_of(module.model))
    if tensors is None:
        return None
    model = build_model(module.recipe)
    model.load_state_dict(tensors, assign=True)
    return model.train(module.model.training)

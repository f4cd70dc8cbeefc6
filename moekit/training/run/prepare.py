"""Preparing a run: its Trainer, with a recipe's ``trainer`` options over defaults for runs counted in steps."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from rich.console import Console

from moekit.checkpoints.files import step_of
from moekit.checkpoints.reading import Checkpoint
from moekit.contracts import Evaluator
from moekit.errors import CheckpointError, Problem, SpecError
from moekit.parallel.strategy import ShardingStrategy
from moekit.registry import build
from moekit.spec import to_plain
from moekit.spec.fields import fields_of
from moekit.spec.recipe import Recipe, TrainerSpec
from moekit.training.callbacks.checkpoint import AtomicCheckpointIO, SaveCheckpoints
from moekit.training.callbacks.interrupt import StopOnInterrupt
from moekit.training.callbacks.max_time import StopAfterTime
from moekit.training.module import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.hooks import RunInfo, run_starting
from moekit.training.run.metrics_log import LogWrites, RunLog, lost_rows
from moekit.training.run.parts import build_parts, check_callbacks, check_parts, keep_arguments, left_states
from moekit.training.run.saved import check_resumable, check_same_model, check_same_tokens, check_unchanged

VALIDATIONS = 10
VALIDATIONS_TO_STOP = 50  # with ``stop``, ``max_steps`` is an upper limit that is seldom reached
ROWS = 100


def trainer_options(recipe: Recipe) -> dict[str, Any]:
    """The options for ``lightning.Trainer``: the recipe's own, and defaults for the others.

    Defaults: about 10 validations and 100 logged steps in a run; bf16 on a GPU that supports it.
    """
    trainer = recipe.trainer
    validations = VALIDATIONS if recipe.stop is None else VALIDATIONS_TO_STOP
    defaults = {
        "precision": default_precision(trainer.accelerator),
        "log_every_n_steps": max(1, min(25, trainer.max_steps // ROWS)),
        # Lightning counts micro-batches here, and, without epochs, over the whole run.
        "val_check_interval": max(1, trainer.max_steps // validations) * trainer.accumulate_grad_batches,
        "check_val_every_n_epoch": None,
        "min_epochs": 0,  # Lightning's default with ``min_steps`` is 1: the one endless epoch, which then cannot stop
    }
    names = [name for name, info in fields_of(TrainerSpec).items() if info.kind == "option"]
    given = {name: getattr(trainer, name) for name in names if getattr(trainer, name) is not None}
    return {**defaults, **given}


def default_precision(accelerator: str) -> str:
    """``bf16-mixed`` if training runs on a GPU that computes in bf16 itself, else ``32-true``.

    Older GPUs (V100, T4: compute capability below 8) emulate it, slowly; torch reports that as support.
    """
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if not on_gpu:
        return "32-true"
    native = torch.version.hip is not None or torch.cuda.get_device_capability()[0] >= 8
    return "bf16-mixed" if native and torch.cuda.is_bf16_supported() else "32-true"


def make_trainer(
    recipe: Recipe,
    folder: RunFolder,
    *,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    opened: Checkpoint | None = None,
) -> L.Trainer:
    """A Trainer with the recipe's options that writes only to the run folder, and creates no file yet.

    Args:
        recipe, folder, loggers: of the run.
        callbacks: all but the one that saves, which comes last.
        opened: the checkpoint that ``fit`` will resume, if it is open already.

    Raises:
        SpecError: the Trainer rejects its options, or the ranks cannot share the experts.
    """
    options = trainer_options(recipe)
    saving = recipe.checkpoints
    plugins: list[Any] = [AtomicCheckpointIO(asynchronous=saving.asynchronous, opened=opened)]
    strategy = next(iter(build_parts(recipe, "strategy", recipe).values()), None)
    if strategy is not None:
        options["strategy"] = strategy
    if recipe.trainer.shards:
        options.setdefault("inference_mode", False)  # FSDP2 all-gathers weights, which fails under inference mode
    if isinstance(strategy, ModelParallelStrategy) and str(options["precision"]) in ("64", "64-true"):
        del options["precision"]  # with these strategies, Lightning accepts it only as a plugin
        plugins.append(DoublePrecision())
    if not any(isinstance(each, ProgressBar) for each in callbacks):
        options["enable_progress_bar"] = False  # Lightning would add one of its own
    more: list[Callback] = []
    if recipe.trainer.enable_checkpointing:
        more.append(SaveCheckpoints(folder.checkpoints, keep=saving.keep))
    try:
        if (duration := options.pop("max_time", None)) is not None:
            more.insert(0, StopAfterTime(duration))
        trainer = L.Trainer(
            **options,
            logger=list(loggers) or False,
            callbacks=[*callbacks, *more],
            plugins=plugins,
            default_root_dir=folder.path,
        )
    except Exception as error:
        known = isinstance(error, TypeError | ValueError | RuntimeError | ImportError)
        if not known and not type(error).__module__.startswith("lightning"):  # its own errors are plain Exceptions
            raise
        raise SpecError([_rejected(error, options)]) from error
    if isinstance(strategy, ShardingStrategy):
        strategy.check_ranks(recipe, trainer.world_size)
    return trainer


def _rejected(error: Exception, options: Mapping[str, Any]) -> Problem:
    text = " ".join(str(error).split())
    at = next((f"trainer.{name}" for name in options if f"{name}=" in text or f"`{name}`" in text), "trainer")
    return Problem(what=f"the Trainer rejects its options: {text}", at=at)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides Lightning's tips and its warnings about workers and logging; errors are still shown."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "lightning")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            # An MoE layer returns a view; the blocks do not add to it in place.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            # Such a gradient, of experts in a grouped product, is copied when DDP sums it.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Prepared(NamedTuple):
    """A run that has passed every check and has not written anything yet.

    Attributes:
        evaluators: of the trained model, by name.
        checkpoint: to resume; None for a new run.
    """

    info: RunInfo
    folder: RunFolder
    module: LitMoE
    trainer: L.Trainer
    log: RunLog
    interrupt: StopOnInterrupt
    evaluators: Mapping[str, Evaluator]
    checkpoint: Checkpoint | None


def _check_steps_left(saved: Checkpoint, step: int, recipe: Recipe, folder: RunFolder) -> None:
    """Rejects an older checkpoint from which nothing would be trained: later results would be overwritten by its own.

    Raises:
        CheckpointError: the run has trained for longer, and ``trainer.max_steps`` is reached.
    """
    last = -1 if folder.last is None else step_of(folder.last)
    if step >= recipe.trainer.max_steps and last > step:
        raise CheckpointError(
            f"nothing is left to train: {saved.path} is at step {step}, and the run at step {last} already\n"
            f"  expected trainer.max_steps of more than {step}, or the run, for its last checkpoint: {folder.name}"
        )


def prepare(
    recipe: Recipe,
    folder: RunFolder,
    console: Console,
    *,
    name: str,
    label: str,
    saved: Checkpoint | None,
    allow_changes: bool,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Prepared:
    """Builds everything and reads the data of a run, new or resumed from ``saved``; creates no file.

    ``name`` is the run's, ``label`` what it is called in its output; ``allow_changes`` is that of ``train``.

    Raises:
        SpecError, DataError, CheckpointError: anything that would make the run fail.
    """
    check_parts(recipe)
    given: dict[str, Callback] = build_parts(recipe, "callback")
    given |= {f"callback {i} of train(...)": each for i, each in enumerate(callbacks, 1)}
    check_callbacks(given)
    module = LitMoE(recipe)
    evaluators = {name: build(spec) for name, spec in recipe.evaluators.items()}
    last_step = 0
    if saved is not None:
        check_resumable(saved)
        contents = saved.plain
        spec = contents["hyper_parameters"]["spec"]
        check_same_model(saved.path, spec, to_plain(recipe, full_names=True))
        check_same_tokens(saved.path, spec, recipe.data)
        last_step = int(contents["global_step"])
        _check_steps_left(saved, last_step, recipe, folder)
        module.on_load_checkpoint(contents)  # it restores a learnt vocabulary, which must precede reading the data
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    info = RunInfo(folder=folder.path, name=name, label=label, upto=last_step)
    writes = LogWrites(say)
    log = RunLog(folder.metrics, last_step=last_step, writes=writes)
    if saved is not None and (missing := lost_rows(log.damage, log.rows, contents["moekit"]["logged"])):
        say(f"{log.path} {missing}: training does not need it, and logs on")
    interrupt = StopOnInterrupt(say)
    logs = [log, *build_parts(recipe, "logger", info).values(), *loggers]
    kept = [] if saved is None else [keep_arguments(recipe, spec, given)]
    trainer = make_trainer(recipe, folder, loggers=logs, callbacks=[interrupt, *kept, *given.values()], opened=saved)
    module.prepare()
    if saved is not None:
        now = str(trainer.precision), module.fingerprint
        check_unchanged(saved, recipe, *now, allow=allow_changes, report=say)
    run_starting(trainer, info, module, given, console, writes)
    for key in () if saved is None else left_states(saved.plain["callbacks"], trainer.callbacks):  # type: ignore[attr-defined]
        say(f"this run has no callback for a state in the checkpoint, which is dropped: {key}")
    return Prepared(info, folder, module, trainer, log, interrupt, evaluators, saved)

"""A whole run: check everything, make the run folder, train, compare, write the results.

Nothing is written until the spec is valid, the Trainer accepts its options, and the data is read.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.loggers import Logger
from rich.console import Console

from moekit import __version__
from moekit.compat import kill_started_processes
from moekit.contracts import Model
from moekit.distributed import is_distributed
from moekit.errors import CheckpointError, MoekitError
from moekit.files import write_if_changed
from moekit.inference.evaluation import evaluate
from moekit.parallel.launch import check_same_run, decide_on_rank_zero, is_rank_zero
from moekit.screen import Screen
from moekit.shards import gather, sharded_parameters, state_dict_shards
from moekit.spec import load, to_plain
from moekit.spec.recipe import Recipe
from moekit.spec.tree import write
from moekit.training.build import RUN_SLOTS, build_model, check_trainable, dense_recipe
from moekit.training.callbacks.max_time import StopAfterTime
from moekit.training.module import LitMoE
from moekit.training.run.console import print_header, print_summary
from moekit.training.run.folder import RUNS, RunFolder, check_run_name, check_writable
from moekit.training.run.hooks import EndedRun, plugins_with_hooks, run_ended, unwritten
from moekit.training.run.metrics_log import read_metrics
from moekit.training.run.outcome import (
    Outcome,
    compare,
    experts_per_token,
    outcome_of,
    steps_in_same_time,
    write_summary,
)
from moekit.training.run.prepare import Prepared, prepare, quiet
from moekit.training.run.saved import read_checkpoint, trained_otherwise, verify_checkpoints
from moekit.training.run.start import with_checkpoint_path


def train(
    recipe: Recipe,
    *,
    root: Path = RUNS,
    name: str | None = None,
    resume: RunFolder | None = None,
    allow_changes: bool = False,
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    started: Callable[[RunFolder], object] = lambda folder: None,
) -> Outcome | None:
    """Trains a recipe into a run folder, then its dense baseline if the recipe has ``compare``.

    Every rank calls it; only rank 0 prints, and writes results.

    Args:
        root: folder of all runs.
        name: of the run, below ``root``; default: the recipe's.
        resume: the folder of a run to resume, from its last checkpoint or the chosen one.
        allow_changes: resume although the data's contents or options, the seed or the precision have changed.
        callbacks, loggers: Lightning's, in addition to those of the recipe; not for the dense baseline.
        started: called with the run's folder when it has been chosen.

    Returns:
        The results of the run; None on ranks other than 0.

    Raises:
        SpecError, DataError, CheckpointError: before anything is written.
        MoekitError: the run folder cannot be written; or as in ``fit``.
    """
    check_trainable(recipe, RUN_SLOTS)  # first: the model may be too large to build
    label = (recipe.name or "run") if name is None else name
    if resume is None:
        check_run_name(label)
    if is_rank_zero():
        check_writable(root / label if resume is None else resume.path)
        console = console or (Screen() if sys.stdout.isatty() else Screen(width=120))
    else:
        console = Console(quiet=True)
    check_same_run(f"moekit {__version__}, recipe {hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}")
    if resume is None and recipe.start is not None:
        recipe = with_checkpoint_path(recipe, recipe.start, root)
    dense = None if recipe.compare is None else dense_recipe(recipe)
    with quiet(), ExitStack() as stack:

        def choose_folder() -> str:
            if resume is not None:
                return stack.enter_context(resume.locked()).name
            claimed = RunFolder.claim(root, label)
            stack.callback(claimed.release)  # removes it if the run is rejected before anything is written
            return stack.enter_context(claimed.locked()).name

        path = Path(decide_on_rank_zero("run_folder", choose_folder))
        folder = RunFolder(path, None if resume is None else resume.chosen)
        started(folder)
        saved = None if resume is None else read_checkpoint(folder.checkpoint())
        of_dense = [] if dense is None else [each.last for each in (folder.dense, folder.dense_as_long)]
        started_before = [read_checkpoint(path) for path in of_dense if path is not None]
        if held := [*([] if saved is None else [saved]), *started_before]:
            verify_checkpoints(held)
        run = prepare(
            recipe, folder, console, name=label, label=label, saved=saved, allow_changes=allow_changes,
            callbacks=callbacks, loggers=loggers,
        )  # fmt: skip
        print_header(run, console)
        _fit_or_report(run, console)
        baselines = [] if dense is None else list(_train_baselines(run, allow_changes, console))
        models = [gather_model(each.module) for each in (run, *baselines)]
        if not is_rank_zero():
            return None  # without waiting for rank 0 to evaluate
        outcome, *others = (summarize(*each, console) for each in zip((run, *baselines), models, strict=True))
        if others and outcome.validation and others[0].validation:
            outcome = replace(outcome, comparison=compare(outcome, others[0], others[1] if len(others) > 1 else None))
    with warned(folder.summary, console):
        write_summary(folder.summary, outcome)
    print_summary(outcome, run.module, console)
    return outcome


def _train_baselines(run: Prepared, allow_changes: bool, console: Console) -> Iterator[Prepared]:
    """Trains dense models of as much work as the mixture did: on its tokens, then for as long as it trained.

    One that was begun before keeps its width, also if the mixture has trained on since. One that was trained for longer
    or with other options, as when the mixture went back to an older checkpoint, is not compared with.
    """
    recipe, folders = run.module.recipe, (run.folder.dense, run.folder.dense_as_long)
    computed = json.loads(decide_on_rank_zero("experts_per_token", lambda: json.dumps(experts_per_token(run.log.rows))))
    dense = dense_recipe(recipe, computed)
    assert dense is not None
    if folders[0].last is not None:
        dense = replace(dense, model=load(folders[0].spec).model)

    def trained(what: Recipe, folder: RunFolder, label: str) -> Prepared | None:
        saved = None if folder.last is None else read_checkpoint(folder.last)
        if saved is not None and (why := trained_otherwise(saved, what)):
            text = f"\nno comparison with {folder.name}, which was trained otherwise:{why}"
            advice = "to compare, remove that folder and resume the run"
            console.print(f"{text}\n  {advice}", highlight=False, markup=False, soft_wrap=True)
            return None
        baseline = prepare(
            what, folder, console, name=run.info.name, label=label, saved=saved, allow_changes=allow_changes
        )
        _fit_or_report(baseline, console)
        return baseline

    console.print("\nnow a dense model of as many multiply-adds a token, on the same batches", highlight=False)
    if (baseline := trained(dense, folders[0], "dense")) is None:
        return
    yield baseline
    steps = int(decide_on_rank_zero("dense_steps", lambda: str(steps_in_same_time(run.log.rows, baseline.log.rows))))
    if steps:
        console.print(f"\nnow the same for as long as the mixture trained: {steps:,} steps", highlight=False)
        longer = replace(dense, trainer=replace(dense.trainer, max_steps=steps))
        if (as_long := trained(longer, folders[1], "dense, as long")) is not None:
            yield as_long


def _fit_or_report(run: Prepared, console: Console) -> None:
    """Trains as ``fit``. If that fails, plugins report too (``moekit_run_ended``), before the failure is raised."""
    try:
        fit(run, console)
    except BaseException as error:
        for name, value in _ended(run, console, error)[0].items():
            console.print(f"{name}: {value}", highlight=False, markup=False)
        raise


def _ended(run: Prepared, console: Console, failure: BaseException | None) -> tuple[dict[str, str], list[Path]]:
    """The rows for the report, and the files, of plugins (``moekit_run_ended``)."""
    rows = run.log.rows if run.log.begun else read_metrics(run.folder.metrics)  # a failed resume changes no picture
    ended = EndedRun(**vars(run.info), module=run.module, step=run.trainer.global_step, rows=rows, failure=failure)
    return run_ended(ended, partial(console.print, highlight=False, markup=False, soft_wrap=True))


def fit(run: Prepared, console: Console) -> None:
    """Trains, from the start or from a checkpoint.

    Raises:
        KeyboardInterrupt, SystemExit: stopped by Ctrl-C or by SIGTERM; the command to resume is printed before.
        MoekitError: the loss became NaN or infinite; the checkpoint does not fit; or another rank was lost.
    """
    start = None if run.checkpoint is None else run.checkpoint.path
    has_begun = start is None

    def begin(*_: object) -> None:
        nonlocal has_begun
        has_begun = True
        if is_rank_zero() and start is not None:
            write_spec(run)  # now: if the checkpoint cannot be loaded, the run stays as it was
        if start is None:
            run.module.each_logger(lambda logger: logger.log_hyperparams(to_plain(run.module.recipe)))

    if is_rank_zero():
        run.folder.create()
        if start is None:
            write_spec(run)
    run.trainer.callbacks.append(LambdaCallback(on_train_start=begin))  # type: ignore[attr-defined]
    try:
        run.trainer.fit(run.module, ckpt_path=start, weights_only=True)
        if run.interrupt.agree():
            raise KeyboardInterrupt
        if any(isinstance(each, StopAfterTime) and each.is_over for each in run.trainer.callbacks):  # type: ignore[attr-defined]
            text = f"\ntrainer.max_time is over after step {run.trainer.global_step}; {_how_to_resume(run)}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    except (SystemExit, KeyboardInterrupt):  # on Ctrl-C, Lightning raises SystemExit and ignores further signals
        signal.signal(signal.SIGINT, signal.default_int_handler)
        text = f"\nstopped at step {run.trainer.global_step}; {_how_to_resume(run)}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        if run.interrupt.signal not in (None, signal.SIGINT):
            raise SystemExit(0) from None  # the exit code that the sender of SIGTERM expects
        raise KeyboardInterrupt from None
    except (MoekitError, OSError):
        raise
    except Exception as error:
        if lost_rank(error):
            kill_started_processes(run.trainer.strategy.launcher)  # one that hangs would outlive this process
            at = f"after step {run.trainer.global_step}"
            raise MoekitError(f"{at} {LOST_RANK}\n  {str(error).splitlines()[0]}\n  {_how_to_resume(run)}") from error
        if not has_begun:
            raise CheckpointError(f"cannot resume from {start}\n  {type(error).__name__}: {error}") from error
        raise


def write_spec(run: Prepared) -> None:
    """Writes the resolved recipe to ``spec.yaml`` in the run's folder, and the plugins with life-cycle hooks."""
    write_if_changed(run.folder.spec, write(run.module.hparams["spec"]))
    if hooked := plugins_with_hooks():
        write_if_changed(run.folder.hooks, json.dumps(hooked, indent=2) + "\n")


def _how_to_resume(run: Prepared) -> str:
    main = run.folder.main  # a dense baseline is resumed with the run that it belongs to
    return f"resume: moekit train --resume {shlex.quote(main.name)}" if main.last else "no checkpoint was written yet"


LOST_RANK = "another rank of this run has crashed, or did not answer in time"


def lost_rank(error: Exception) -> bool:
    """Whether another rank was lost, before all had met or after. gloo only says so in its message."""
    if isinstance(error, dist.DistStoreError | dist.DistNetworkError):
        return True
    return is_distributed() and (isinstance(error, dist.DistError) or "/gloo/" in str(error))


@contextmanager
def warned(path: Path, console: Console) -> Iterator[None]:
    """Prints a line if a result cannot be written to ``path``, or to the file that the error names."""
    try:
        yield
    except OSError as error:
        console.print(unwritten(path, error), highlight=False, markup=False, soft_wrap=True)


def summarize(run: Prepared, model: Model | None, console: Console) -> Outcome:
    """The results of a run, with those of its evaluators and of plugins. Prints a status line if it has evaluators."""
    outcome = outcome_of(run.info.label, run.folder, run.module, run.log.rows)
    if model is not None and (data := run.module.data) is not None and run.evaluators:
        text, device = f"{run.info.label}: evaluating the trained model", run.trainer.strategy.root_device
        if not console.is_terminal:
            console.print(text, highlight=False, markup=False)
        with warned(run.folder.path, console), console.status(text):
            found = evaluate(run.evaluators, model, data, run.folder.path, device=device)
            outcome = replace(outcome, scores=dict(found.values), files=list(found.files))
    rows, files = _ended(run, console, None)
    return replace(outcome, reported=rows, files=[*files, *outcome.files])


def gather_model(module: LitMoE) -> Model | None:
    """The whole trained model on rank 0, if the recipe has evaluators; else, and on other ranks, None.

    A sharded model is gathered on the CPU, tensor by tensor: a collective. A replicated one is returned on every rank.
    """
    shards = state_dict_shards(module.model)  # first: after a validation, FSDP2 still holds what it gathered
    if not sharded_parameters(module.model):
        return module.model
    if not module.recipe.evaluators:
        return None
    tensors = gather(shards)
    if tensors is None:
        return None
    model = build_model(module.recipe)
    model.load_state_dict(tensors, assign=True)
    return model.train(module.model.training)

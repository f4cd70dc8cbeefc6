"""LitMoE: an ordinary LightningModule that trains a recipe.

What is unusual, and why:

- The objective returns *sums* over tokens. Gradients are divided once, by the tokens of the whole optimizer step. So k
  micro-batches of any sizes equal one big batch, also when the last step has fewer, and clipping sees the final
  gradients.
- Layers return their loads; ``BalanceStep`` sums them and updates the balancers once per optimizer step.
- A training batch, and all noise in the model, is a function of (seed, step, micro-batch), where micro-batches are
  numbered over all ranks. So several ranks see the same batches as one rank that accumulates, and a resumed run repeats
  an uninterrupted one, bit for bit where the device's operators are deterministic: on a CPU always, on a GPU with
  ``trainer.deterministic: true`` (flash attention's backward adds in no fixed order).
- A step with a non-finite loss or gradient changes nothing: neither weights, nor optimizer, nor balancers.
- A checkpoint holds only plain data and tensors, by parameter name, and fits any number of ranks:
  ``docs/checkpoints.md``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

import moekit
from moekit.checkpoints.format import map_leaves
from moekit.checkpoints.reading import Handle
from moekit.compat import trainer_of, validate_now
from moekit.contracts import Batch, Data, LossSum, Model, ModelOutput, Objective
from moekit.distributed import is_distributed, leave_process_group_at_exit
from moekit.errors import CheckpointError, DataError, MoekitError, Problem
from moekit.parallel.strategy import ShardingStrategy
from moekit.registry import build, current
from moekit.seeds import seed_all
from moekit.shards import expert_parallel_layers
from moekit.spec import load, to_plain
from moekit.spec.loading import Source
from moekit.spec.recipe import Recipe
from moekit.training.balance import BalanceStep, StepLoad
from moekit.training.build import build_model, build_seeded, check_trainable, compile_parts
from moekit.training.components import check_loss, check_output, values_checked
from moekit.training.data import StepLoader, ValidationShard, noise_seed
from moekit.training.metrics import (
    Validation,
    has_stopped,
    is_logged_step,
    is_validated_step,
    load_metrics,
    progress,
    ratios,
    reached,
)
from moekit.training.optim import optimizer_of
from moekit.training.run.saved import read_any_checkpoint, recount
from moekit.training.run.start import freeze, load_vocabulary, load_weights
from moekit.training.step import (
    MicroBatch,
    NonFinitePolicy,
    OptimizerStep,
    StepResult,
    clip,
    clip_values,
    log_on_rank_zero,
)

IN_PROGRESS_BARS = {"train/loss", "train/max_violation", "val/loss"}
"""Metrics that Lightning's own progress bars show, of the ten that are logged."""

TRAINED, AVERAGES = "trained_weights", "averages"
"""Keys of a checkpoint for a callback that saves other weights as the model's, in ``state_dict``: under the first it
saves the trained ones, by all their names there. A resumed run loads these, and finds the others under the second."""

TRAINED_IN_LIGHTNING = "current_model_state"
"""The key for the same of Lightning's ``WeightAveraging``, which restores them itself."""


class TrainingClock:
    """Training time and tokens so far; pauses during validation.

    Args:
        now: returns seconds from any start; for tests.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._seconds = 0.0  # up to ``_since``
        self._since: float | None = None  # None while paused
        self._lap = (0.0, 0.0)
        self.tokens = 0.0

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._seconds + (0.0 if self._since is None else self._now() - self._since)

    def start(self, seconds: float = 0.0, tokens: float = 0.0) -> None:
        """Starts from the values of an earlier run."""
        self._seconds, self.tokens = seconds, tokens
        self._since = self._now()
        self._lap = (seconds, tokens)

    def pause(self) -> None:
        """Stops the clock."""
        self._seconds, self._since = self.seconds, None

    def resume(self) -> None:
        """Starts the clock again."""
        self._seconds, self._since = self.seconds, self._now()

    def lap(self, tokens: float) -> float:
        """Adds ``tokens``; returns tokens per second since the last call."""
        self.tokens += tokens
        now, (seconds, before) = self.seconds, self._lap
        self._lap = (now, self.tokens)
        return (self.tokens - before) / max(now - seconds, 1e-9)


class LitMoE(L.LightningModule):
    """Trains a recipe. ``Trainer(max_steps=...).fit(LitMoE("deepseek_v3"))`` is a whole training run.

    Args:
        spec: what ``moekit.load`` takes: a recipe, its name, a file, a mapping, or an OmegaConf config.
        overrides: ``path.to.option=value``, over the recipe.

    Attributes:
        recipe: the resolved recipe.
        model, objective, data: built from the recipe; ``data`` is None for a recipe without data. A sharded model is
            built when the trainer's strategy is known, any other model at once.
        balance: the balancers' step.
        clock: training time (without validation) and tokens so far.
        logged: the training metrics last logged, by name.
        logged_step: the optimizer step of these metrics.
        validated_step: the optimizer step of the last whole validation.
        step_load: the load of the last optimizer step.
        fingerprint: the checksum of the data, once it is prepared.
        sparse_layers: names of the layers whose load can be uneven (all but those with soft routing).
        stopped_after: the optimizer steps until ``stop.metric`` first fell to ``stop.below``; None before.
        skips: the policy for non-finite steps, and how many were skipped.
        observers: called with the output and the batch of every forward pass of training and of validation, once each,
            also under recomputation. A callback adds its function before training, and removes it.

    Raises:
        SpecError: the spec has a mistake, or no objective.
    """

    model: Model
    objective: Objective
    balance: BalanceStep

    def __init__(self, spec: Source, overrides: Sequence[str] = ()) -> None:
        super().__init__()
        self._set_recipe(load(spec, overrides))
        check_trainable(self.recipe)
        self.objective = build_seeded(self.recipe.objective, self.recipe.seed)
        self.data: Data | None = None if self.recipe.data is None else build(self.recipe.data)
        self._start = self.recipe.start  # None once its weights are loaded, and in a resumed run
        self.clock = TrainingClock()
        self.logged: dict[str, float] = {}
        self.logged_step = 0
        self.validated_step = -1
        self.step_load: StepLoad | None = None
        self.fingerprint = ""
        self.sparse_layers: list[str] = []
        self.stopped_after: int | None = None
        self.skips = NonFinitePolicy(self.recipe.non_finite)
        self.observers: list[Callable[[ModelOutput, Batch], object]] = []
        self._finished: StepResult | None = None
        self._validation = Validation()
        self._tokens: Tensor | None = None  # not yet in ``clock``; on the device
        self._first_step = 0
        self._matmul_before = "highest"
        self._step: OptimizerStep
        self._step_begun = 0  # the optimizer step that the last micro-batch belongs to
        self._stops_after_step = False  # a callback wants to stop, within a step
        self._extra_steps = 0  # added to ``max_steps``, until the run has begun
        self._configured = self._data_ready = False
        self._restored: Mapping[str, Any] | None = None
        if not self.recipe.trainer.shards:
            self._set_model(build_model(self.recipe))

    @property
    def is_built(self) -> bool:
        """Whether the model exists yet."""
        return any(name == "model" for name, _ in self.named_children())

    def build(self) -> None:
        """Builds the whole model, unless it exists."""
        if not self.is_built:
            self._set_model(build_model(self.recipe))

    def setup(self, stage: str) -> None:
        """Sets the precision of fp32 products, and has a process group destroyed before Python exits.

        Raises:
            MoekitError: the trainer's strategy shards modules in a way of its own.
        """
        self._matmul_before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.recipe.matmul_precision or self._matmul_before)
        trainer = trainer_of(self)
        strategy = None if trainer is None else trainer.strategy
        shards = isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy)
        if shards and not isinstance(strategy, ShardingStrategy):
            what = f"LitMoE cannot train with Lightning's {type(strategy).__name__}, which does not shard its model"
            problem = Problem(what=what, expected="no strategy, or one of a plugin", list_with="moekit ls strategies")
            raise MoekitError(str(problem))
        if is_distributed():
            leave_process_group_at_exit()

    def teardown(self, stage: str) -> None:
        """Gives fp32 products the precision that they had."""
        torch.set_float32_matmul_precision(self._matmul_before)

    def configure_model(self) -> None:
        """Builds the model if needed, as the trainer's strategy shards it, and compiles it if the recipe says so.

        Raises:
            MoekitError: experts are distributed over ranks, and the trainer's strategy takes every rank's for the same.
        """
        if self._configured:
            return
        self._configured = True
        trainer = trainer_of(self)
        strategy = None if trainer is None else trainer.strategy
        if isinstance(strategy, ShardingStrategy):
            strategy.build(self.recipe, self._set_model)
        self.build()
        if strategy is not None and not isinstance(strategy, ShardingStrategy) and any(expert_parallel_layers(self)):
            what = f"experts are distributed over ranks, and {type(strategy).__name__} takes every rank's for the same"
            expected = "strategy sharded, or a LitMoE made before the process group, which has all experts"
            raise MoekitError(str(Problem(what=what, expected=expected, list_with="moekit ls strategies")))
        if strategy is not None:  # now: later, a checkpoint's fp64 weights would have been rounded to fp32
            strategy.precision_plugin.convert_module(self)
        current().call("moekit_module_built", {"module": self})
        if self.recipe.compile:
            compile_parts(self.model)

    def _set_model(self, model: Model) -> None:
        self.model = model
        if self.recipe.start is not None:
            freeze(model, self.recipe.start)
        self.balance = BalanceStep(model)
        self._step = OptimizerStep(model, self.objective, self.balance)

    def _set_recipe(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.save_hyperparameters({"spec": to_plain(recipe, full_names=True)}, logger=False)

    @property
    def lr(self) -> float:
        """The optimizer's learning rate, before its schedule. ``lr_find`` of Lightning's ``Tuner`` sets it.

        Raises:
            AttributeError: the optimizer has no option ``lr``.
        """
        optimizer: Any = self.recipe.optimizer
        if "lr" not in {field.name for field in fields(optimizer)}:
            raise AttributeError(f"the optimizer '{type(optimizer).__name__}' has no option 'lr'")
        return float(optimizer.lr)

    @lr.setter
    def lr(self, lr: float) -> None:
        """Sets it in the recipe, and in the schedule of a training that runs."""
        optimizer: Any = self.recipe.optimizer
        self._set_recipe(replace(self.recipe, optimizer=replace(optimizer, lr=lr)))
        if (trainer := trainer_of(self)) is not None:
            for config in trainer.lr_scheduler_configs:  # of the callback ``LearningRateFinder``, within ``fit``
                config.scheduler.base_lrs = [lr for _ in config.scheduler.base_lrs]

    def prepare(self) -> Data:
        """Reads the recipe's data, once; ``Trainer.fit`` calls it when needed.

        Raises:
            DataError: the recipe names no data, or a file is missing, unreadable or empty.
        """
        if self.data is None:
            raise DataError("the recipe names no data: add a 'data:' node, or give Trainer.fit a datamodule")
        if not self._data_ready:
            if self._start is not None:
                load_vocabulary(self.data, self.recipe.data, self._start)  # first: the data then learns none of its own
            if self.is_built:
                self.load_start()  # before data is read, so that a misfit fails early
            with torch.inference_mode(False):  # ``Trainer.validate`` may come first, and training needs these tensors
                self.data.prepare()
            self.fingerprint = self.data.fingerprint()
            self._data_ready = True
        return self.data

    def load_start(self) -> None:
        """Loads the weights that the recipe starts from, once, unless the run is resumed.

        Raises:
            CheckpointError: there is no such run, or its weights do not fit.
        """
        if self._start is not None:
            load_weights(self.model, self.recipe.model, self._start)
            self._start = None

    def train_dataloader(self) -> StepLoader:
        """Batches by (seed, step, micro-batch, rank); one endless epoch if the trainer counts steps.

        Without a trainer: those of one rank, as many in a step as the recipe says.
        """
        if (trainer := trainer_of(self)) is None:
            accumulate = self.recipe.trainer.accumulate_grad_batches
            return StepLoader(self.prepare(), seed=self.recipe.seed, accumulate=accumulate)
        self._begin_or_end(trainer)
        device = trainer.strategy.root_device
        on_gpu = device.type == "cuda"
        return StepLoader(
            self.prepare(),
            seed=self.recipe.seed,
            accumulate=trainer.accumulate_grad_batches,
            # In other precisions Lightning changes torch's default dtype, for all threads, while a batch is trained on.
            ahead=on_gpu and (str(trainer.precision) == "32-true" or str(trainer.precision).endswith("-mixed")),
            gpu=device if on_gpu else None,
            rank=self.global_rank,
            ramp=self.recipe.batch_ramp,
            world=trainer.world_size,
            steps=None if trainer.max_steps > 0 else self.recipe.trainer.max_steps,
        )

    def _begin_or_end(self, trainer: L.Trainer) -> None:
        """Has Lightning end a resumed run that is over, or begin it nevertheless if its last step must be validated.

        Lightning decides right after it requested the training data, and has no hook between.
        """
        if self._restored is None:
            return
        if not (self._restored.get("unvalidated") and trainer.enable_validation):
            trainer.should_stop = trainer.should_stop or self._is_over(trainer)
        elif 0 < trainer.max_steps <= trainer.global_step:
            self._extra_steps = trainer.global_step + 1 - trainer.max_steps
            trainer.fit_loop.epoch_loop.max_steps += self._extra_steps

    def _is_over(self, trainer: L.Trainer) -> bool:
        """Whether ``stop`` or a callback ``EarlyStopping`` has ended the run already."""
        return self.stopped_after is not None or any(
            has_stopped(each.state_dict()) for each in trainer.early_stopping_callbacks
        )

    def val_dataloader(self) -> Iterable[Batch]:
        """This rank's batches of the validation set, without a trainer all; empty for a recipe without data."""
        if self.data is None:
            return []
        if trainer_of(self) is None:
            return ValidationShard(self.prepare())
        given = self.trainer.limit_val_batches
        limit = given if isinstance(given, int) else None  # of all ranks; Lightning applies it to each rank
        return ValidationShard(self.prepare(), self.global_rank, self.trainer.world_size, limit)

    def forward(self, inputs: Tensor, valid: Tensor | None = None) -> ModelOutput:
        """The model's output."""
        output: ModelOutput = self.model(inputs, valid=valid)
        return output

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, with its schedule stepped once per optimizer step."""
        steps = self.trainer.max_steps if self.trainer.max_steps > 0 else self.trainer.estimated_stepping_batches
        return optimizer_of(self.recipe, self.model, int(steps))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The summed loss of a micro-batch, times the accumulation count, by which Lightning divides it."""
        self._step_begun = self.trainer.global_step + 1
        micro = batch_idx % self.trainer.accumulate_grad_batches * self.trainer.world_size + self.global_rank
        seed = noise_seed(seed=self.recipe.seed, step=self.trainer.global_step, micro=micro)
        record = MicroBatch(batch, seed, progress(self.trainer))
        output = self._run(batch, seed)
        loss: LossSum = self.objective(output, batch, progress=record.progress)
        check_loss(self.objective, loss)
        for observe in self.observers:
            observe(output, batch)
        if not self.sparse_layers:
            self.sparse_layers = [name for name, r in output.reports.items() if r.routing.form != "soft"]
        return self._step.add(output, loss, record) * self.trainer.accumulate_grad_batches

    def _run(self, batch: Batch, seed: int) -> ModelOutput:
        """The forward pass of a micro-batch; in the first step of a run the values of routings are checked too."""
        seed_all(seed)
        if self.trainer.global_step == self._first_step:
            with values_checked(self.model):
                if not self.recipe.compile:
                    return check_output(self.model, self.model.on(batch))
                with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # compiled, the reads would stay in
                    self.model.on(batch)
            seed_all(seed)
        return check_output(self.model, self.model.on(batch))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides gradients by the step's tokens, updates the balancers, logs, and decides whether to stop.

        Raises:
            MoekitError: the loss or a gradient is not finite, and the policy stops the run.
        """
        # DDP averages gradients over ranks; a sharding strategy sums them.
        averaged = 1 if isinstance(self.trainer.strategy, ShardingStrategy) else self.trainer.world_size
        done = self._step.finish(averaged, progress(self.trainer), self.trainer.precision_plugin)
        self._finished, step = done, self.trainer.global_step + 1
        self._tokens = done.tokens if self._tokens is None else self._tokens + done.tokens
        if done.non_finite:
            self.skips.skip(step, done.non_finite)
            self._publish({"train/skipped": float(self.skips.count)}, step)
        else:
            self.skips.in_a_row = 0
            self._check_stop("train/", ratios(done.sums, "train/"), step - 1)
        last = self._is_last(step)
        if last or self._stops_after_step:
            self._stops_after_step = False
            self.trainer.should_stop = True  # Lightning then also validates the last step
        if not done.non_finite:
            self.step_load = done.load
            if last or is_logged_step(self.trainer):
                self._log(step, done, optimizer)

    def _is_last(self, step: int) -> bool:
        """Whether training ends with a step: with the last of all, or because ``stop`` was reached."""
        has_reached = self.stopped_after is not None and step >= (self.recipe.trainer.min_steps or 0)
        return has_reached or step == self.trainer.max_steps

    def _check_stop(self, part: str, values: Mapping[str, float], steps: int) -> None:
        """Records when the recipe's ``stop`` is first reached by the metrics of a part: ``train/`` or ``val/``."""
        stop = self.recipe.stop
        if stop is not None and stop.metric.startswith("val/") == (part == "val/") and reached(stop, values):
            self.stopped_after = steps if self.stopped_after is None else self.stopped_after

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Defers a callback's wish to stop to the end of the optimizer step.

        Lightning would stop at once, and the gradients of the micro-batches so far would be lost.
        """
        if self.trainer.should_stop and self._step_begun > self.trainer.global_step:
            self.trainer.should_stop, self._stops_after_step = False, True

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by the step's ``total_norm``, which is right for sharded weights too."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            clip_values(self.parameters(), gradient_clip_val)
        elif self._finished is not None:
            clip(self.parameters(), self._finished.norm, gradient_clip_val)

    def _log(self, step: int, done: StepResult, optimizer: torch.optim.Optimizer) -> None:
        values = ratios(done.sums, "train/") | load_metrics(done.load, self.sparse_layers)
        values["lr"] = float(optimizer.param_groups[0]["lr"])
        values["grad_norm"] = done.norm
        values["tokens_per_second"] = self.clock.lap(self._new_tokens())
        values["seconds"], values["tokens"] = self.clock.seconds, self.clock.tokens
        self.logged, self.logged_step = values, step
        self._publish(values, step)

    def publish(self, values: Mapping[str, float]) -> None:
        """Logs metrics of a callback: to every logger at the current optimizer step, and for ``EarlyStopping``.

        Unlike ``log``, it may be called in every hook of a callback, and never at the step before. The name of a metric
        of training begins with ``train/``, one of validation with ``val/``. Every rank must publish the same values.
        """
        values = {name: float(value) for name, value in values.items()}
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        step = max(self.trainer.global_step, self._step_begun)
        self.each_logger(lambda logger: logger.log_metrics(values, step))

    def _new_tokens(self) -> float:
        tokens, self._tokens = self._tokens, None
        return 0.0 if tokens is None else float(tokens)

    def _publish(self, values: Mapping[str, float], step: int) -> None:
        # Loggers are called here with the exact step; Lightning would count from 0 in training and lag in validation.
        # Alone, a validation has no step, and ``Trainer.validate`` returns what Lightning gives to loggers.
        # All ranks have the same values, but Lightning warns about validation metrics without ``sync_dist``.
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        sync = self.trainer.validating and self.trainer.world_size > 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*have no logger configured")
            for name, value in values.items():
                self.log(name, value, prog_bar=name in IN_PROGRESS_BARS, logger=not fitting, sync_dist=sync)
        if fitting:
            self.each_logger(lambda logger: logger.log_metrics(dict(values), step))

    def each_logger(self, call: Callable[[Logger], object]) -> None:
        """Calls a function with every logger. One that raises is reported and removed: no run needs its logs."""
        loggers: list[Logger] = self.trainer.loggers
        for logger in loggers:
            try:
                call(logger)
            except Exception as error:
                self.trainer.loggers = [each for each in self.trainer.loggers if each is not logger]
                what = f"logger {type(logger).__name__}: {type(error).__name__}: {error}"
                log_on_rank_zero(f"{what}\n  training continues without it")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds one batch's sums and load, without updating a balancer."""
        output = check_output(self.model, self.model.on(batch))
        loss: LossSum = self.objective(output, batch)
        check_loss(self.objective, loss)
        for observe in self.observers:
            observe(output, batch)
        self._validation.add(loss, output.reports)

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of the validation set: ``val/loss``, the objective's, ``val/max_violation``.

        Loggers then write their files, before a checkpoint is saved.

        Raises:
            SpecError: ``stop.metric`` is none of them.
        """
        values = self._validation.take()
        if values and not self.trainer.sanity_checking:
            if self.trainer.state.fn == TrainerFn.FITTING:
                values |= {"seconds": self.clock.seconds, "tokens": self.clock.tokens}
            self.validated_step = self.trainer.global_step
            self._publish(values, self.trainer.global_step)
            self._check_stop("val/", values, self.trainer.global_step)
            if self.stopped_after is not None:
                self.trainer.should_stop = True
        if not self.trainer.sanity_checking:
            self.each_logger(lambda logger: logger.save())

    def on_train_epoch_end(self) -> None:
        """Has loggers write their files, before the run's last checkpoint is saved."""
        self.each_logger(lambda logger: logger.save())

    def discard_validation(self) -> None:
        """Forgets the batches of a validation that is abandoned, so that no metrics are logged."""
        self._validation = Validation()

    def on_validation_start(self) -> None:
        """Stops the training clock, and resets the validation sums."""
        self.clock.pause()
        self.discard_validation()

    def on_validation_end(self) -> None:
        """Starts the training clock again."""
        self.clock.resume()

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, map_location: Any = None) -> LitMoE:  # type: ignore[override]
        """The module in a checkpoint, whole, whatever layout it was saved in.

        Args:
            checkpoint_path: its directory, a pointer to it (``checkpoints/last``), or a ``.ckpt`` file that Lightning's
                ``ModelCheckpoint`` wrote around this module. Nothing is unpickled but tensors and plain values.
            map_location: the device to move the module to; default: the CPU.

        Raises:
            CheckpointError: the checkpoint is missing, damaged or not of a run, or does not fit its own spec.
        """
        saved = read_any_checkpoint(Path(checkpoint_path))
        module = cls(saved.plain["hyper_parameters"]["spec"])
        module.build()
        try:
            module.load_state_dict(map_leaves(saved.plain["state_dict"], Handle.whole, Handle))
        except RuntimeError as error:
            raise CheckpointError(
                f"{saved.path} does not fit the model that its own spec describes\n  {error}"
            ) from error
        module.on_load_checkpoint(saved.plain)
        return module if map_location is None else module.to(map_location)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the data's state, the clock, the skipped steps, whether the run is over, and what it last measured.

        ``unvalidated`` says that this step was to be validated, and a signal prevented it: a resumed run makes up for
        it, for a callback or ``stop`` may decide by it. Such a callback may also want the last metrics of training.
        """
        self.clock.tokens += self._new_tokens()
        trainer, step = self.trainer, self.trainer.global_step
        is_due = is_validated_step(trainer) or self._is_last(step)
        checkpoint["moekit"] = {
            "version": moekit.__version__,
            "data": {} if self.data is None else self.data.state(),
            "fingerprint": self.fingerprint,
            "precision": str(trainer.precision),
            "seconds": self.clock.seconds,
            "tokens": self.clock.tokens,
            "skipped": self.skips.count,
            "skipped_in_a_row": self.skips.in_a_row,
            "stopped_after": self.stopped_after,
            "unvalidated": is_due and self.validated_step != step,
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "logged": self.logged_step,
            "accumulate": trainer.accumulate_grad_batches,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the data's state, and whether ``stop`` was reached; ``on_train_start`` restores the rest."""
        self._restored = checkpoint.get("moekit")
        then, now = checkpoint["hyper_parameters"]["spec"].get("stop"), self.hparams["spec"].get("stop")
        self.stopped_after = self._restored.get("stopped_after") if self._restored and then == now else None
        self._start = self._start if self._restored is None else None
        if self._restored is not None and trainer_of(self) is not None:
            if self.trainer.state.fn == TrainerFn.FITTING:
                self._continue_from_trained(checkpoint)
            recount(checkpoint, self.trainer.accumulate_grad_batches)
            if len(checkpoint["lr_schedulers"]) != (self.recipe.schedule is not None):  # added or removed on resume
                checkpoint["lr_schedulers"] = [{"step": checkpoint["global_step"]}] * (self.recipe.schedule is not None)
        if self._restored is not None and self.data is not None:
            self.data.load_state(self._restored["data"])

    def _continue_from_trained(self, checkpoint: dict[str, Any]) -> None:
        """Gives ``state_dict`` the trained weights, whether or not the run still has the callback that averages."""
        saved, trained = checkpoint["state_dict"], checkpoint.get(TRAINED, {})
        checkpoint[AVERAGES] = {name: saved[name] for name in trained}
        checkpoint["state_dict"] = {**saved, **trained}
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if TRAINED_IN_LIGHTNING in checkpoint and not any(isinstance(each, WeightAveraging) for each in callbacks):
            checkpoint["state_dict"] = checkpoint[TRAINED_IN_LIGHTNING]

    def on_train_start(self) -> None:
        """Loads the weights to start from, if any, and starts the clock. Makes up for a validation that was cut."""
        self.load_start()
        trainer = self.trainer
        self._first_step = trainer.global_step
        if self._restored is None:
            self.stopped_after = None
        restored = self._restored or {"seconds": 0.0, "tokens": 0.0, "skipped": 0, "logged": 0}
        self._restored = None
        self.clock.start(float(restored["seconds"]), float(restored["tokens"]))
        self.skips.count, self.skips.in_a_row = int(restored["skipped"]), int(restored.get("skipped_in_a_row", 0))
        self.logged_step = int(restored["logged"])
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in restored.get("metrics", {}).items()})
        trainer.fit_loop.epoch_loop.max_steps -= self._extra_steps
        self._extra_steps = 0
        if restored.get("unvalidated") and trainer.enable_validation:
            validate_now(trainer)
            trainer.should_stop = trainer.should_stop or self._is_over(trainer)

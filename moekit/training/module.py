"""LitMoE: what a recipe says, as an ordinary LightningModule.

What is unusual, and why:

- The objective gives token *sums*. Gradients are divided by the tokens of the whole optimizer step just before it, so
  k micro-batches of any sizes equal one big batch, also in a short last window, and clipping sees the right gradients.
- Loads are counted from what the layers return and acted on once per optimizer step (``BalanceStep``).
- A training batch, and what the model draws itself, is a function of (seed, step, micro-batch), the micro-batches of
  all ranks numbered together: a resumed run repeats an uninterrupted one bit for bit, and ranks repeat accumulation.
- A step whose loss or gradients are not finite touches nothing: neither weights nor optimizer nor balancers.
- The checkpoint holds plain data and tensors alone (the resolved spec as a dict), by the names of parameters, and is
  read as such: ``docs/checkpoints.md``. It fits one process as well as many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

import moekit
from moekit.checkpoints.format import map_leaves
from moekit.checkpoints.reading import Handle
from moekit.compat import trainer_of
from moekit.contracts import Batch, Data, LossSum, Model, ModelOutput, Objective
from moekit.errors import CheckpointError, DataError
from moekit.parallel.strategy import ShardedStrategy
from moekit.registry import build
from moekit.seeds import seed_all
from moekit.spec import load, to_plain
from moekit.spec.recipe import Recipe
from moekit.spec.sharding import sharded_of
from moekit.training.balance import BalanceStep, StepLoad
from moekit.training.build import build_model, build_seeded, build_uncut, check_trainable, compile_parts
from moekit.training.data import StepLoader, ValidationShard, noise_seed
from moekit.training.health.diagnosis import MicroBatch
from moekit.training.health.policy import NonFinitePolicy
from moekit.training.metrics import Pace, Validation, is_logged_step, load_metrics, progress, ratios, reached
from moekit.training.optim import optimizer_of
from moekit.training.run.resume import read_checkpoint, recount
from moekit.training.run.start import StartingPoint
from moekit.training.step import OptimizerStep, Precision, StepResult, clip, clip_values

DEFAULT_STEPS = 1000


class LitMoE(L.LightningModule):
    """Trains what a recipe says. ``Trainer(max_steps=...).fit(LitMoE("deepseek_v3"))`` is a whole training run.

    Args:
        spec: a recipe, its name, the path of its file, or the plain mapping that a checkpoint holds.

    Attributes:
        recipe: the resolved recipe.
        model, objective, data: what it builds; ``data`` is None when the recipe names none. A model in shards is built
            when the trainer's strategy is known, any other at once.
        balance: the balancers' step.
        starting: the weights that the recipe starts from, and which of them move.
        pace: training time (without validation) and tokens so far.
        logged: the training metrics last logged, by name.
        logged_step: the optimizer step they belong to.
        step_load: what the layers saw in the last optimizer step.
        sparse_layers: names of the layers whose load can be uneven (not those under soft routing).
        stopped_after: optimizer steps that it took to fall to ``stop.below``; None before.
        left_out: what becomes of steps that are not finite, and how many were left out.

    Raises:
        SpecError: a mistake in the spec, or no objective in it.
    """

    model: Model
    objective: Objective
    balance: BalanceStep

    def __init__(self, spec: Recipe | Mapping[str, Any] | str | Path) -> None:
        super().__init__()
        self.recipe = spec if isinstance(spec, Recipe) else load(spec)
        self.save_hyperparameters({"spec": to_plain(self.recipe)}, logger=False)
        check_trainable(self.recipe)
        self.objective = build_seeded(self.recipe.objective, self.recipe.seed)
        self.data: Data | None = None if self.recipe.data is None else build(self.recipe.data)
        self.starting = StartingPoint(self.recipe.start)
        self.pace = Pace()
        self.logged: dict[str, float] = {}
        self.logged_step = 0
        self.step_load: StepLoad | None = None
        self.sparse_layers: list[str] = []
        self.stopped_after: int | None = None
        self.skips = NonFinitePolicy(self.recipe.non_finite)
        self._finished: StepResult | None = None
        self._validation = Validation()
        self._tokens: Tensor | None = None  # since the last log, on the device
        self._step: OptimizerStep
        self._configured = self._data_ready = False
        self._restored: Mapping[str, Any] | None = None
        if sharded_of(self.recipe.trainer) is None:
            self._hold(build_model(self.recipe))

    @property
    def is_built(self) -> bool:
        """Whether there is a model yet."""
        return any(name == "model" for name, _ in self.named_children())

    def build(self) -> None:
        """Builds the whole model, unless there is one."""
        if not self.is_built:
            self._hold(build_model(self.recipe))

    def configure_model(self) -> None:
        """Builds the model as the trainer's strategy lays it out, unless it is there; compiles it where asked. Once."""
        if self._configured:
            return
        self._configured = True
        trainer = trainer_of(self)
        strategy = None if trainer is None else trainer.strategy
        if isinstance(strategy, ShardedStrategy):
            model, waiting = build_uncut(self.recipe, strategy)
            self._hold(model)
            strategy.shard(model, waiting)
        self.build()
        if strategy is not None:  # now, not after weights of a checkpoint were loaded, and rounded, into fp32
            strategy.precision_plugin.convert_module(self)
        if self.recipe.compile:
            compile_parts(self.model)

    def _hold(self, model: Model) -> None:
        self.model = model
        self.starting.freeze(model)
        self.balance = BalanceStep(model)
        self._step = OptimizerStep(model, self.objective, self.balance)

    def prepare(self) -> Data:
        """Reads the recipe's data, once; ``Trainer.fit`` does it when needed.

        Raises:
            DataError: the recipe names no data, or a file is missing, unreadable or empty.
        """
        if self.data is None:
            raise DataError("the recipe names no data: add a 'data:' node, or give Trainer.fit a datamodule")
        if not self._data_ready:
            self.starting.teach(self.data, self._restored)  # its vocabulary, which the data then does not learn
            if self.is_built:
                self.starting.load(self.model, self._restored)  # now, so that what does not fit is told early
            self.data.prepare()
            self._data_ready = True
        return self.data

    def train_dataloader(self) -> StepLoader:
        """Batches by (seed, step, micro-batch, rank). One endless epoch where the trainer counts steps."""
        return StepLoader(
            self.prepare(),
            seed=self.recipe.seed,
            accumulate=self.trainer.accumulate_grad_batches,
            rank=self.global_rank,
            world=self.trainer.world_size,
            steps=None if self.trainer.max_steps > 0 else int(self.recipe.trainer.get("max_steps", DEFAULT_STEPS)),
        )

    def val_dataloader(self) -> Iterable[Batch]:
        """The validation set, shared out among ranks; nothing for a recipe without data."""
        if self.data is None:
            return []
        limit = self.trainer.limit_val_batches
        most = limit if isinstance(limit, int) else None  # Lightning would allow as many for each rank
        return ValidationShard(self.prepare(), self.global_rank, self.trainer.world_size, most)

    def forward(self, inputs: Tensor, valid: Tensor | None = None) -> ModelOutput:
        """The model's output."""
        output: ModelOutput = self.model(inputs, valid=valid)
        return output

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, with its schedule stepped once per optimizer step."""
        steps = self.trainer.max_steps if self.trainer.max_steps > 0 else self.trainer.estimated_stepping_batches
        return optimizer_of(self.recipe, self.model, int(steps))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The summed loss of a micro-batch, times the accumulation count that Lightning will divide by."""
        micro = batch_idx % self.trainer.accumulate_grad_batches * self.trainer.world_size + self.global_rank
        seed = noise_seed(seed=self.recipe.seed, step=self.trainer.global_step, micro=micro)
        again = MicroBatch(batch, seed, progress(self.trainer))
        seed_all(seed)
        output = self.model.on(batch)
        loss: LossSum = self.objective(output, batch, progress=again.progress)
        if not self.sparse_layers:
            self.sparse_layers = [name for name, r in output.reports.items() if r.routing.form != "soft"]
        return self._step.add(output, loss, again) * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides gradients by the step's tokens, moves the balancers, logs, and decides whether to stop.

        Raises:
            MoekitError: the loss or a gradient is not finite, and the recipe says to stop then; or in too many steps.
        """
        # DDP has averaged the sums over ranks; the sharded strategy has added them up.
        averaged = 1 if isinstance(self.trainer.strategy, ShardedStrategy) else self.trainer.world_size
        done = self._step.finish(averaged, progress(self.trainer), Precision(self.trainer.precision_plugin))
        self._finished, step = done, self.trainer.global_step + 1
        self._tokens = done.tokens if self._tokens is None else self._tokens + done.tokens
        self.skips.take(step, done.non_finite)
        if done.non_finite:
            self._publish({"train/skipped": float(self.skips.count)}, step)
        elif self.recipe.stop is not None and reached(self.recipe.stop, done.sums):
            self.stopped_after = step - 1
        last = step == self.trainer.max_steps or self.stopped_after is not None
        if last:
            self.trainer.should_stop = True  # which also has the last step validated
        if not done.non_finite:
            self.step_load = done.load
            if last or is_logged_step(self.trainer):
                self._log(step, done, optimizer)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by the norm that was taken for the step, which is right however the weights are laid out."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            clip_values(self.parameters(), gradient_clip_val)
        elif self._finished is not None:
            clip(self.parameters(), self._finished.norm, gradient_clip_val)

    def _log(self, step: int, done: StepResult, optimizer: torch.optim.Optimizer) -> None:
        values = ratios(done.sums, "train/") | load_metrics(done.load, self.sparse_layers)
        values["lr"] = float(optimizer.param_groups[0]["lr"])
        values["grad_norm"] = float(done.norm)
        values["tokens_per_second"] = self.pace.lap(self._new_tokens())
        values["seconds"], values["tokens"] = self.pace.seconds, self.pace.tokens
        self.logged, self.logged_step = values, step
        self._publish(values, step)

    def _new_tokens(self) -> float:
        tokens, self._tokens = self._tokens, None
        return 0.0 if tokens is None else float(tokens)

    def _publish(self, values: Mapping[str, float], step: int) -> None:
        # Loggers get the exact step here; Lightning's own path would count from 0 in training and lag in validation.
        # Every rank has the same values; Lightning asks to be told to average those of a validation all the same.
        self.log_dict(dict(values), logger=False, sync_dist=self.trainer.validating and self.trainer.world_size > 1)
        for logger in self.loggers:
            logger.log_metrics(dict(values), step)

    def on_validation_epoch_start(self) -> None:
        """Starts the sums at zero."""
        self._validation = Validation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds one batch's sums and load; no balancer hears of either."""
        output = self.model.on(batch)
        self._validation.add(self.objective(output, batch), output.reports)

    def on_validation_epoch_end(self) -> None:
        """Logs what the validation set came to: ``val/loss``, the objective's metrics, ``val/max_violation``."""
        values = self._validation.take()
        if values and not self.trainer.sanity_checking:
            values |= {"seconds": self.pace.seconds, "tokens": self.pace.tokens}
            self._publish(values, self.trainer.global_step)

    def on_validation_start(self) -> None:
        """Stops the training clock."""
        self.pace.pause()

    def on_validation_end(self) -> None:
        """Starts the training clock again."""
        self.pace.resume()

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, map_location: Any = None) -> LitMoE:  # type: ignore[override]
        """The module that a checkpoint holds, whole, whatever the layout it was saved in.

        Args:
            checkpoint_path: its directory, or a pointer to it (``checkpoints/last``).
            map_location: the device to move it to; the CPU when left out.

        Raises:
            CheckpointError: it is missing, damaged or of no run, or its weights are not those of its own spec.
        """
        saved = read_checkpoint(Path(checkpoint_path))
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
        """Adds the data's state, and the clock."""
        self.pace.tokens += self._new_tokens()
        checkpoint["moekit"] = {
            "version": moekit.__version__,
            "data": {} if self.data is None else self.data.state(),
            "seconds": self.pace.seconds,
            "tokens": self.pace.tokens,
            "skipped": self.skips.count,
            "accumulate": self.trainer.accumulate_grad_batches,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the data's state back now, the clock when training starts."""
        self._restored = checkpoint.get("moekit")
        if self._restored is not None and trainer_of(self) is not None:
            recount(checkpoint, self.trainer.accumulate_grad_batches)
        if self._restored is not None and self.data is not None:
            self.data.load_state(self._restored["data"])

    def on_train_start(self) -> None:
        """Takes the weights to start from, if any, and starts the clock."""
        self.starting.load(self.model, self._restored)
        restored = self._restored or {"seconds": 0.0, "tokens": 0.0, "skipped": 0}
        self.pace.start(float(restored["seconds"]), float(restored["tokens"]))
        self.skips.count = int(restored["skipped"])

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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import moekit
from moekit.checkpoints.reading import Handle
from moekit.checkpoints.tree import fill
from moekit.compat import trainer_of
from moekit.contracts import Batch, LossSum
from moekit.errors import CheckpointError
from moekit.parallel.strategy import ShardedStrategy
from moekit.seeds import seed_all
from moekit.spec.recipe import Recipe
from moekit.training.balance import StepLoad
from moekit.training.built import Built
from moekit.training.checkpoint_io import read_checkpoint
from moekit.training.data import noise_seed
from moekit.training.gradients import clip, clip_values
from moekit.training.health.diagnosis import Micro
from moekit.training.health.policy import LeftOut
from moekit.training.metrics import ratios
from moekit.training.pace import Pace
from moekit.training.readings import load_readings, logs_now, progress, reached
from moekit.training.recounting import recount
from moekit.training.step import Finished, Precision
from moekit.training.validation import Validation


class LitMoE(Built):
    """Trains what a recipe says. ``Trainer(max_steps=...).fit(LitMoE("deepseek_v3"))`` is a whole training run.

    Args:
        spec: a recipe, its name, the path of its file, or the plain mapping that a checkpoint holds.

    Attributes:
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

    def __init__(self, spec: Recipe | Mapping[str, Any] | str | Path) -> None:
        super().__init__(spec)
        self.pace = Pace()
        self.logged: dict[str, float] = {}
        self.logged_step = 0
        self.step_load: StepLoad | None = None
        self.sparse_layers: list[str] = []
        self.stopped_after: int | None = None
        self.left_out = LeftOut(self.recipe.non_finite)
        self._finished: Finished | None = None
        self._validation = Validation()
        self._tokens: Tensor | None = None  # since the last log, on the device

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The summed loss of a micro-batch, times the accumulation count that Lightning will divide by."""
        micro = batch_idx % self.trainer.accumulate_grad_batches * self.trainer.world_size + self.global_rank
        seed = noise_seed(seed=self.recipe.seed, step=self.trainer.global_step, micro=micro)
        again = Micro(batch, seed, progress(self.trainer))
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
        self.left_out.take(step, done.sick)
        if done.sick:
            self._publish({"train/skipped": float(self.left_out.count)}, step)
        elif self.recipe.stop is not None and reached(self.recipe.stop, done.sums):
            self.stopped_after = step - 1
        last = step == self.trainer.max_steps or self.stopped_after is not None
        if last:
            self.trainer.should_stop = True  # which also has the last step validated
        if not done.sick:
            self.step_load = done.load
            if last or logs_now(self.trainer):
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

    def _log(self, step: int, done: Finished, optimizer: torch.optim.Optimizer) -> None:
        values = ratios(done.sums, "train/") | load_readings(done.load, self.sparse_layers)
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
            module.load_state_dict(fill(saved.plain["state_dict"], Handle.whole, Handle))
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
            "skipped": self.left_out.count,
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
        self.left_out.count = int(restored["skipped"])

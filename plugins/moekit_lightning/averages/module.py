"""A callback that averages the weights: validations use the averages, and checkpoints hold them as the model's.

So ``moekit generate`` and ``export`` use the averages without knowing of them. The checkpoint holds
the trained weights too, from which training continues. Buffers, such as selection biases, are those of the last step.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from moekit.training.module import AVERAGES, TRAINED
from moekit.training.step import log_on_rank_zero
from moekit_lightning.averages import EMA, SWA


class WeightAverage(Callback):
    """Averages the trained parameters of a ``LitMoE``, in fp32 (fp64 parameters: in fp64).

    Args:
        decay: weight of the average so far at each update; None for the mean of all updates.
        start: fraction of the run after which averaging begins.
        every: optimizer steps between updates.

    Attributes:
        averages: by the parameter's name in the module; empty before the first update.
        count: updates so far.
        step: the optimizer step of the last.
    """

    def __init__(self, *, decay: float | None, start: float, every: int) -> None:
        self.decay = decay
        self.start = start
        self.every = every
        self.averages: dict[str, Tensor] = {}
        self.count = 0
        self.step = 0
        self._trained: dict[str, Tensor] = {}  # the trained weights, while the module has the averages

    def state_dict(self) -> dict[str, Any]:
        """The kind of average, and two counters. The averages are in the checkpoint's ``state_dict``."""
        return {"kind": self.kind, "count": self.count, "step": self.step}

    @property
    def kind(self) -> str:
        """``ema`` or ``swa``. Both have one key in checkpoints, so that a run cannot have both."""
        return "swa" if self.decay is None else "ema"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Moves restored averages to the device; drops them if this run, which may be longer, begins them later."""
        if self.averages and trainer.global_step <= self.start * trainer.max_steps:
            log_on_rank_zero(f"the average in the checkpoint is dropped: {self.kind} begins later in this run")
            self.averages, self.count = {}, 0
        parameters = trained_parameters(pl_module)
        self.averages = {name: average.to(parameters[name].device) for name, average in self.averages.items()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates the averages after an optimizer step."""
        step = trainer.global_step
        if step > self.step and step % self.every == 0 and step > self.start * trainer.max_steps:
            self.step = step
            self.update(trained_parameters(pl_module))

    @torch.no_grad()
    def update(self, parameters: dict[str, nn.Parameter]) -> None:
        """Adds the present weights to the averages."""
        self.count += 1
        weight = 1 / self.count if self.decay is None else 1 - self.decay
        for name, parameter in parameters.items():
            wide = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
            if name not in self.averages:
                self.averages[name] = wide.clone()
            else:
                self.averages[name].lerp_(wide, weight)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the module the averages."""
        if trainer.state.fn == "fit":
            self._trained = self._put(pl_module, self.averages)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the module the trained weights again."""
        self._put(pl_module, self._trained)
        self._trained = {}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Does the same, whatever ended a validation."""
        self.on_validation_end(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the averages in the module: the run's report is about them. The last checkpoint is saved already."""
        self._put(pl_module, self.averages)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the averages in the place of the trained weights, which go to another key."""
        weights = checkpoint["state_dict"]
        tied = {alias: name for alias, name in aliases(pl_module) if name in self.averages}
        names = {**{name: name for name in self.averages}, **tied}
        if names:
            checkpoint[TRAINED] = {name: self._trained.get(first, weights[name]) for name, first in names.items()}
            checkpoint["state_dict"] = {**weights, **{name: self.averages[first] for name, first in names.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the counters, unless they are of another kind."""
        if state_dict.get("kind") == self.kind:
            self.count, self.step = int(state_dict["count"]), int(state_dict["step"])

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the averages, unless they are of another kind; the module has the trained weights."""
        averages, state = checkpoint.get(AVERAGES), checkpoint["callbacks"].get(self.state_key)
        if not averages or state is None:
            return
        if state.get("kind") != self.kind:
            log_on_rank_zero(f"the average in the checkpoint is dropped: it is not of {self.kind}, which begins anew")
            return
        self.averages = {name: averages[name].clone() for name in trained_parameters(pl_module)}

    @torch.no_grad()
    def _put(self, module: L.LightningModule, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Overwrites the parameters of these names; returns copies of what they were."""
        parameters = trained_parameters(module)
        before = {name: parameters[name].detach().clone() for name in values}
        for name, value in values.items():
            parameters[name].copy_(value)
        return before


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def aliases(module: nn.Module) -> list[tuple[str, str]]:
    """Other names of parameters, with the first: those of tied weights."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return [(name, first[id(parameter)]) for name, parameter in every if first[id(parameter)] != name]


def ema(spec: EMA) -> WeightAverage:
    """The exponential moving average."""
    return WeightAverage(decay=spec.decay, start=0.0, every=spec.every)


def swa(spec: SWA) -> WeightAverage:
    """The mean of the last part of the run."""
    return WeightAverage(decay=None, start=spec.start, every=spec.every)

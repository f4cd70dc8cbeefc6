"""``MoECallback``: what ``LitMoE`` does for mixtures, for a LightningModule of your own.

The layers return their loads and losses; forward hooks take them, from the start of a micro-batch to its backward pass.
Recomputation runs later, so activation checkpointing counts no token twice; validation runs outside.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from moekit.contracts import LayerReport
from moekit.errors import MoekitError
from moekit.shards import expert_parallel_layers
from moekit.training import BalanceStep, LitMoE, StepLoad, max_violation
from moekit.training.metrics import is_logged_step, load_metrics


class MoECallback(Callback):
    """Attaches balancing and metrics to the mixtures in any LightningModule: ``Trainer(callbacks=[MoECallback()])``.

    Once per optimizer step, just before it, the balancers step with the loads of all micro-batches and ranks. A balance
    loss is yours to add, in ``training_step``: ``loss + MoECallback.loss(self)``. If none of a step's backward passes
    uses it, a warning says so.

    Logged every ``log_every_n_steps``, through the module's ``log``: ``train/max_violation`` (mean over layers; in
    progress bars too), ``train/dropped``, ``train/dropped_tokens``, ``train/experts_per_token``; and for each layer
    ``max_violation/NAME`` and ``min_load/NAME``, the lowest load of an expert divided by the mean (0: it got no token).

    Attributes:
        reports: the name and report of each forward pass of a layer in the current micro-batch.
        step_load: the load of the last optimizer step.
    """

    def __init__(self) -> None:
        self.reports: list[tuple[str, LayerReport]] = []
        self.step_load: StepLoad | None = None
        self._balance: BalanceStep | None = None
        self._watch = ExitStack()
        self._steps = 0.0
        self._offered: set[str] = set()  # balance losses of this optimizer step, "LAYER.BALANCER"
        self._used: set[str] = set()  # those that received a gradient
        self._warned = False

    @staticmethod
    def loss(module: L.LightningModule) -> Tensor:
        """0-d: the balance losses of all forward passes in this micro-batch, each times its weight. Add it to the loss.

        Args:
            module: whose ``training_step`` runs; the callback is its trainer's.

        Raises:
            MoekitError: its trainer has no ``MoECallback``, or no mixture has run since the micro-batch began.
        """
        attached = [each for each in module.trainer.callbacks if isinstance(each, MoECallback)]  # type: ignore[attr-defined]
        if not attached:
            raise MoekitError("the trainer has no MoECallback\n  expected Trainer(callbacks=[MoECallback()])")
        if not attached[0].reports:
            what = "no MoELayer has run in this training step yet"
            raise MoekitError(
                f"{what}\n  expected MoECallback.loss(self) after the model's forward pass, in training_step"
            )
        return torch.stack([report.loss() for _, report in attached[0].reports]).sum()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finds the layers.

        Raises:
            MoekitError: there is none, the module steps its balancers itself, or ranks have different experts and the
                strategy takes them for the same.
        """
        name = type(pl_module).__name__
        own = [attribute for attribute, value in vars(pl_module).items() if isinstance(value, BalanceStep)]
        if isinstance(pl_module, LitMoE) or own:
            by = "as LitMoE does" if isinstance(pl_module, LitMoE) else f"by its attribute '{own[0]}'"
            raise MoekitError(f"{name} steps its balancers itself, {by}\n  expected it or MoECallback, not both")
        self._balance = BalanceStep(pl_module)
        if not self._balance.layers:
            raise MoekitError(f"{name} has no MoELayer\n  expected some, from moekit.layer or moekit.replace")
        if isinstance(trainer.strategy, (DDPStrategy, FSDPStrategy)) and any(expert_parallel_layers(pl_module)):
            raise MoekitError(
                f"{name}: experts are distributed over ranks, and {type(trainer.strategy).__name__} takes every rank's "
                "for the same\n  expected ModelParallelStrategy, or layers that have all experts on every rank"
            )
        self._offered, self._used, self._warned = set(), set(), False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the number of optimizer steps."""
        self._steps = trainer.estimated_stepping_batches

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins to watch the layers."""
        self._open()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Stops watching: what runs now is recomputation."""
        self._close()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watches again, for another forward pass of the same ``training_step``."""
        self._open()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops watching."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stops watching."""
        self._close()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Steps the balancers, and logs."""
        assert self._balance is not None
        progress = min(trainer.global_step / self._steps, 1.0) if self._steps > 0 else 0.0
        load = self._balance.step(progress=progress)
        self._warn_of_unused_losses()
        if load is None:
            return
        self.step_load = load
        if is_logged_step(trainer):
            values = load_metrics(load, list(load.load_E))
            for name, load_E in load.load_E.items():
                values[f"max_violation/{name}"] = float(max_violation(load_E))
                values[f"min_load/{name}"] = float(load_E.min() * load_E.numel() / load_E.sum().clamp(min=1))
            for metric, value in values.items():
                pl_module.log(metric, value, prog_bar=metric == "train/max_violation", batch_size=1)

    def _open(self) -> None:
        assert self._balance is not None
        self._close()
        self.reports = self._watch.enter_context(self._balance.watching())

    def _close(self) -> None:
        for layer, report in self.reports:
            for balancer, term in report.losses.items():
                name = f"{layer}.{balancer}"
                self._offered.add(name)
                if term.value.requires_grad:
                    term.value.register_hook(partial(self._use, name))  # type: ignore[no-untyped-call]
        self.reports = []
        self._watch.close()

    def _use(self, name: str, gradient: Tensor) -> None:
        self._used.add(name)

    def _warn_of_unused_losses(self) -> None:
        unused = sorted(self._offered - self._used)
        self._offered, self._used = set(), set()
        if unused and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"no backward pass of this optimizer step used the balance losses {', '.join(unused)}; add "
                "MoECallback.loss(self) to the loss that training_step returns, or remove these balancers "
                "(with activation checkpointing, use_reentrant must be False)"
            )

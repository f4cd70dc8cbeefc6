"""What a recipe builds, as a LightningModule: a model in the layout of the trainer's strategy, an objective, data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from moekit.compat import trainer_of
from moekit.contracts import Batch, Data, Model, ModelOutput, Objective
from moekit.errors import DataError
from moekit.parallel.strategy import ShardedStrategy
from moekit.registry import build
from moekit.spec import load, to_plain
from moekit.spec.recipe import Recipe
from moekit.spec.sharding import sharded_of
from moekit.training.balance import BalanceStep
from moekit.training.build import build_model, build_seeded, build_uncut, compile_parts
from moekit.training.data import StepLoader, ValidationShare
from moekit.training.health.policy import refuse_untrainable
from moekit.training.optim import optimizer_of
from moekit.training.run.start import StartingPoint
from moekit.training.step import OptimizerStep

DEFAULT_STEPS = 1000


class Built(L.LightningModule):
    """What a recipe says, built. A whole model at once; one in shards when the trainer's strategy is known.

    Args:
        spec: a recipe, its name, the path of its file, or the plain mapping that a checkpoint holds.

    Attributes:
        recipe: the resolved recipe.
        model, objective, data: what it builds; ``data`` is None when the recipe names none.
        balance: the balancers' step.
        starting: the weights that the recipe starts from, and which of them move.

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
        refuse_untrainable(self.recipe)
        self.objective = build_seeded(self.recipe.objective, self.recipe.seed)
        self.data: Data | None = None if self.recipe.data is None else build(self.recipe.data)
        self.starting = StartingPoint(self.recipe.start)
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
        return ValidationShare(self.prepare(), self.global_rank, self.trainer.world_size, most)

    def forward(self, inputs: Tensor, valid: Tensor | None = None) -> ModelOutput:
        """The model's output."""
        output: ModelOutput = self.model(inputs, valid=valid)
        return output

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, with its schedule stepped once per optimizer step."""
        steps = self.trainer.max_steps if self.trainer.max_steps > 0 else self.trainer.estimated_stepping_batches
        return optimizer_of(self.recipe, self.model, int(steps))

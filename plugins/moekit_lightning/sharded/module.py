"""The strategy for sharded models: process group, FSDP2, different batches on each rank."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.optim import Optimizer

from moekit.compat import init_process_group, set_timeouts
from moekit.contracts import Model
from moekit.errors import CheckpointError, PluginError, Problem, SpecError
from moekit.moe_layer import MoELayer, check_stacked
from moekit.parallel.mesh import world_mesh
from moekit.params import build_on_meta
from moekit.registry import current
from moekit.shards import fill_shards, sharded_parameters, state_dict_shards
from moekit.spec.fields import ConflictError
from moekit.spec.kinds import DispatcherSpec, ExpertParallelSpec, MoE
from moekit.spec.recipe import Recipe
from moekit.spec.replacing import find_all, replace_all
from moekit.training.build import build_seeded
from moekit.training.module import TRAINED, TRAINED_IN_LIGHTNING
from moekit_lightning.sharded import SCALE_FREE, Sharded
from moekit_lightning.sharded.deferred_init import DeferredInit, defer_init
from moekit_lightning.sharded.fsdp import shard
from moekit_lightning.sharded.gradients import sum_gradients

START_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for another that imports, reads its data or loads a checkpoint, if not longer."""

HALF = (torch.bfloat16, torch.float16)


@runtime_checkable
class ReadsShards(Protocol):
    """A Lightning checkpoint plugin that can read slices of tensors, as ``moekit.training.AtomicCheckpointIO``."""

    def load_handles(self, path: str | os.PathLike[str], names: Collection[str]) -> dict[str, Any]:
        """A checkpoint's tree; below the keys ``names`` each tensor is a handle with ``read(offset, sizes)``."""


class ShardedStrategy(ModelParallelStrategy):
    """Trains a model with sharded parameters, gradients and optimizer state. Gradients are summed over ranks.

    The process group uses gloo on CPUs and NCCL on CUDA.

    The Trainer sets the precision. Under ``*-mixed`` weights are all-gathered in fp32 and autocast works as in one
    process, so routers stay in fp32. Under ``bf16-mixed`` experts that are a unit of their own are gathered as autocast
    rounds them, with the same result (``fsdp.shard``). Under ``bf16-true`` and ``16-true`` weights are all-gathered in
    half precision, and gradients are reduced in fp32.
    """

    def __init__(self, layout: Sharded) -> None:
        super().__init__(timeout=max(START_TIMEOUT, timedelta(seconds=layout.timeout)))
        self.layout = layout
        self._accumulating = False

    def build(self, recipe: Recipe, prepare: Callable[[Model], None]) -> Model:
        """Builds the model with this rank's experts, calls ``prepare`` with it, and shards it."""
        model, deferred = self.build_unsharded(recipe)
        prepare(model)
        self.shard(model, deferred)
        return model

    def build_unsharded(self, recipe: Recipe) -> tuple[Model, DeferredInit]:
        """The model with this rank's experts alone (``with_expert_parallel``), to be passed to ``shard``.

        Its weight matrices are on the meta device; the returned ``DeferredInit`` initialises them after sharding. A
        model that initialises weights by other means than ``moekit.weights.init_weights`` is built whole on every rank.
        """
        spec = with_expert_parallel(recipe, self.layout).model
        with defer_init() as deferred:
            model: Model = build_seeded(spec, recipe.seed)
        if not deferred.covers(model):
            model, deferred = build_seeded(spec, recipe.seed), DeferredInit()
        return model, deferred

    def check_ranks(self, recipe: Recipe, ranks: int) -> None:
        """Checks the layout (``check_layout``).

        Raises:
            SpecError: ``ranks`` ranks cannot train the recipe in it.
        """
        check_layout(recipe, self.layout, ranks)

    def setup_environment(self) -> None:
        """Creates the process group and the mesh of all ranks."""
        init_process_group(self)
        self._device_mesh = world_mesh(self.root_device.type)

    def on_train_start(self) -> None:
        """From now on a rank waits as long as the layout says. One that starts slowly is waited for longer."""
        set_timeouts(timedelta(seconds=self.layout.timeout))

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every rank gets different samples."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def shard(self, model: Model, deferred_init: DeferredInit | None = None) -> None:
        """Converts a model to the Trainer's precision, shards it, and runs its deferred initialisation.

        Args:
            model: of ``build_unsharded``, on the CPU or the meta device.
            deferred_init: initialises the parameters on the meta device.

        Raises:
            SpecError: 16-mixed with an ``ep`` above 1, or with a replicated dense part.
        """
        if getattr(self.precision_plugin, "scaler", None) is not None and (what := self.layout.no_loss_scale()):
            raise SpecError([Problem(what=what, at="trainer.precision", expected=SCALE_FREE)])
        self.precision_plugin.convert_module(model)
        half = any(p.dtype in HALF for p in model.parameters())
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32 if half else None)
        replicate = self.layout.dense == "replicate"
        narrow = torch.bfloat16 if str(self.precision_plugin.precision) == "bf16-mixed" else None
        shard(model, self.layout.ep, self.root_device.type, policy, replicate_dense=replicate, bank_dtype=narrow)
        if deferred_init is not None:
            deferred_init.materialize(model, self.root_device.type)

    # Gradients: FSDP2 sums those of sharded parameters in backward; those of replicated ones are summed here.

    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Lightning calls ``backward`` in this context for all micro-batches of a step but the last."""
        self._accumulating = True
        waiting = [m for m in self._module.modules() if isinstance(m, FSDPModule) and self.layout.reduce == "step"]
        for unit in waiting:
            unit.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            self._accumulating = False
            for unit in waiting:
                unit.set_requires_gradient_sync(True, recurse=False)

    def post_backward(self, closure_loss: Tensor) -> None:
        """Sums gradients of replicated parameters over ranks, once in a step: before they are unscaled, for one."""
        if self.layout.dense == "replicate" and not self._accumulating:
            sharded = sharded_parameters(self._module)
            replicated = (p for p in self._module.parameters() if p not in sharded)
            sum_gradients(replicated, self.device_mesh.get_group())

    # Checkpoints: every rank saves and loads its own shards.

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning restores optimizers through ``load_optimizer_state_dict``, as for other strategies."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This rank's shards of the module's tensors."""
        return dict(state_dict_shards(self._module))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """This rank's shards of an optimizer's state."""
        inner = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return inner.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Saves on all ranks together."""
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A checkpoint's tree, with handles for the tensors of the model and of optimizers; a rank reads its slices.

        Raises:
            CheckpointError: the checkpoint plugin cannot read slices, or the checkpoint is missing or damaged.
        """
        if not isinstance(self.checkpoint_io, ReadsShards):
            raise CheckpointError(
                f"{type(self.checkpoint_io).__name__} cannot read slices of tensors from a checkpoint\n"
                "  expected Trainer(plugins=[moekit.training.AtomicCheckpointIO()])"
            )
        sharded = ("state_dict", TRAINED, TRAINED_IN_LIGHTNING, "optimizer_states")
        return self.checkpoint_io.load_handles(checkpoint_path, sharded)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Loads this rank's shards of the model.

        Raises:
            CheckpointError: names or shapes differ from the module's.
        """
        saved, shards = checkpoint["state_dict"], state_dict_shards(self._module)
        different = [name for name in {**saved, **shards} if name not in saved or name not in shards]
        different += [n for n, each in shards.items() if n in saved and tuple(saved[n].shape) != each.global_shape]
        if different:
            raise CheckpointError(f"the checkpoint does not fit the model: {', '.join(different[:5])}")
        fill_shards(list(shards.values()), lambda name, offset, sizes: saved[name].read(offset, sizes))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads this rank's shards of each optimizer's state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def teardown(self) -> None:
        """Also waits for a checkpoint that is still being written."""
        super().teardown()
        self.checkpoint_io.teardown()

    @property
    def _module(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module


def sharded(spec: Sharded, recipe: Recipe) -> ShardedStrategy:
    """The strategy."""
    return ShardedStrategy(spec)


def with_expert_parallel(recipe: Recipe, layout: Sharded) -> Recipe:
    """The recipe that every rank builds: if ``ep`` > 1, each mixture's dispatcher is wrapped in an expert-parallel one.

    One that is expert-parallel already gets the size ``ep``, if it states none.

    Raises:
        SpecError: no dispatcher is expert-parallel, or several are; or a mixture's own has another size than ``ep``.
    """

    def wrapped(dispatcher: DispatcherSpec) -> DispatcherSpec:
        if not isinstance(dispatcher, ExpertParallelSpec):
            return dispatcher if layout.ep == 1 else _expert_parallel()(size=layout.ep, local=dispatcher)
        if dispatcher.size not in (None, layout.ep):
            what = f"dispatcher {type(dispatcher).__name__} has size={dispatcher.size}, the strategy ep={layout.ep}"
            expected = f"ep={dispatcher.size}, or a dispatcher without a size"
            raise SpecError([Problem(what=what, at="trainer.strategy.ep", expected=expected)])
        return replace(dispatcher, size=layout.ep)

    return replace_all(recipe, DispatcherSpec, wrapped)


def _expert_parallel() -> type[ExpertParallelSpec]:
    """The spec class of the dispatcher that distributes experts over ranks."""
    found: dict[str, type[ExpertParallelSpec]] = {}
    for component in current().components("dispatcher"):
        with contextlib.suppress(PluginError):  # of another dispatcher, which this run does not use
            if issubclass(spec := component.spec_class, ExpertParallelSpec):
                found[component.full_name] = spec
    if len(found) != 1:
        listed = ": " + ", ".join(found) if found else ""
        raise SpecError(
            [
                Problem(
                    what=f"{len(found) or 'no'} dispatchers distribute experts over ranks{listed}",
                    at="trainer.strategy.ep",
                    expected="each layer's dispatcher to be one of them" if found else "1",
                    list_with="moekit ls dispatchers",
                )
            ]
        )
    return next(iter(found.values()))


def check_layout(recipe: Recipe, layout: Sharded, world: int) -> None:
    """Checks that a recipe can be trained in a layout by ``world`` ranks.

    Raises:
        SpecError: ``ep`` does not divide the number of ranks or the experts of a layer; a dispatcher does not work
            under expert parallelism, or has another size; or the optimizer needs unsharded tensors.
        MoekitError: ranks cannot share the experts of a layer, because they differ.
    """
    optimizer = recipe.optimizer
    if optimizer is not None and not optimizer.takes_shards and world > 1:
        what = f"{type(optimizer).__name__} needs unsharded tensors, but this run shards parameters"
        expected = "one that takes shards, or trainer.strategy=ddp"
        raise SpecError([Problem(what=what, at="optimizer", expected=expected, list_with="moekit ls optimizers")])
    if world % layout.ep:
        raise SpecError([_does_not_divide(layout.ep, f"the {world} rank{'s' if world > 1 else ''}", world)])
    for moe in find_all(recipe.model, MoE):
        if moe.experts.count % layout.ep:
            raise SpecError(
                [_does_not_divide(layout.ep, f"the {moe.experts.count} experts of a layer", moe.experts.count)]
            )
    if layout.ep > 1:
        for module in build_on_meta(recipe.model).modules():
            if isinstance(module, MoELayer):
                check_stacked(module.experts)
    try:
        with_expert_parallel(recipe, layout)
    except ConflictError as error:
        raise SpecError(
            Problem(what=sentence, at="trainer.strategy.ep", expected="1") for sentence in error.sentences
        ) from error


def _does_not_divide(ep: int, what: str, of: int) -> Problem:
    return Problem(
        what=f"ep={ep} does not divide {what}",
        at="trainer.strategy.ep",
        expected="one of " + ", ".join(str(n) for n in range(1, of + 1) if of % n == 0),
        notes=() if of > 1 else ("trainer.devices sets the number of ranks per machine; default: 1",),
    )

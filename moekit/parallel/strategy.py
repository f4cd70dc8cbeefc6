"""The Lightning strategy of a model in shards: a process group, FSDP2, and every rank with batches of its own."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from typing import Any, Protocol, cast, runtime_checkable

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim import Optimizer

from moekit.compat import init_process_group
from moekit.contracts import Model
from moekit.errors import CheckpointError, Problem, SpecError
from moekit.parallel.deferred_init import DeferredInit
from moekit.parallel.mesh import world_mesh
from moekit.parallel.sharding import shard
from moekit.registry import current
from moekit.shards.shard import fill_shards, state_dict_shards
from moekit.spec.fields import ConflictError, Spec
from moekit.spec.kinds import DispatcherSpec, MoE
from moekit.spec.recipe import Recipe
from moekit.spec.replacing import replace_all
from moekit.spec.sharding import Sharded

HALF = (torch.bfloat16, torch.float16)


@runtime_checkable
class ReadsShards(Protocol):
    """A checkpoint plugin that reads any shard of a tensor, such as ``moekit.training.AtomicCheckpointIO``."""

    def load_handles(self, path: str | os.PathLike[str], names: Collection[str]) -> dict[str, Any]:
        """The tree of a checkpoint; below the keys ``names`` each tensor is a handle with ``read(offset, shape)``."""


class ShardedStrategy(ModelParallelStrategy):
    """Trains a model whose parameters, gradients and optimizer state are in shards. Gradients come out as sums.

    ``LitMoE.configure_model`` builds the model as ``laid_out`` says and hands it to ``shard``. The process group is
    gloo's on a CPU and NCCL's on CUDA.

    Precision is the Trainer's. Under ``*-mixed`` weights are gathered in fp32 and autocast makes of them what it makes
    of them in one process, so that routers keep theirs. Under ``*-true`` with half precision weights are gathered as
    they are, and gradients are added up over ranks in fp32.

    Args:
        layout: how many ranks share the experts, and how long one waits for the others.
    """

    def __init__(self, layout: Sharded) -> None:
        super().__init__(timeout=timedelta(seconds=layout.timeout))
        self.layout = layout

    def setup_environment(self) -> None:
        """Makes the process group, and the mesh of all ranks."""
        init_process_group(self)
        self._device_mesh = world_mesh(self.root_device.type)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every rank sees data of its own."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def shard(self, model: Model, waiting: DeferredInit | None = None) -> None:
        """Converts a model that was built as ``laid_out`` says to the Trainer's precision, and cuts it up.

        Args:
            model: on the CPU.
            waiting: draws what of it has no memory yet.
        """
        self.precision_plugin.convert_module(model)
        half = any(p.dtype in HALF for p in model.parameters())
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32 if half else None)
        shard(model, self.layout.ep, self.root_device.type, policy)
        if waiting is not None:
            waiting.materialize(model, self.root_device.type)

    # Checkpoints: every rank saves, and reads, the pieces that it holds.

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning is to hand over an optimizer's state, as it does elsewhere."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What this rank holds of the module's tensors, as boxes."""
        return dict(state_dict_shards(self._module))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """What this rank holds of an optimizer's state, as boxes."""
        inner = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return inner.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Saves, with all ranks."""
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The tree of a checkpoint. Of the model and of optimizers it holds handles, from which a rank reads slices."""
        if not isinstance(self.checkpoint_io, ReadsShards):
            raise CheckpointError(
                f"{type(self.checkpoint_io).__name__} cannot read a checkpoint shard by shard\n"
                "  expected Trainer(plugins=[moekit.training.AtomicCheckpointIO()])"
            )
        return self.checkpoint_io.load_handles(checkpoint_path, ("state_dict", "optimizer_states"))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Fills this rank's pieces.

        Raises:
            CheckpointError: names or shapes are not the module's.
        """
        saved, boxes = checkpoint["state_dict"], state_dict_shards(self._module)
        strays = [name for name in {**saved, **boxes} if name not in saved or name not in boxes]
        strays += [n for n, b in boxes.items() if n in saved and tuple(saved[n].shape) != b.global_shape]
        if strays:
            raise CheckpointError(f"the checkpoint does not fit the model: {', '.join(strays[:5])}")
        fill_shards(list(boxes.values()), lambda name, offset, sizes: saved[name].read(offset, sizes))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Hands each optimizer its state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def teardown(self) -> None:
        """Waits for what is being written, too."""
        super().teardown()
        self.checkpoint_io.teardown()

    @property
    def _module(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module


def with_expert_parallel(recipe: Recipe, layout: Sharded) -> Recipe:
    """The recipe as every rank builds it: each mixture's dispatcher within ``expert_parallel`` where ranks share."""
    if layout.ep == 1:
        return recipe
    parallel = current().get("dispatcher", "expert_parallel").spec

    def within(dispatcher: DispatcherSpec) -> DispatcherSpec:
        if isinstance(dispatcher, parallel):
            return dispatcher
        return cast(DispatcherSpec, cast(Any, parallel)(size=layout.ep, local=dispatcher))

    return replace_all(recipe, DispatcherSpec, within)


def check_layout(recipe: Recipe, layout: Sharded, world: int) -> None:
    """Refuses a layout that does not come out even.

    Args:
        recipe: of the model.
        layout: how many ranks share the experts.
        world: all ranks.

    Raises:
        SpecError: ``ep`` does not divide the ranks, or the experts of a layer; or their dispatcher cannot share; or the
            optimizer looks at whole tensors.
    """
    optimizer = recipe.optimizer
    if optimizer is not None and not optimizer.takes_shards and world > 1:
        what = f"{type(optimizer).__name__} looks at whole tensors, and no rank has one whole"
        expected = "one such as adamw or adafactor, or trainer.strategy=ddp"
        raise SpecError([Problem(what=what, at="optimizer", expected=expected, list_with="moekit ls optimizers")])
    if world % layout.ep:
        raise SpecError([_uneven(layout.ep, f"the {world} rank{'s' if world > 1 else ''}", world)])
    for moe in mixtures(recipe.model):
        if moe.experts.count % layout.ep:
            raise SpecError([_uneven(layout.ep, f"the {moe.experts.count} experts of a layer", moe.experts.count)])
    try:
        with_expert_parallel(recipe, layout)
    except ConflictError as error:
        raise SpecError(
            Problem(what=sentence, at="trainer.strategy.ep", expected="1") for sentence in error.sentences
        ) from error


def _uneven(ep: int, what: str, of: int) -> Problem:
    return Problem(
        what=f"ep={ep} does not divide {what}",
        at="trainer.strategy.ep",
        expected="one of " + ", ".join(str(n) for n in range(1, of + 1) if of % n == 0),
        notes=() if of > 1 else ("trainer.devices says how many ranks there are on a machine; 1 when left out",),
    )


def mixtures(spec: Spec) -> Iterable[MoE]:
    """Every mixture layer below a spec."""
    found: list[MoE] = []

    def keep(moe: MoE) -> MoE:
        found.append(moe)
        return moe

    replace_all(spec, MoE, keep)
    return found

"""The Lightning strategy of a model in shards: a process group, FSDP2, and every rank with batches of its own."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, cast

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import MixedPrecisionPolicy

from moekit.contracts import Model
from moekit.errors import Problem, SpecError
from moekit.parallel.mesh import world_mesh
from moekit.parallel.sharding import shard
from moekit.registry import current
from moekit.spec.fields import ConflictError, Spec
from moekit.spec.kinds import DispatcherSpec, MoE
from moekit.spec.recipe import Recipe
from moekit.spec.replacing import replace_all
from moekit.spec.sharding import Sharded

HALF = (torch.bfloat16, torch.float16)


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
        self._setup_distributed()
        self._device_mesh = world_mesh(self.root_device.type)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every rank sees data of its own."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def shard(self, model: Model) -> None:
        """Converts a model that was built as ``laid_out`` says to the Trainer's precision, and cuts it up."""
        self.precision_plugin.convert_module(model)
        half = any(p.dtype in HALF for p in model.parameters())
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32 if half else None)
        shard(model, self.layout.ep, self.root_device.type, policy)


def laid_out(recipe: Recipe, layout: Sharded) -> Recipe:
    """The recipe as every rank builds it: each mixture's dispatcher within ``expert_parallel`` where ranks share."""
    if layout.ep == 1:
        return recipe
    parallel = current().get("dispatcher", "expert_parallel").spec

    def within(dispatcher: DispatcherSpec) -> DispatcherSpec:
        if isinstance(dispatcher, parallel):
            return dispatcher
        return cast(DispatcherSpec, cast(Any, parallel)(size=layout.ep, local=dispatcher))

    return replace_all(recipe, DispatcherSpec, within)


def refuse_uneven(recipe: Recipe, layout: Sharded, world: int) -> None:
    """Refuses a layout that does not come out even.

    Args:
        recipe: of the model.
        layout: how many ranks share the experts.
        world: all ranks.

    Raises:
        SpecError: ``ep`` does not divide the ranks, or the experts of a layer; or their dispatcher cannot share.
    """
    if world % layout.ep:
        raise SpecError([_uneven(layout.ep, f"the {world} ranks", world)])
    for moe in mixtures(recipe.model):
        if moe.experts.count % layout.ep:
            raise SpecError([_uneven(layout.ep, f"the {moe.experts.count} experts of a layer", moe.experts.count)])
    try:
        laid_out(recipe, layout)
    except ConflictError as error:
        raise SpecError(
            Problem(what=sentence, at="trainer.strategy.ep", expected="1") for sentence in error.sentences
        ) from error


def _uneven(ep: int, what: str, of: int) -> Problem:
    return Problem(
        what=f"ep={ep} does not divide {what}",
        at="trainer.strategy.ep",
        expected="one of " + ", ".join(str(n) for n in range(1, of + 1) if of % n == 0),
    )


def mixtures(spec: Spec) -> Iterable[MoE]:
    """Every mixture layer below a spec."""
    found: list[MoE] = []

    def keep(moe: MoE) -> MoE:
        found.append(moe)
        return moe

    replace_all(spec, MoE, keep)
    return found

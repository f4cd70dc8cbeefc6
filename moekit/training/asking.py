"""What is asked of a built model outside of its training steps: the names of its metrics; all of it, put together."""

from __future__ import annotations

import torch
from torch.distributed.fsdp import FSDPModule

from moekit.contracts import Data, Model
from moekit.parallel.sharding import tensors_of
from moekit.shards.gather import gather
from moekit.training.build import build_model
from moekit.training.built import Built
from moekit.training.data import batch_at
from moekit.training.readings import sums_of


def metric_names(module: Built) -> list[str]:
    """Names that training logs of its objective, found by one forward pass that leaves no trace."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        batch = batch_at(module.prepare(), seed=module.recipe.seed, step=0)
        loss = module.objective(module.model.on(batch), batch)
    return [f"train/{name}" for name in sums_of(loss)]


def whole_model(module: Built) -> Model | None:
    """The trained model, whole, for whoever measures or draws: on rank 0; None elsewhere, and where nobody does.

    A model in shards is put together on the CPU of rank 0, tensor by tensor. Collective.
    """
    if not isinstance(module.model, FSDPModule):
        return module.model
    data = module.data
    if data is None or (type(data).scores is Data.scores and type(data).picture is Data.picture):
        return None
    tensors = gather(tensors_of(module.model))
    if tensors is None:
        return None
    model = build_model(module.recipe)
    model.load_state_dict(tensors, assign=True)
    return model.train(module.model.training)

"""``test_adafactor_in_shards`` runs this on every rank: each layout is compared with the steps of one process.

Gradients are made up, equal in all layouts, so that only the optimizer is tested. The model is hard to shard: uneven
rows, ranks without rows, matrices sharded along either dimension, and experts that are distributed over ranks and
sharded again.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moekit.checkpoints.reading import open_checkpoint
from moekit.checkpoints.writing import save_tree
from moekit.contracts import Init, Model
from moekit.moe_layer import MoELayer
from moekit.registry import build
from moekit.shards import TensorShard, local, optimizer_state_shards, parameter_shards, slices_of
from moekit.spec.kinds import MoE
from moekit.training.optim import save_by_name, split_by_layout
from moekit.weights import init_weights
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
from moekit_lightning.sharded.fsdp import shard
from moekit_optimizers.adafactor import Adafactor
from moekit_routers.topk import TopK

SHAPES = {
    "uneven": (33, 3), "few": (5, 7), "one": (1, 7), "across": (3, 8), "stack": (3, 4, 5), "columns": (3, 5, 8),
    "vector": (3,), "long": (16,), "idle": (4, 4),
}  # fmt: skip
STEPS = 2
SCALES = (1.0, 0.1, 10.0)
"""Of gradients: a small one after a large one makes an update that is not clipped."""


class UnevenModel(nn.Module):
    """A mixture layer, and parameters of the shapes above."""

    def __init__(self, ep: int, experts: int) -> None:
        super().__init__()
        own = ExpertParallel(size=ep, local=Grouped()) if ep > 1 else Grouped()
        glu = Glu(count=experts, hidden=8, scale_bias=True)
        self.layer = MoELayer.from_spec(MoE(router=TopK(top_k=1), experts=glu, dispatcher=own), dim=5)
        self.rest = nn.ParameterDict({name: nn.Parameter(torch.empty(shape)) for name, shape in SHAPES.items()})
        init_weights(self.layer, Init(std=0.5), seed=3)
        g = torch.Generator().manual_seed(4)
        for p in self.rest.values():
            nn.init.normal_(p, generator=g)

    def stack(self) -> list[nn.Module]:
        return []


def model_of(ep: int, experts: int, sharded: bool = True) -> Model:
    model = cast(Model, UnevenModel(ep if sharded else 1, experts).double())
    if sharded:
        shard(model, ep, "cpu")
    return model


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = build(Adafactor(lr=0.05, clip=0.7, weight_decay=0.1), model)
    split_by_layout(optimizer)
    save_by_name(optimizer, model)
    return cast(torch.optim.Optimizer, optimizer)


def take(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """A step along made-up gradients; the parameter ``idle`` has none."""
    for group in optimizer.param_groups:
        group["lr"] = 0.05 / (1 + step)
    for (name, box), p in zip(parameter_shards(model).items(), model.parameters(), strict=True):
        if "idle" in name:
            continue
        g = torch.Generator().manual_seed(100 * step + sum(map(ord, name)))
        whole = torch.randn(box.global_shape, generator=g, dtype=p.dtype) * SCALES[step]
        whole *= torch.linspace(0.1, 2, len(whole), dtype=p.dtype).view(-1, *(1,) * (whole.ndim - 1))
        p.grad = torch.zeros_like(p)
        local(p.grad).copy_(whole[slices_of(box.offset, box.sizes)])
    optimizer.step()


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, TensorShard]:
    """This rank's shards of weights and state."""
    state = optimizer_state_shards(model, optimizer)
    boxes = {f"{name}/{key}": cast(TensorShard, box) for name, kept in state.items() for key, box in kept.items()}
    return parameter_shards(model) | boxes


@cache
def alone(experts: int, steps: int) -> dict[str, Tensor]:
    """Weights and state of one process after so many steps."""
    model = model_of(1, experts, sharded=False)
    optimizer = optimizer_of(model)
    for step in range(steps):
        take(model, optimizer, step)
    return {name: box.tensor for name, box in held(model, optimizer).items()}


def apart(model: nn.Module, optimizer: torch.optim.Optimizer, expected: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference of weights and of state from those of one process, relative to the largest number."""
    found = held(model, optimizer)
    assert found.keys() == expected.keys()
    worst = {"weights": 0.0, "state": 0.0}
    for name, box in found.items():
        whole = expected[name]
        assert box.global_shape == whole.shape, (name, box.global_shape, whole.shape)
        difference = local(box.tensor) - whole[slices_of(box.offset, box.sizes)]
        kind = "state" if "/" in name else "weights"
        if difference.numel():
            worst[kind] = max(worst[kind], float(difference.abs().max() / whole.abs().max()))
    return worst


def messages(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> int:
    """Takes a step; returns the number of messages to the group of ranks that got most."""
    groups: list[Any] = []
    send = dist.all_reduce

    def counting(t: Tensor, group: Any, async_op: bool) -> Any:
        groups.append(group)
        return send(t, group=group, async_op=async_op)

    with mock.patch.object(dist, "all_reduce", counting):
        take(model, optimizer, step)
    return max(map(groups.count, groups))


def read(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Loads a model and its optimizer from a checkpoint of any layout."""
    saved = open_checkpoint(path).plain
    for name, box in parameter_shards(model).items():
        local(box.tensor).copy_(saved["model"][name].read(box.offset, box.sizes))
    optimizer.load_state_dict(saved["optimizer"])


def run(layout: tuple[int, int], folder: Path) -> list[dict[str, Any]]:
    """Results of a layout: alone; and, if the layout before it left a checkpoint, from there and a step later."""
    ep, experts = layout
    model = model_of(ep, experts)
    optimizer = optimizer_of(model)
    sent = max(messages(model, optimizer, step) for step in range(STEPS))
    rows = [{"layout": layout, "sent": sent, **apart(model, optimizer, alone(experts, STEPS))}]
    left = folder / str(experts)
    if left.exists():
        model = model_of(ep, experts)
        optimizer = optimizer_of(model)
        read(model, optimizer, left)
        rows.append({"layout": layout, "read": True, **apart(model, optimizer, alone(experts, STEPS))})
        take(model, optimizer, STEPS)
        rows.append({"layout": layout, "read": True, **apart(model, optimizer, alone(experts, STEPS + 1))})
    else:
        save_tree({"model": parameter_shards(model), "optimizer": optimizer.state_dict()}, left)
    return rows


def main(out: str, layouts: str) -> None:
    dist.init_process_group("gloo")
    mine = [row for layout in json.loads(layouts) for row in run(tuple(layout), Path(out).parent)]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(every))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

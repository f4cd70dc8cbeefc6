"""How a model is cut up: what is gathered at once, in which dtypes, in equal parts; gradients are sums over ranks."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from fake_ranks import WORLD, as_rank
from test_sharding import OPTIONS, model_of
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from moekit import load
from moekit.compat import TorchDispatchMode
from moekit.contracts import Model
from moekit.parallel.sharding import shard
from moekit.parallel.strategy import with_expert_parallel
from moekit.registry import build
from moekit.shards.shard import local, parameter_shards
from moekit.spec.sharding import Sharded


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, by elements and dtype, what is gathered and what is reduced; the result of every reduction is 1."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gathered: Counter[tuple[int, torch.dtype]] = Counter()
        self.reduced: Counter[tuple[int, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.c10d._allgather_base_.default:
            self.gathered[args[0].numel(), args[0].dtype] += 1
            args[0].view(-1, args[1].numel()).copy_(args[1].clone())
        elif func is torch.ops.c10d._reduce_scatter_base_.default:
            self.reduced[args[1].numel(), args[1].dtype] += 1
            args[0].fill_(1)
        elif func is torch.ops.c10d.alltoall_base_.default:
            args[0].copy_(args[1])  # as if every rank had the same tokens
        return result


FFN = "blocks.1.ffn"
PARTS = (f"{FFN}.router.", f"{FFN}.experts.", f"{FFN}.shared.")


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize(
    ("ep", "units", "experts"),
    [
        (1, ("blocks.0.", "blocks.1."), 1),
        (2, (*PARTS, "blocks.0.", "blocks.1."), 2),  # a layer whose experts have fewer holders, by itself
        (4, ("blocks.0.", "blocks.1."), 0),
    ],
)
def test_a_block_is_gathered_at_a_time_and_gradients_are_summed_in_the_policy_s_dtype(
    ep: int, units: tuple[str, ...], experts: int
) -> None:
    """Sizes of all that is gathered in a forward pass, and of what is reduced in backward, as torch is asked for it.

    ``experts`` is over how many ranks a rank's experts are shared with others: 0 where no other rank has them.
    """
    with as_rank(1):
        model = model_of(ep)
        shard(model, ep, "cpu", MixedPrecisionPolicy(reduce_dtype=torch.float64))
        with Collectives() as forward:
            output = model(torch.zeros(2, 8, dtype=torch.int64))
        with Collectives() as backward:
            output.y.sum().backward()
        gradients = [local(p.grad) for p in model.parameters() if isinstance(p, DTensor) and p.grad is not None]

    expected: Counter[str] = Counter()
    for name, box in parameter_shards(model).items():
        unit = next((unit for unit in units if name.startswith(unit)), "the rest")
        routed = name.startswith(PARTS[1])
        expected[unit] += math.prod(box.global_shape) * (min(experts, 1) if routed else 1) // (ep if routed else 1)
    assert forward.gathered == Counter((size, torch.float32) for size in expected.values())
    assert backward.reduced == Counter((size, torch.float64) for size in expected.values())
    assert gradients and all((gradient == 1).all() for gradient in gradients), "divided after they were reduced"


@pytest.mark.parametrize("ep", [1, 2])
def test_experts_that_do_not_go_round_are_cut_across(ep: int) -> None:
    """Six over four ranks, or three over two, would leave some with more: each has a part of every expert."""
    changes = ["model.moe.experts.count=6", "model.moe.router.groups=2", "model.moe.router.top_groups=1"]
    with as_rank(3):
        model: Model = build(with_expert_parallel(load("deepseek_v3", [*OPTIONS, *changes]), Sharded(ep=ep)).model)
        shard(model, ep, "cpu")
        held = {name: box for name, box in parameter_shards(model).items() if ".experts." in name}
    assert held
    for name, box in held.items():
        assert box.tensor.numel() * WORLD == math.prod(box.global_shape), name

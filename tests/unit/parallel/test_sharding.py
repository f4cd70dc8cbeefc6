"""Four ranks one after the other in one process (``fake_ranks.py``).

What is laid out is seen here; what is sent and added up, in several processes (``tests/e2e/test_sharded``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from fake_ranks import WORLD, as_rank
from torch import Tensor
from torch.distributed.tensor import DTensor

from moekit import load
from moekit.contracts import Init, Model
from moekit.parallel.norm import total_norm
from moekit.parallel.sharding import shard
from moekit.parallel.strategy import with_expert_parallel
from moekit.registry import build
from moekit.shards.shard import TensorShard, optimizer_state_shards, parameter_shards, slices_of, state_dict_shards
from moekit.spec.sharding import Sharded
from moekit.weights import init_weights

LAYOUTS = pytest.mark.parametrize("ep", [1, 2, 4])
OPTIONS = [
    "model.attention={use: mla, heads: 2, query_rank: 8, kv_rank: 8, nope_dim: 4, rope_dim: 4, value_dim: 4}",
    "model.dim=16", "model.depth=2", "model.ffn.hidden=24", "model.vocab=48", "model.moe.router.top_k=3",
    "model.moe.router.groups=4", "model.moe.router.top_groups=2", "model.moe.experts.count=8",
    "model.moe.experts.hidden=8", "model.moe.shared.hidden=8", "model.mtp=null", "data=null",
]  # fmt: skip
RECIPE = load("deepseek_v3", OPTIONS)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A model in shards, as one rank has it.

    Attributes:
        weights, state: boxes of parameters, and of the momentum of each; of everything saved.
        saved: names of what is saved and not cut.
        meshes: the ranks over which each parameter is cut; this rank alone where it is not.
        norm, squares: as ``look_at_norm`` says.
    """

    weights: dict[str, TensorShard]
    state: dict[str, TensorShard]
    saved: set[str]
    meshes: dict[str, list[int]]
    norm: float
    squares: list[Tensor]


def model_of(ep: int) -> Model:
    model: Model = build(with_expert_parallel(RECIPE, Sharded(ep=ep)).model)
    init_weights(model, Init(std=0.5), seed=3)
    return model


@cache
def seen(ep: int) -> tuple[Seen, ...]:
    """What each rank has."""
    found = []
    for rank in range(WORLD):
        with as_rank(rank):
            model = model_of(ep)
            shard(model, ep, "cpu")
            found.append(look(model))
    return tuple(found)


def look_at_norm(model: Model) -> tuple[float, list[Tensor]]:
    """The norm, weights taken for gradients, had other ranks nothing; and what was added up over ranks, left out."""
    for p in model.parameters():
        p.grad = p.detach().clone()
    squares: list[Tensor] = []

    def add(tensor: Tensor, group: dist.ProcessGroup | None = None) -> None:
        assert group is None, "not over all ranks"
        squares.append(tensor.clone())
        tensor.zero_()

    with mock.patch.object(dist, "all_reduce", add):
        return float(total_norm(model)), squares


def look(model: Model) -> Seen:
    mesh = {name: p.device_mesh.mesh.tolist() for name, p in model.named_parameters() if isinstance(p, DTensor)}
    norm, squares = look_at_norm(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, foreach=False)
    optimizer.step()
    return Seen(
        weights=parameter_shards(model),
        state={name: kept["momentum_buffer"] for name, kept in optimizer_state_shards(model, optimizer).items()},
        saved={name for name, box in state_dict_shards(model).items() if box.sizes == box.global_shape},
        meshes={name: mesh.get(name, [dist.get_rank()]) for name, _ in model.named_parameters()},
        norm=norm,
        squares=squares,
    )


@LAYOUTS
@pytest.mark.parametrize("what", ["weights", "state"])
def test_every_number_lies_on_one_rank_in_its_place(ep: int, what: str) -> None:
    """Experts are dealt out and cut over the ranks that have the same, all else over every rank; momentum alike."""
    pieces: list[dict[str, TensorShard]] = [getattr(rank, what) for rank in seen(ep)]
    expected = {name: p.detach() for name, p in model_of(1).named_parameters()}
    assert all(boxes.keys() == expected.keys() for boxes in pieces)
    for name, tensor in expected.items():
        times, whole = torch.zeros(tensor.shape), torch.zeros_like(tensor)
        for box in (boxes[name] for boxes in pieces):
            assert box.global_shape == tensor.shape
            times[slices_of(box.offset, box.sizes)] += 1
            whole[slices_of(box.offset, box.sizes)] = box.tensor
        assert (times == 1).all(), name
        assert torch.equal(whole, tensor), name


@LAYOUTS
def test_who_has_pieces_of_the_same(ep: int) -> None:
    """Of a bank its replicas; of all else, routers and shared experts too, every rank."""
    for rank, found in enumerate(seen(ep)):
        for name, ranks in found.meshes.items():
            routed = ".experts." in name and ep > 1
            assert ranks == (list(range(rank % ep, WORLD, ep)) if routed else list(range(WORLD))), name


@LAYOUTS
def test_the_norm_counts_every_gradient_once(ep: int) -> None:
    """Squares of shards are added up over all ranks; here by hand, for nothing is sent."""
    assert all(rank.norm == 0 for rank in seen(ep)), "something is counted on every rank"
    squares = torch.stack([torch.stack(rank.squares).sum() for rank in seen(ep)])
    expected = torch.cat([p.detach().flatten().double() for p in model_of(1).parameters()]).norm()
    torch.testing.assert_close(squares.sum().sqrt(), expected, rtol=1e-6, atol=0)


def test_what_every_rank_holds_whole_is_not_added_up() -> None:
    """In a training loop of one's own: experts are dealt out, and nothing is cut."""
    with as_rank(1):
        model = model_of(2)
        found = look_at_norm(model)
    whole = [p.detach().flatten().double() for name, p in model.named_parameters() if ".experts." not in name]
    routed = [p.detach().flatten().double() for name, p in model.named_parameters() if ".experts." in name]
    assert found[0] == pytest.approx(float(torch.cat(whole).norm()), rel=1e-6)
    assert float(torch.stack(found[1]).sum().sqrt()) == pytest.approx(float(torch.cat(routed).norm()), rel=1e-6)


def test_buffers_are_whole_on_every_rank() -> None:
    model = model_of(1)
    buffers = model.state_dict().keys() - dict(model.named_parameters()).keys()
    assert buffers and all(buffers <= rank.saved for rank in seen(2))

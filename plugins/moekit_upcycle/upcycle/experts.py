"""The experts of a mixture, made from one dense feed-forward net: copies, shards, units initialised anew, noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moekit.errors import MoekitError
from moekit.seeds import seed_of
from moekit_upcycle.upcycle import Upcycle


class Split(NamedTuple):
    """How a parameter of a net depends on its hidden units.

    Attributes:
        dim: the dimension of the hidden units, without that of experts; None if it has none.
        parts: how many runs of hidden units are there, one after the other: 2 for gate and up.
        scaled: whether the net's output grows with it, once: gates that add up to another number than 1 scale it.
    """

    dim: int | None
    parts: int = 1
    scaled: bool = False


SPLITS: Mapping[str, Split] = {
    "w_gate_up_EHD": Split(0, parts=2),
    "b_gate_up_EH": Split(0, parts=2),
    "w_up_EHD": Split(0),
    "b_up_EH": Split(0),
    "scale_EH": Split(0),
    "w_down_EOH": Split(1, scaled=True),
    "b_down_EO": Split(None, scaled=True),
    "w_output_EXD": Split(None),
}
"""The parameters of the experts that can be made from a dense net, by name."""


def hidden_of(spec: Upcycle, expert: int, hidden: int) -> list[int]:
    """The hidden units of the dense net that an expert has, in order; expert ``r·G + i`` is part i of G shards."""
    size = hidden // spec.shards
    start = expert % spec.shards * size
    return list(range(start, start + size))


def redrawn_units(spec: Upcycle, layer: str, expert: int, size: int) -> Tensor:
    """int64: which of an expert's ``size`` units are initialised anew; the same for all of its matrices."""
    generator = torch.Generator().manual_seed(seed_of(spec.seed, f"{layer} {expert}"))
    return torch.randperm(size, generator=generator)[: round(spec.redraw * size)].sort().values


def expert_of(spec: Upcycle, layer: str, expert: int, name: str, dense: Tensor, gate_sum: float) -> Tensor:
    """One expert's parameter.

    Args:
        spec: how experts are made.
        layer: the name of the feed-forward part, from which its random numbers come.
        expert: index of the expert.
        name: of the parameter, as in ``SPLITS``.
        dense: that of the dense net, without the dimension of experts.
        gate_sum: what the gates of a token add up to; the experts' output is divided by it.

    Raises:
        MoekitError: experts of this kind cannot be made from a dense net.
    """
    if name not in SPLITS:
        raise MoekitError(f"{layer}: experts with a parameter '{name}' cannot be made from a dense net")
    dim, parts, scaled = SPLITS[name]
    out = dense
    if dim is not None:
        hidden = dense.shape[dim] // parts
        units = torch.tensor(hidden_of(spec, expert, hidden))
        rows = torch.cat([units + part * hidden for part in range(parts)])
        out = dense.index_select(dim, rows)
        if spec.redraw:
            chosen = redrawn_units(spec, layer, expert, len(units))
            places = torch.cat([chosen + part * len(units) for part in range(parts)])
            _redraw(spec, out, dense, dim, places, f"{layer} {expert} {name}")
    if spec.noise and dense.numel() > 1:
        values = _noise(spec, out.shape, f"{layer} {expert} {name} noise")
        out = (out.float() + spec.noise * dense.float().std() * values).to(dense.dtype)
    # each shard has its part of the last matrix, but all of the last bias
    factor = (1 if dim is None else spec.shards) / gate_sum
    return out * factor if scaled and factor != 1 else out.clone()


def _redraw(spec: Upcycle, out: Tensor, dense: Tensor, dim: int, places: Tensor, seed: str) -> None:
    """Overwrites units of ``out`` from the normal distribution of all of ``dense``: its mean and deviation."""
    values = dense.float()
    noise = _noise(spec, (*out.shape[:dim], len(places), *out.shape[dim + 1 :]), seed)
    out.index_copy_(dim, places, (values.mean() + values.std() * noise).to(out.dtype))


def _noise(spec: Upcycle, shape: Sequence[int], seed: str) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed_of(spec.seed, seed)))

"""Upcycling: the tensors of a mixture, each made of the dense models' when it is read, expert by expert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from moekit.checkpoints.reading import Handle
from moekit.contracts import Converter
from moekit.errors import MoekitError
from moekit.params import build_on_meta
from moekit.shards import Dims, slices_of
from moekit.spec.kinds import ModelSpec, MoE
from moekit.training.run.folder import RUNS, checkpoint_of
from moekit.training.run.saved import read_checkpoint
from moekit.training.run.start import PREFIX
from moekit_upcycle.upcycle import Upcycle
from moekit_upcycle.upcycle.parts import FFN, Parts


@final
class UpcycleConverter(Converter):
    """The mixtures' experts from the dense layers; fresh routers and balancers; all else as it is, or the mean.

    Source: as in the plugin.
    """

    def __init__(self, spec: Upcycle) -> None:
        self.spec = spec

    def convert(self, model: ModelSpec, checkpoint: Path) -> Mapping[str, Made]:
        """The mixture's tensors.

        Raises:
            MoekitError: the run's model is not dense, or the mixture cannot be made from it.
            CheckpointError: there is no such run, or it is damaged.
        """
        saved = read_checkpoint(checkpoint).plain
        models = [_weights(saved), *(_same_form(run, saved) for run in self.spec.mix)]
        dense = models[0]
        moe: Any = getattr(model, "moe", None)
        if not isinstance(moe, MoE):
            raise MoekitError(
                "the recipe has no mixture\n  expected an override such as model.moe={at: ..., router: ...}"
            )
        dim: int = getattr(model, "dim")  # noqa: B009  a model with such mixtures has one
        parts = Parts(moe, dim, self.spec)
        shapes = {name: each.shape for name, each in build_on_meta(model).state_dict().items()}
        sources = {name: parts.source(name, tuple(shape), dense) for name, shape in shapes.items()}
        used = {source for source in sources.values() if source}
        if unused := [name for name in dense if name not in used]:
            raise MoekitError(
                f"the dense model's '{unused[0]}' has no place in the mixture\n  expected the same model but for moe"
            )
        return {
            name: Made(parts, name, source, shapes[name], dense[source].dtype if source else torch.float32, models)
            for name, source in sources.items()
        }


@dataclass(frozen=True)
class Made:
    """One tensor of the mixture.

    Args:
        parts: of its layer.
        name: in the mixture.
        source: in the dense models; "" for a fresh one.
        shape: of the whole tensor.
        dtype: that of the source; fp32 for a fresh one.
        models: the dense models.
    """

    parts: Parts
    name: str
    source: str
    shape: torch.Size
    dtype: torch.dtype
    models: Sequence[Mapping[str, Handle]]

    @property
    def layer(self) -> str:
        """The mixture that it belongs to; "" for none."""
        match = FFN.fullmatch(self.name)
        return "" if match is None else match[1]

    def read(self, offset: Dims, sizes: Dims) -> Tensor:
        """A slice; no other expert is made.

        Raises:
            CheckpointError: a file is damaged.
        """
        match = FFN.fullmatch(self.name)
        if match is None:
            return _mean([model[self.source] for model in self.models], offset, sizes)
        if match[2] != "experts":
            return self.parts.fresh(*match.groups())[slices_of(offset, sizes)]
        experts = range(offset[0], offset[0] + sizes[0])
        made = torch.stack([self.parts.expert(match[1], e, match[3], self.source, self.models) for e in experts])
        return made[(slice(None), *slices_of(offset[1:], sizes[1:]))]

    def pieces(self) -> Iterator[Tensor]:
        """The whole tensor, expert by expert."""
        match = FFN.fullmatch(self.name)
        rest = tuple(self.shape[1:])
        if match is None or match[2] != "experts":
            yield self.read((0,) * len(self.shape), tuple(self.shape))
            return
        for e in range(self.shape[0]):
            yield self.read((e, *(0 for _ in rest)), (1, *rest))


def _weights(saved: Any) -> dict[str, Handle]:
    """A model's weights in a checkpoint, by their names in the model."""
    return {name.removeprefix(PREFIX): each for name, each in saved["state_dict"].items() if name.startswith(PREFIX)}


def _same_form(run: str, first: Any) -> dict[str, Handle]:
    """The weights of another run, which must have the form and the vocabulary of the first.

    Raises:
        MoekitError: they differ.
        CheckpointError: there is no such run, or it is damaged.
    """
    saved = read_checkpoint(checkpoint_of(run, RUNS)).plain
    one, other = (
        {name: (tuple(each.shape), each.dtype) for name, each in _weights(each).items()} for each in (first, saved)
    )
    if one != other:
        name = next(name for name in [*one, *other] if one.get(name) != other.get(name))
        raise MoekitError(f"{run}: its '{name}' is {other.get(name)}, and {one.get(name)} in the first run")
    if saved["moekit"]["data"] != first["moekit"]["data"]:
        raise MoekitError(f"{run}: its tokens are not those of the first run")
    return _weights(saved)


def _mean(handles: Sequence[Handle], offset: Dims, sizes: Dims) -> Tensor:
    """The mean of a slice of tensors; of equal ones, exactly their value."""
    first = handles[0].read(offset, sizes)
    if len(handles) == 1:
        return first
    total = first.double()
    for handle in handles[1:]:
        total += handle.read(offset, sizes)
    return (total / len(handles)).to(first.dtype)

"""``upcycle``: a run with a mixture from one with a dense model, or from several; one expert at a time in memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moekit.checkpoints.reading import Handle
from moekit.contracts import LayerDims, Router
from moekit.errors import MoekitError
from moekit.params import build_on_meta
from moekit.registry import build
from moekit.routing import TokenChoice
from moekit.seeds import seed_of, seed_torch
from moekit.spec import load
from moekit.spec.kinds import MoE
from moekit.spec.recipe import Recipe
from moekit.training.run.folder import RUNS, RunFolder, checkpoint_of
from moekit.training.run.imported import check_new, write_run
from moekit.training.run.saved import read_checkpoint
from moekit.training.run.start import PREFIX
from moekit_upcycle.experts import Upcycling

FFN = re.compile(r"(.*\.ffn)\.(experts|router|balancers)\.(.+)")
PROBE = 64  # tokens on which a router is tried


@dataclass(frozen=True)
class Made:
    """What was made.

    Attributes:
        recipe: of the mixture.
        layers: the names of its mixtures.
        exact: whether it computes what the dense model computes.
    """

    recipe: Recipe
    layers: tuple[str, ...]
    exact: bool


def upcycle(runs: Sequence[str], out: Path, overrides: Iterable[str], how: Upcycling, root: Path = RUNS) -> Made:
    """Makes a run whose model is that of a dense run with mixtures in some layers.

    Args:
        runs: the dense run: its folder, a checkpoint, or its name. Of several, whose models must have one form and one
            vocabulary, experts are taken by turns, and all other weights are their mean.
        out: the new run's folder, which must not exist yet.
        overrides: over the dense run's recipe; they name the mixtures below ``model.moe``.
        how: how experts are made.
        root: folder of all runs.

    Raises:
        MoekitError: the model is not dense, or the mixture cannot be made from it; nothing has been written.
        CheckpointError: there is no such run, or it is damaged.
    """
    check_new(out)
    checkpoint = checkpoint_of(runs[0], root)
    saved = read_checkpoint(checkpoint).plain
    models = [_weights(saved), *(_same_form(run, root, saved) for run in runs[1:])]
    dense = models[0]
    start = {"start": {"run": str(out.absolute())}, "compare": None}
    recipe = load([saved["hyper_parameters"]["spec"], start], overrides)
    moe: Any = getattr(recipe.model, "moe", None)
    if not isinstance(moe, MoE):
        raise MoekitError("the recipe has no mixture\n  expected an override such as model.moe={at: ..., router: ...}")
    dim: int = getattr(recipe.model, "dim")  # noqa: B009  a model with such mixtures has one
    parts = Parts(moe, dim, how)
    meta = {
        name: torch.empty(each.shape, device="meta") for name, each in build_on_meta(recipe.model).state_dict().items()
    }
    sources = {name: parts.source(name, tuple(each.shape), dense) for name, each in meta.items()}
    used = {source for source in sources.values() if source}
    if unused := [name for name in dense if name not in used]:
        raise MoekitError(
            f"the dense model's '{unused[0]}' has no place in the mixture\n  expected the same model but for moe"
        )
    dtypes = {name: dense[source].dtype if source else torch.float32 for name, source in sources.items()}
    weights = {name: each.to(dtypes[name]) for name, each in meta.items()}
    kept = RunFolder.find(str(checkpoint), root).imported
    write_run(
        out,
        recipe,
        weights,
        lambda name: parts.pieces(name, sources[name], models),
        saved["moekit"]["data"],
        kept.iterdir() if kept.is_dir() else (),
    )
    layers = dict.fromkeys(match[1] for name in meta if (match := FFN.fullmatch(name)))
    return Made(recipe, tuple(layers), exact=not how.fresh and len(runs) == 1)


def _weights(saved: Any) -> dict[str, Handle]:
    """A model's weights in a checkpoint, by their names in the model."""
    return {name.removeprefix(PREFIX): each for name, each in saved["state_dict"].items() if name.startswith(PREFIX)}


def _same_form(run: str, root: Path, first: Any) -> dict[str, Handle]:
    """The weights of another run, which must have the form and the vocabulary of the first.

    Raises:
        MoekitError: they differ.
        CheckpointError: there is no such run, or it is damaged.
    """
    saved = read_checkpoint(checkpoint_of(run, root)).plain
    one, other = (
        {name: (tuple(each.shape), each.dtype) for name, each in _weights(each).items()} for each in (first, saved)
    )
    if one != other:
        name = next(name for name in [*one, *other] if one.get(name) != other.get(name))
        raise MoekitError(f"{run}: its '{name}' is {other.get(name)}, and {one.get(name)} in the first run")
    if saved["moekit"]["data"] != first["moekit"]["data"]:
        raise MoekitError(f"{run}: its tokens are not those of the first run")
    return _weights(saved)


class Parts:
    """The tensors of a mixture's layers, from those of dense ones.

    Args:
        moe: the mixture.
        dim: D, width of the tokens.
        how: how experts are made.

    Raises:
        MoekitError: the mixture is not one that computes what the dense layer does.
    """

    def __init__(self, moe: MoE, dim: int, how: Upcycling) -> None:
        self.moe, self.how = moe, how
        self.dims = LayerDims(dim=dim, num_experts=moe.experts.count)
        if moe.shared is not None:
            raise MoekitError(
                "model.moe.shared: shared experts would add to what the dense layer computes\n  expected null"
            )
        if moe.experts.count % how.shards:
            raise MoekitError(
                f"{moe.experts.count} experts cannot be {how.shards} shards of each copy: choose a multiple"
            )
        self.factor = how.shards / self._gate_sum()

    def router(self, layer: str) -> Router:
        """A layer's router: fresh, with one row for each copy of the net, repeated for its shards."""
        with torch.random.fork_rng(devices=[]):
            seed_torch(seed_of(self.how.seed, f"{layer}.router"))
            router: Router = build(self.moe.router, self.dims)
        copies = self.dims.num_experts // self.how.shards
        with torch.no_grad():
            for parameter in router.parameters():
                if parameter.shape[:1] == (self.dims.num_experts,):
                    parameter.copy_(parameter[:copies].repeat_interleave(self.how.shards, dim=0))
        return router.eval()

    def _gate_sum(self) -> float:
        """What the gates of every token add up to, tried on random tokens; the choice must be of whole copies."""
        x_TD = torch.randn(PROBE, self.dims.dim, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            routing = self.router("a layer")(x_TD)
        if not isinstance(routing, TokenChoice):
            raise MoekitError("model.moe.router: experts are made for routers by which each token chooses its experts")
        sums_T = routing.gate_TK.sum(-1)
        if float(sums_T.max() - sums_T.min()) > 1e-5:
            raise MoekitError(
                "model.moe.router: its gates do not add up to one number, so the mixture would compute something else\n"
                "  expected renormalize=true, or score_over=chosen"
            )
        copies_TK = (routing.expert_TK // self.how.shards).sort(-1).values
        whole = copies_TK.shape[-1] % self.how.shards == 0
        if not whole or not torch.equal(
            copies_TK[:, :: self.how.shards], copies_TK[:, self.how.shards - 1 :: self.how.shards]
        ):
            raise MoekitError(
                f"model.moe.router: a token must choose all {self.how.shards} shards of a copy\n"
                f"  expected a top_k that is a multiple of {self.how.shards}, without groups"
            )
        return float(sums_T.mean())

    def source(self, name: str, shape: tuple[int, ...], dense: Mapping[str, Any]) -> str:
        """The dense model's tensor that one of the mixture is made of; "" for fresh ones.

        Raises:
            MoekitError: there is none, or of another shape.
        """
        match = FFN.fullmatch(name)
        if match is not None and match[2] != "experts":
            return ""
        source = name if match is None else f"{match[1]}.{match[3]}"
        if source not in dense:
            raise MoekitError(
                f"the dense model has no '{source}' for the mixture's '{name}'\n  expected the same model but for moe"
            )
        held = tuple(dense[source].shape)
        if match is not None:
            kept = [1 if size == other else self.how.shards for size, other in zip(held[1:], shape[1:], strict=True)]
            held = (shape[0], *(size // divisor for size, divisor in zip(held[1:], kept, strict=True)))
        if held != shape:
            raise MoekitError(
                f"'{source}' {list(dense[source].shape)} cannot make '{name}' {list(shape)}: check hidden"
            )
        return source

    def pieces(self, name: str, source: str, models: Sequence[Mapping[str, Handle]]) -> Iterator[Tensor]:
        """The values of one tensor of the mixture, expert by expert."""
        match = FFN.fullmatch(name)
        if match is None:
            yield _mean([model[source] for model in models])
        elif match[2] == "router":
            yield self.router(match[1]).state_dict()[match[3]].float()
        elif match[2] == "balancers":
            balancer, _, rest = match[3].partition(".")
            fresh: Any = build(self.moe.balancers[balancer], self.dims)
            yield fresh.state_dict()[rest].float()
        else:
            for expert in range(self.dims.num_experts):
                if expert % self.how.shards == 0:
                    net = models[expert // self.how.shards % len(models)][source].whole()[0]
                yield self.how.expert(match[1], expert, match[3], net, self.factor)


def _mean(handles: Sequence[Handle]) -> Tensor:
    """The mean of tensors; of equal ones, exactly their value."""
    first = handles[0].whole()
    if len(handles) == 1:
        return first
    total = first.double()
    for handle in handles[1:]:
        total += handle.whole()
    return (total / len(handles)).to(first.dtype)

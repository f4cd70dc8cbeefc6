"""``moekit.layer``: a layer in one call, with every check that a recipe gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.registry import current
from moekit.spec.dumping import plain_tree, to_plain
from moekit.spec.fields import fields_of
from moekit.spec.kinds import BalancerSpec, DispatcherSpec, ExpertSpec, MoE, RouterSpec
from moekit.spec.layers import Merged
from moekit.spec.loading import Source, compose, load
from moekit.spec.recipe import Recipe
from moekit.spec.replacing import find_all
from moekit.spec.tree import Tree

UNSET: Any = object()
"""The default of an argument that keeps what the recipe says, or the default of the spec."""


def layer(
    recipe: Source | None = None,
    /,
    *,
    dim: int,
    out_dim: int = 0,
    router: str | Mapping[str, Any] | DictConfig | RouterSpec = UNSET,
    experts: str | Mapping[str, Any] | DictConfig | ExpertSpec = UNSET,
    dispatcher: str | Mapping[str, Any] | DictConfig | DispatcherSpec = UNSET,
    shared: str | Mapping[str, Any] | DictConfig | ExpertSpec | None = UNSET,
    balancers: Mapping[str, str | Mapping[str, Any] | BalancerSpec | None] | DictConfig = UNSET,
) -> MoELayer:
    """A Mixture-of-Experts layer, of parts or of a recipe whose parts are changed.

    Each part is a name (``"topk"``), a mapping (``{"use": "topk", "top_k": 2}``), an OmegaConf config, or a spec
    (``TopK(top_k=2)``). Over a recipe, a mapping without ``use`` changes options, and None deletes a part.

    Args:
        recipe: what ``moekit.load`` takes; its mixture is the base, and parts are laid over it.
        dim: D, the width of a token.
        out_dim: O, the width of a token's output; 0: D.
        router: decides which experts process which tokens.
        experts: the routed experts; ``count`` is their number.
        dispatcher: sends tokens to the experts; by default the component that claims to be it, ``auto``.
        shared: experts that process every token.
        balancers: what keeps the load even, by name.

    Raises:
        SpecError: with every mistake in the parts or in the recipe.
        MoekitError: the recipe has no mixture, or several that differ.

    Example:
        ``moekit.layer(dim=64, router={"use": "topk", "top_k": 2}, experts={"use": "glu", "count": 8, "hidden": 128})``
    """
    parts = {"router": router, "experts": experts, "dispatcher": dispatcher, "shared": shared, "balancers": balancers}
    given = {name: part for name, part in parts.items() if part is not UNSET}
    registry = current()
    layers: list[Tree] = []
    if recipe is not None:
        layers.append(plain_tree(_mixture(load(recipe)), registry=registry))
    layers.append(plain_tree(given, "layer(...)", registry=registry))
    spec = compose(Merged(registry, layers), MoE, registry)
    assert isinstance(spec, MoE)
    return MoELayer.from_spec(spec, dim, out_dim)


def _mixture(recipe: Recipe) -> dict[str, Any]:
    """The parts of a recipe's mixture as plain data, without the options that say which layers are mixtures.

    Raises:
        MoekitError: there is none, or there are several that differ.
    """
    found: list[dict[str, Any]] = []
    for mixture in find_all(recipe, MoE):
        parts = {name: part for name, part in to_plain(mixture).items() if name in fields_of(MoE)}
        found += [] if parts in found else [parts]
    if len(found) != 1:
        what = f"{len(found)} different mixtures" if found else "no mixture"
        raise MoekitError(f"the recipe has {what}; expected one, whose parts the layer gets")
    return found[0]

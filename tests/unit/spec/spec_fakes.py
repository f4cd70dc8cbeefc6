"""Fake components for the tests of specs, none of them ever built; and checks of whole reports."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import pytest
from fake_plugins import plugin
from pages import whole

from moekit.component import Component, RecipeFile
from moekit.errors import SpecError
from moekit.plugin import Plugin
from moekit.spec import kinds, validate
from moekit.spec.fields import Spec, group, option, slot


class Pick(kinds.RouterSpec):
    takes_bias: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    top_k: int = option(help="experts a token runs through", ge=1, le=8)
    score: Literal["softmax", "sigmoid"] = option("softmax", "score function")
    scale: float = option(1.0, "factor on the gates", gt=0)
    renormalize: bool = option(False, "whether gates sum to one")

    def check(self) -> Iterable[str]:
        if self.top_k == 1 and self.renormalize:
            yield "top_k=1 with renormalize=true has no gradient"
        if self.top_k == 1 and self.score == "sigmoid":
            yield "top_k=1 with score=sigmoid is not wanted here"


class Blend(kinds.RouterSpec):
    causal: ClassVar[bool] = True
    form: ClassVar[kinds.Form] = "soft"
    takes_bias: ClassVar[bool] = False
    bias: bool = option(True, "whether the gate has a bias")


class Wide(kinds.ExpertSpec):
    hidden: int = option(help="width of the hidden layer", ge=1)


class Flat(kinds.ExpertSpec):
    pass


class Walk(kinds.DispatcherSpec):
    forms: ClassVar[frozenset[kinds.Form]] = kinds.PAIR_FORMS
    dropless: ClassVar[bool] = True


class Pour(kinds.DispatcherSpec):
    dropless: ClassVar[bool] = True
    forms: ClassVar[frozenset[kinds.Form]] = frozenset({"soft"})


class Nudge(kinds.BalancerSpec):
    forms: ClassVar[frozenset[kinds.Form]] = kinds.ALL_FORMS
    gives_bias: ClassVar[bool] = True
    rate: float = option(1e-3, "step of the bias", gt=0)


class Fair(kinds.BalancerSpec):
    forms: ClassVar[frozenset[kinds.Form]] = kinds.ALL_FORMS

    weight: float = option(0.01, "coefficient", ge=0)


class Head(Spec):
    depth: int = option(1, "extra tokens", ge=1)
    tied: bool = option(True, "whether weights are shared")


class Tower(kinds.ModelSpec):
    width: int = option(help="D", ge=1)
    vocab: int = option(256, "V", ge=1)
    note: str | None = option("plain", "a remark")
    ffn: kinds.ExpertSpec | None = slot("expert", "the dense layers", optional=True)
    moe: kinds.MoE | None = group("the sparse layers", default=None)
    head: Head | None = group("further heads", default=None)


class Stack(kinds.ModelSpec):
    takes: ClassVar[str] = "cases"
    gives: ClassVar[str] = "mixture"
    inputs: int = option(2, "inputs", ge=1)
    moe: kinds.MoE | None = group("the mixture", default=None)


class Porch(kinds.ModelSpec):
    head: Head = group("the head")


class Bag(kinds.ModelSpec):
    """Options of every type."""

    count: int = option(0, "an integer")
    maybe: int | None = option(7, "an integer or null")
    rate: float = option(0.5, "a number", ge=-1e300, lt=1e300)
    flag: bool = option(False, "true or false")
    text: str = option("", "text")
    choice: Literal["a", "b"] | None = option("a", "a choice")
    mixed: Literal["auto"] | int | list[int] = option("auto", "several types")
    pair: tuple[int, float] = option((1, 2.0), "a pair")
    numbers: list[float] = option([0.9, 0.95], "numbers", ge=0)
    texts: list[str] = option([], "texts")
    shares: Mapping[str, float] = option({}, "numbers by name")
    anything: dict[str, Any] = option({}, "plain values by name")


class Next(kinds.ObjectiveSpec):
    pass


class Lines(kinds.DataSpec):
    seq: int = option(64, "S", ge=1)
    vocab: int = option(256, "V", ge=1)
    path: str | None = option(None, "a folder")


class Cases(kinds.DataSpec):
    yields: ClassVar[str] = "cases"


class Step(kinds.OptimizerSpec):
    takes_shards: ClassVar[bool] = True

    lr: float = option(help="learning rate", gt=0)
    betas: list[float] = option([0.9, 0.95], "decay of the moments", ge=0, lt=1)


class Unregistered(kinds.RouterSpec):
    pass


class OtherPick(kinds.RouterSpec):
    takes_bias: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    top_k: int = option(1, "experts a token runs through", ge=1)


def component(name: str, spec: type[Spec]) -> Component:
    return Component(name=name, spec=spec, target="nowhere:Nothing", summary=f"the fake {name}")


SPECS = (Pick, Blend, Wide, Flat, Walk, Pour, Nudge, Fair, Tower, Stack, Bag, Porch, Next, Lines, Cases, Step)


def base_plugin(recipes: list[RecipeFile]) -> Plugin:
    """A plugin with every spec above, named by its class in lower case, and recipes."""
    components = [component(spec.__name__.lower(), spec) for spec in SPECS]
    return plugin("base", "moekit-base", "1.4.0", components=components, recipes=recipes)


ACME = plugin("acme", "moekit-acme", "2.0", components=[component("pick", OtherPick)])
"""A second plugin with a router of the same name."""

BROKEN = Plugin(name="broken", module="moekit_broken", distribution="moekit-broken", error="ImportError: no such luck")

SMALL = """\
# A small tower
schema: 1
summary: a small tower
model:
  use: tower
  width: 8
  vocab: ${data.vocab}
  moe:
    router: {use: pick, top_k: 2}
    experts: {use: wide, count: 4, hidden: 16}
    dispatcher: walk
    balancers:
      bias: {use: nudge, rate: 1e-2}
objective: next
data: {use: lines, seq: 32}
optimizer: {use: step, lr: 3e-3}
trainer:
  max_steps: 10
"""
"""A recipe that has a bit of everything; the registry of these tests calls it ``small``."""


def check_overrides(given: str, expected: str) -> None:
    """The recipe ``small`` under overrides, quoted as in a shell, is rejected with exactly this report."""
    with pytest.raises(SpecError, match=whole(expected)):
        validate("small", shlex.split(given))

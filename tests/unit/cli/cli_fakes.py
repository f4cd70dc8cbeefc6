"""Fake plugins, so that the whole output of a verb can be compared, and the comparison."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import ClassVar, Literal

import pytest
from fake_plugins import plugin

from moekit.cli import main
from moekit.component import Component
from moekit.plugin import Plugin
from moekit.spec.fields import Spec, group, option, slot, slots
from moekit.spec.kinds import BalancerSpec, Form, ModelSpec, RouterSpec

Captured = pytest.CaptureFixture[str]
Use = Callable[..., None]


class Lottery(RouterSpec):
    takes_bias: ClassVar[bool] = True
    causal: ClassVar[bool] = False
    draws: int = option(help="experts sampled for a token", ge=1)
    style: Literal["fair", "loaded"] = option("fair", "kind of lottery")
    seed: int | None = option(None, "seed; null for none", ge=0)


class Lottery2(RouterSpec):
    takes_bias: ClassVar[bool] = True
    causal: ClassVar[bool] = True


class Where(Spec):
    first: int = option(0, "from this layer on", ge=0)
    router: RouterSpec = slot("router", "who decides")


class Tower(ModelSpec):
    depth: int = option(2, "layers", ge=1, le=9)
    widths: list[int] = option([8, 16], "widths of the layers")
    where: Where = group("which layers")
    extra: RouterSpec | None = slot("router", "a second opinion", optional=True)
    keepers: dict[str, BalancerSpec] = slots("balancer", "what keeps the load even")


class Keeper(BalancerSpec):
    forms: ClassVar[frozenset[Form]] = frozenset({"soft", "token_choice"})


class LotteryRouter:
    """Draws lots.

    Source: none.
    """


def lottery(spec: type[RouterSpec], summary: str, paper: str = "") -> Component:
    return Component(name="lottery", spec=spec, target=LotteryRouter, summary=summary, paper=paper)


ACME = plugin(
    "acme",
    "acme-moe",
    "1.2",
    components=[
        lottery(Lottery, "draws lots", "Fate 1900"),
        Component(name="tower", spec=Tower, target="acme.tower:Tower", summary="a tower of layers"),
        Component(name="keeper", spec=Keeper, target="acme.keeper:Keeper", summary="keeps the load even"),
    ],
)
BETA = plugin("beta", "beta", "0.3", components=[lottery(Lottery2, "draws other lots")])
BROKEN = Plugin(
    name="broken",
    module="broken_moe",
    distribution="broken-moe",
    version="2.0",
    error="ModuleNotFoundError: No module named 'triton'",
    trace="Traceback (most recent call last):\n  ...\nModuleNotFoundError: No module named 'triton'\n",
)


def check_output(given: str, expected: str, capsys: Captured) -> None:
    """``moekit`` with arguments, quoted as in a shell, prints exactly this; an error to stderr, with exit code 2."""
    failed = expected.startswith("error: ")
    assert main(shlex.split(given)) == (2 if failed else 0)
    printed, silent = reversed(capsys.readouterr()) if failed else capsys.readouterr()
    assert (printed, silent) == (f"{expected}\n", "")

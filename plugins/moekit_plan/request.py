"""What a plan is made for: how many devices, the micro-batch of each, the precision. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, isqrt
from typing import Any, Final

from moekit.errors import MoekitError, nearest
from moekit.spec.fields import Spec
from moekit.spec.kinds import MoE
from moekit.spec.recipe import Recipe
from moekit.spec.replacing import find_all

BYTES: Final = {"32-true": 4, "bf16-mixed": 4, "16-mixed": 4, "bf16-true": 2, "64-true": 8}
"""By precision: bytes of a number of the weights, the gradients and the optimizer's state."""

ALIASES: Final = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}  # Lightning's own
BATCH, SEQUENCE = 1, 4096
STRATEGY: Final = {"dense": ("shard", "replicate"), "reduce": ("micro_batch", "step")}
"""Options of the strategy ``sharded`` that change a plan."""
MAX_LAYOUTS = 8
MAX_COUNT: Final = 10**12
"""Limit of devices, sequences, tokens of a sequence, and micro-batches: a larger number is a typing error."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What to plan.

    Attributes:
        devices: N, all ranks.
        eps: the layouts: ranks that share the experts of a layer.
        batch: B, sequences (or cases) of one device's micro-batch.
        sequence: S, tokens of each; of source and target alike.
        accumulate: micro-batches of a device in an optimizer step.
        precision: Lightning's name; a key of ``BYTES``.
        device_memory: bytes of a device.
        dense: what is not a routed expert is sharded over all devices (``shard``), or whole on each (``replicate``).
        reduce: gradients of shards are reduced after every ``micro_batch``, or once in a ``step``.
        per_node: M, devices of a node; 0: all are in one node.

    Raises:
        MoekitError: a number out of range, or another precision; nodes that do not divide devices or expert groups.
    """

    devices: int
    eps: tuple[int, ...]
    batch: int
    sequence: int
    accumulate: int
    precision: str
    device_memory: int
    dense: str = "shard"
    reduce: str = "micro_batch"
    per_node: int = 0

    def __post_init__(self) -> None:
        counts = ("devices", "batch", "sequence", "accumulate")
        for name in (*counts, "device_memory"):
            if getattr(self, name) < 1:
                raise MoekitError(f"{name}={getattr(self, name)} is out of range\n  expected at least 1")
        for name in counts:
            if getattr(self, name) > MAX_COUNT:
                raise MoekitError(f"{name}={getattr(self, name)} is out of range\n  expected at most {MAX_COUNT}")
        if self.precision not in BYTES:
            near = nearest(self.precision, list(BYTES))
            raise MoekitError(
                f"no plan for the precision '{self.precision}'\n  expected one of {', '.join(BYTES)}"
                + (f"\n  did you mean '{near}'?" if near else "")
            )
        if self.per_node < 0 or (self.per_node and self.devices % self.per_node):
            fits = ", ".join(map(str, divisors(self.devices)[:12]))
            raise MoekitError(f"{self.devices} devices are not nodes of {self.per_node}\n  expected one of {fits}")
        for ep in self.eps if self.per_node else ():
            if ep % self.per_node and self.per_node % ep:
                raise MoekitError(
                    f"ep={ep}: expert groups would begin within nodes of {self.per_node} devices\n"
                    f"  expected --ep with divisors or multiples of {self.per_node}"
                )

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the weights, the gradients and the optimizer's state."""
        return BYTES[self.precision]

    @property
    def tokens(self) -> int:
        """Tokens (or cases) of an optimizer step, over all devices."""
        return self.devices * self.accumulate * self.batch * self.sequence


def bytes_of_gib(gib: float) -> int:
    """A device's memory in bytes.

    Raises:
        MoekitError: not a positive, finite number.
    """
    if not 0 < gib * 2**30 < float("inf"):
        raise MoekitError(f"--device-memory {gib:g} is out of range\n  expected GiB of a device, > 0")
    return int(gib * 2**30)


def strategy_option(recipe: Recipe, name: str, requested: str | None) -> str:
    """What was requested for an option of the strategy, or the recipe's strategy's value; else the first there is."""
    return requested or str(getattr(recipe.trainer.strategy, name, STRATEGY[name][0]))


def parse_eps(listed: str) -> tuple[int, ...]:
    """The numbers in ``1,2,4``.

    Raises:
        MoekitError: something that is not a whole number.
    """
    try:
        return tuple(int(number) for number in listed.split(",")) if listed else ()
    except ValueError:
        raise MoekitError(f"invalid --ep '{listed}'\n  expected whole numbers, such as 1,2,4") from None


def precision_of(recipe: Recipe, requested: str = "") -> str:
    """The full name of the requested precision, or of the recipe's."""
    given = requested or (recipe.trainer.precision or "32-true")
    return ALIASES.get(given, given)


def eps_of(recipe: Recipe, devices: int, requested: Sequence[int] = ()) -> tuple[int, ...]:
    """The layouts to plan: those requested, or the powers of two that divide the devices and every layer's experts.

    Where no power of two does, other divisors.

    Raises:
        MoekitError: a requested layout does not divide both, or the routing is soft.
    """
    layers = find_all(recipe.model, MoE)
    counts = sorted({layer.experts.count for layer in layers})
    soft = any(layer.router.form == "soft" for layer in layers)
    fits = [1] if soft or not layers else divisors(gcd(devices, *counts))
    for ep in requested:
        if ep not in fits:
            raise MoekitError(_misfit(ep, devices, counts, fits, soft))
    powers = [ep for ep in fits if ep & (ep - 1) == 0]
    return tuple(requested) or tuple((powers if len(powers) > 1 else fits)[:MAX_LAYOUTS])


def divisors(number: int) -> list[int]:
    """Its divisors, the smallest first."""
    small = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def shape_of(recipe: Recipe) -> tuple[int, int]:
    """B and S of the recipe's data, or of the data that these are derived from; else one sequence of 4096 tokens."""
    found = {"batch": BATCH, "seq": SEQUENCE}
    waiting: list[Any] = [recipe.data]
    while waiting:
        spec = waiting.pop()
        if not isinstance(spec, Spec):
            continue
        for field in dataclasses.fields(spec):
            value = getattr(spec, field.name)
            if field.name in found and isinstance(value, int):
                found[field.name] = value
            waiting.append(value)
    return found["batch"], found["seq"]


def _misfit(ep: int, devices: int, counts: Sequence[int], fits: Sequence[int], soft: bool) -> str:
    if soft:
        why = "every expert computes for every token under soft routing, so ranks cannot share experts"
        return f"ep={ep}: {why}\n  expected ep=1"
    if not counts:
        return f"ep={ep}: the model has no routed experts to share\n  expected ep=1"
    what = " and ".join(f"{count} experts" for count in counts)
    return (
        f"ep={ep} does not divide {devices} devices and {what} evenly\n"
        f"  expected one of {', '.join(map(str, fits))}\n"
        "  more devices or experts: --devices N, model.moe.experts.count=E"
    )

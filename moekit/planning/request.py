"""What is asked of a plan: how many devices, what each of them reads at once, in which precision. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd, isqrt
from typing import Any, Final

from moekit.errors import MoekitError, nearest
from moekit.spec.fields import Spec
from moekit.spec.kinds import MoE
from moekit.spec.recipe import Recipe

BYTES: Final = {"32-true": 4, "bf16-mixed": 4, "16-mixed": 4, "bf16-true": 2, "64-true": 8}
"""By precision: bytes of a number that is kept: of weights, gradients, the optimizer's state."""

ALIASES: Final = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}  # Lightning's own
BATCH, SEQUENCE = 1, 4096
MOST_LAYOUTS = 8
MOST: Final = 10**12
"""Devices, sequences, tokens of one, micro-batches: more of them is a slip of the finger."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question.

    Attributes:
        devices: N, all ranks.
        eps: the layouts: ranks that share the experts of a layer.
        batch: B, sequences (or cases) of one device's micro-batch.
        sequence: S, tokens of each; of source and target alike.
        accumulate: micro-batches of a device in an optimizer step.
        precision: as Lightning names it; a key of ``BYTES``.
        device_memory: bytes of a device.
    """

    devices: int
    eps: tuple[int, ...]
    batch: int
    sequence: int
    accumulate: int
    precision: str
    device_memory: int

    def __post_init__(self) -> None:
        for name in ("devices", "batch", "sequence", "accumulate", "device_memory"):
            if getattr(self, name) < 1:
                raise MoekitError(f"{name}={getattr(self, name)} is out of range\n  expected at least 1")
        for name in ("devices", "batch", "sequence", "accumulate"):
            if getattr(self, name) > MOST:
                raise MoekitError(f"{name}={getattr(self, name)} is out of range\n  expected at most {MOST}")
        if self.precision not in BYTES:
            near = nearest(self.precision, list(BYTES))
            raise MoekitError(
                f"no plan for the precision '{self.precision}'\n  expected one of {', '.join(BYTES)}"
                + (f"\n  did you mean '{near}'?" if near else "")
            )

    @property
    def kept(self) -> int:
        """Bytes of a number that is kept."""
        return BYTES[self.precision]

    @property
    def tokens(self) -> int:
        """Tokens (or cases) of an optimizer step, over all devices."""
        return self.devices * self.accumulate * self.batch * self.sequence


def bytes_of_gib(gib: float) -> int:
    """A device's memory in bytes.

    Raises:
        MoekitError: it is no amount.
    """
    if not 0 < gib * 2**30 < float("inf"):
        raise MoekitError(f"--device-memory {gib:g} is out of range\n  expected GiB of a device, > 0")
    return int(gib * 2**30)


def numbers_of(listed: str) -> tuple[int, ...]:
    """The numbers in ``1,2,4``.

    Raises:
        MoekitError: something else is in it.
    """
    try:
        return tuple(int(word) for word in listed.split(",")) if listed else ()
    except ValueError:
        raise MoekitError(f"--ep '{listed}' is no list of whole numbers\n  expected one such as 1,2,4") from None


def precision_of(recipe: Recipe, asked: str = "") -> str:
    """The precision that was asked for, or that the recipe trains in where it says so, by its full name."""
    given = asked or str(recipe.trainer.get("precision", "32-true"))
    return ALIASES.get(given, given)


def eps_of(recipe: Recipe, devices: int, asked: Sequence[int] = ()) -> tuple[int, ...]:
    """The layouts to plan: those asked for, or powers of two that divide both the devices and every
    layer's experts (other divisors where there are none).

    Raises:
        MoekitError: a layout that was asked for does not divide them, or a layer's tokens cannot travel.
    """
    layers = list(mixtures(recipe.model))
    counts = sorted({layer.experts.count for layer in layers})
    soft = any(layer.router.form == "soft" for layer in layers)
    fits = [1] if soft or not layers else divisors(gcd(devices, *counts))
    for ep in asked:
        if ep not in fits:
            raise MoekitError(_refusal(ep, devices, counts, fits, soft))
    powers = [ep for ep in fits if ep & (ep - 1) == 0]
    return tuple(asked) or tuple((powers if len(powers) > 1 else fits)[:MOST_LAYOUTS])


def divisors(number: int) -> list[int]:
    """Its divisors, the smallest first."""
    small = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def mixtures(spec: Spec) -> Iterator[MoE]:
    """Every mixture below a spec."""
    if isinstance(spec, MoE):
        yield spec
        return
    for field in dataclasses.fields(spec):  # type: ignore[arg-type]
        value: Any = getattr(spec, field.name)
        if isinstance(value, Spec):
            yield from mixtures(value)


def shape_of(recipe: Recipe) -> tuple[int, int]:
    """B and S as the recipe's data says them, there or in what it is derived from; else a sequence of 4096 tokens."""
    found = {"batch": BATCH, "seq": SEQUENCE}
    waiting: list[Any] = [recipe.data]
    while waiting:
        spec = waiting.pop()
        if not isinstance(spec, Spec):
            continue
        for field in dataclasses.fields(spec):  # type: ignore[arg-type]
            value = getattr(spec, field.name)
            if field.name in found and isinstance(value, int):
                found[field.name] = value
            waiting.append(value)
    return found["batch"], found["seq"]


def _refusal(ep: int, devices: int, counts: Sequence[int], fits: Sequence[int], soft: bool) -> str:
    if soft:
        why = "every expert works for every token under a soft routing, so none can live elsewhere"
        return f"ep={ep}: {why}\n  expected ep=1"
    if not counts:
        return f"ep={ep}: the model has no routed experts to share\n  expected ep=1"
    what = " and ".join(f"{count} experts" for count in counts)
    return (
        f"ep={ep} does not divide {devices} devices and {what} evenly\n"
        f"  expected one of {', '.join(map(str, fits))}\n"
        "  more devices or experts: --devices N, model.moe.experts.count=E"
    )

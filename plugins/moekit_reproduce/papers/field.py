"""The small language model that most claims are measured with, and contrasts between arms. Torch-free.

A decoder of three layers, 64 wide, with rotary attention, on bytes of Python, C++ and prose: 1,024 a step. Mixtures are
in layers 1 and 2, and have the active width of the dense layer: 216 hidden units of a gated layer, or 324 of one with
two matrices, which are as many multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from moekit_reproduce.study import ClaimSpec, Seen, Source

Node = Mapping[str, Any]
"""One component, as a recipe has it."""

RATES: Final = (3e-3, 6e-3, 1.2e-2)
"""Learning rates to search."""

SMALL: Final[Node] = {
    "model": {
        "dim": 64,
        "depth": 3,
        "attention": {"use": "gqa", "heads": 4, "kv_heads": 4, "head_dim": 16},
        "ffn": {"use": "glu", "hidden": 216},
    },
    "non_finite": "skip",
}
AUTO: Final[Node] = {"use": "auto"}
LOAD: Final[Node] = {"use": "load_balance", "count": "first", "weight": 1e-2}
"""The balance loss of GShard, Switch, GLaM and ST-MoE."""

SHARE: Final = "share of the loss saved"
COLUMNS: Final = {"loss": "loss, nats", "bits_per_byte": "bits per byte"}
BALANCE: Final = {"max_violation": "MaxVio of a step", "global_violation": "MaxVio, global"}


def decoder(spec: ClaimSpec, *changes: Node, steps: int = 0) -> Source:
    """A recipe of the field, with changes; for other than the spec's steps if ``steps`` is given."""
    return ("base/language_model", SMALL, sizes(spec, steps), *changes)


def sizes(spec: ClaimSpec, steps: int = 0) -> Node:
    """The change that sets the size of a run: 16 windows of 64 bytes a step."""
    data = {"seq": 64, "batch": 16, "validation_windows": spec.windows}
    return {"data": data, "trainer": {"max_steps": steps or spec.steps}}


def mixture(
    router: Node, experts: Node, balancers: Mapping[str, Node], *, dispatcher: Node = AUTO, shared: Node | None = None
) -> Mapping[str, Any]:
    """The change that makes layers 1 and 2 mixtures of these parts."""
    parts = {"router": router, "experts": experts, "balancers": balancers, "dispatcher": dispatcher, "shared": shared}
    return {"model": {"moe": {"at": {"first": 1}, **parts}}}


def saved(less: str, more: str, value: str = "loss") -> Callable[[Seen], float]:
    """The contrast ``1 − value(less) / value(more)``: the share that the first arm saves of the second's value."""
    return lambda seen: float(1 - seen[less][value] / seen[more][value])


def lower(less: str, more: str, value: str) -> Callable[[Seen], float]:
    """The contrast ``value(more) − value(less)``."""
    return lambda seen: float(seen[more][value] - seen[less][value])

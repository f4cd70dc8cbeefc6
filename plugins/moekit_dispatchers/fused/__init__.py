"""The fused dispatcher: expert by expert through buffers that stay in the cache, in one autograd function.

For CPUs. What costs time there is not sorting but fresh large arrays; this makes none but what backward needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import DispatcherSpec


@dataclass(frozen=True, kw_only=True)
class Fused(DispatcherSpec):
    """Options of the fused dispatcher."""

    save: Literal["all", "minimum", "nothing"] = option(
        "minimum",
        "what is kept for backward beside tokens and routing: the first product's output and the activation's; the "
        "former alone; neither",
    )


COMPONENT = Component(
    name="fused",
    spec=Fused,
    target="moekit_dispatchers.fused.module:FusedDispatcher",
    summary="expert by expert through cache-sized buffers, keeping the least for backward; GLU and FFN banks, on CPUs",
)

"""The triton dispatcher: gather, products, activation and combine in kernels of our own, for GPUs.

Oracle: the dispatcher ``loop``. Needs the package ``triton`` (``pip install 'moekit[triton]'``), which is imported when
there is something to compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import DispatcherSpec


@dataclass(frozen=True, kw_only=True)
class Triton(DispatcherSpec):
    """Options of the triton dispatcher."""

    save: Literal["all", "minimum", "nothing"] = option(
        "minimum",
        "what is kept for backward beside tokens and routing: the first product's output and the activation's; the "
        "former alone; neither",
    )


COMPONENT = Component(
    name="triton",
    spec=Triton,
    target="moekit_dispatchers.triton.module:TritonDispatcher",
    summary="gathers, multiplies, activates and combines in Triton kernels; dropless; GLU and FFN banks, on GPUs",
)

"""The triton dispatcher: gather, products, activation and combine in its own kernels, for GPUs.

Reference implementation: the dispatcher ``loop``. Needs the package ``triton`` (``pip install 'moekit[triton]'``),
which is imported at the first computation.
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
        "what is saved for backward besides tokens and routing. all: outputs of the first product and of the "
        "activation; minimum: of the first product; nothing: neither",
    )


COMPONENT = Component(
    name="triton",
    spec=Triton,
    target="moekit_dispatchers.triton.module:TritonDispatcher",
    summary="gathers, multiplies, activates and combines in Triton kernels; dropless; GLU and FFN banks, on GPUs",
)

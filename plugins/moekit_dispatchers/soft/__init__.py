"""The soft dispatcher: every expert works for every token, weighted.

Source: Jacobs et al. 1991, Neural Computation 3(1), equation 1.1 (without slots: a weighted sum of all experts);
Puigcerver et al. 2023, "From Sparse to Soft Mixtures of Experts" (arXiv 2308.00951), equations 1 to 3 (with slots).
Reference implementation: ``naive.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moekit.component import Component
from moekit.spec.kinds import DispatcherSpec, Form


@dataclass(frozen=True, kw_only=True)
class Soft(DispatcherSpec):
    """The soft dispatcher has no options."""

    forms: ClassVar[frozenset[Form]] = frozenset({"soft"})


COMPONENT = Component(
    name="soft",
    spec=Soft,
    target="moekit_dispatchers.soft.module:SoftDispatcher",
    summary="every expert for every token (1991), or for mixtures of tokens in slots (Soft MoE)",
    paper="Jacobs et al. 1991; Puigcerver et al. 2023 (arXiv 2308.00951)",
)

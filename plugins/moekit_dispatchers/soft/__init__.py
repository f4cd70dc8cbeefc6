"""The soft dispatcher: every expert works for every token, weighted. Torch-free: component."""

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

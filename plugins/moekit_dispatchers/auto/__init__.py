"""The automatic dispatcher: the fastest of those that fit the tokens at hand, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import ALL_FORMS, DispatcherSpec, Form


@dataclass(frozen=True, kw_only=True)
class Auto(DispatcherSpec):
    """Options of the automatic dispatcher."""

    forms: ClassVar[frozenset[Form]] = ALL_FORMS
    save: Literal["all", "minimum", "nothing"] = option(
        "minimum", "what 'fused' keeps for backward, where that is chosen: see its own option"
    )


COMPONENT = Component(
    name="auto",
    spec=Auto,
    target="moekit_dispatchers.auto.module:AutoDispatcher",
    summary="the fastest dropless dispatcher for the tokens at hand, by form, device, dtype and size",
)

"""The automatic dispatcher: chooses the fastest dispatcher that can take the tokens."""

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
        "minimum", "what 'fused' saves for backward if it is chosen: see its own option"
    )


COMPONENT = Component(
    name="auto",
    spec=Auto,
    target="moekit_dispatchers.auto.module:AutoDispatcher",
    summary="chooses the fastest dropless dispatcher by routing type, device, dtype and size",
)

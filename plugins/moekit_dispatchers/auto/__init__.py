"""The automatic dispatcher: chooses the fastest dispatcher that can take the tokens."""

from typing import ClassVar, Literal

from moekit.spec.fields import option
from moekit.spec.kinds import ALL_FORMS, DispatcherSpec, Form


class Auto(DispatcherSpec):
    """Options of the automatic dispatcher."""

    dropless: ClassVar[bool] = True
    forms: ClassVar[frozenset[Form]] = ALL_FORMS
    save: Literal["all", "minimum", "nothing"] = option(
        "minimum", "what 'fused' and 'triton' save for backward if one of them is chosen: see their own option"
    )
    choose: Literal["measured", "fixed"] = option(
        "measured", "whether dispatchers are timed once for each size on a machine, or a fixed rule chooses"
    )

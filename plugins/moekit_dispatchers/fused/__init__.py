"""The fused dispatcher: computes expert by expert in buffers that stay in the cache, in one autograd function.

For CPUs, where allocating large arrays costs more than sorting: it allocates none but what backward needs.
"""

from typing import ClassVar, Literal

from moekit.spec.fields import option
from moekit.spec.kinds import PAIR_FORMS, DispatcherSpec, Form


class Fused(DispatcherSpec):
    """Options of the fused dispatcher."""

    forms: ClassVar[frozenset[Form]] = PAIR_FORMS
    dropless: ClassVar[bool] = True

    save: Literal["all", "minimum", "nothing"] = option(
        "minimum",
        "what is saved for backward besides tokens and routing. all: outputs of the first product and of the "
        "activation; minimum: of the first product; nothing: neither",
    )
    products: Literal["torch", "onednn"] = option(
        "torch",
        "the library that multiplies in fp32: torch's own choice (usually MKL), or oneDNN, which is faster on some "
        "processors; 'auto' finds out",
    )

"""The triton dispatcher: gather, products, activation and combine in its own kernels, for GPUs.

Reference implementation: the dispatcher ``loop``. Needs the package ``triton`` (``pip install 'moekit[triton]'``),
which is imported at the first computation.
"""

from typing import ClassVar, Literal

from moekit.spec.fields import option
from moekit.spec.kinds import PAIR_FORMS, DispatcherSpec, Form


class Triton(DispatcherSpec):
    """Options of the triton dispatcher."""

    forms: ClassVar[frozenset[Form]] = PAIR_FORMS
    dropless: ClassVar[bool] = True

    save: Literal["all", "minimum", "nothing"] = option(
        "minimum",
        "what is saved for backward besides tokens and routing. all: outputs of the first product and of the "
        "activation; minimum: of the first product; nothing: neither",
    )

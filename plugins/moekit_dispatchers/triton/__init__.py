"""The triton dispatcher: gather, products, activation and combine in its own kernels, for GPUs.

Reference implementation: the dispatcher ``loop``. Needs the package ``triton`` (``pip install 'moekit[triton]'``),
which is imported at the first computation.
"""

from typing import Literal

from moekit.spec.fields import option
from moekit.spec.kinds import DispatcherSpec


class Triton(DispatcherSpec):
    """Options of the triton dispatcher."""

    save: Literal["all", "minimum", "nothing"] = option(
        "minimum",
        "what is saved for backward besides tokens and routing. all: outputs of the first product and of the "
        "activation; minimum: of the first product; nothing: neither",
    )

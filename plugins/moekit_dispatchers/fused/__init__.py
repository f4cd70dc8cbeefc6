"""The fused dispatcher: computes expert by expert in buffers that stay in the cache, in one autograd function.

For CPUs, where allocating large arrays costs more than sorting: it allocates none but what backward needs.
"""

from typing import Literal

from moekit.spec.fields import option
from moekit.spec.kinds import DispatcherSpec


class Fused(DispatcherSpec):
    """Options of the fused dispatcher."""

    save: Literal["all", "minimum", "nothing"] = option(
        "minimum",
        "what is saved for backward besides tokens and routing. all: outputs of the first product and of the "
        "activation; minimum: of the first product; nothing: neither",
    )

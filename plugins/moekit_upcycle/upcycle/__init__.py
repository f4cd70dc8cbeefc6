"""A mixture from a dense model, or from several. Torch-free: options and component."""

from moekit.spec.fields import option
from moekit.spec.kinds import ConverterSpec


class Upcycle(ConverterSpec):
    """Options of upcycling. There are ``count`` / ``shards`` copies of each dense layer.

    The mixture computes what the dense model does if nothing is initialised anew, no noise is added, and there is one
    dense model.
    """

    shards: int = option(1, "experts that share one dense layer's hidden units (virtual groups)", ge=1)
    redraw: float = option(
        0.0, "share of each expert's hidden units that are initialised anew (Drop-Upcycling)", ge=0, le=1
    )
    noise: float = option(
        0.0, "noise on each expert's weights, as a share of the standard deviation of the dense layer's", ge=0
    )
    seed: int = option(0, "of the router, the noise, and what is initialised anew", ge=0)
    mix: list[str] = option(
        [], "further dense runs of the same form, whose layers become experts by turns (Branch-Train-MiX)"
    )

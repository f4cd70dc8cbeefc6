"""FFN experts: a feed-forward net of two matrices, the expert of Shazeer 2017, GShard and Switch. Torch-free."""

from typing import Literal

from moekit.spec.fields import option
from moekit.spec.kinds import ExpertSpec


class Ffn(ExpertSpec):
    """Options of FFN experts. Each has 2·D·H parameters, and H + D more with biases."""

    hidden: int = option(help="H, width of the hidden layer", ge=1)
    activation: Literal["relu", "gelu", "silu"] = option("relu", "of the hidden layer")
    bias: bool = option(False, "whether both layers have biases")
    dropout: float = option(0.0, "share of the hidden layer's outputs set to 0, in training", ge=0, lt=1)

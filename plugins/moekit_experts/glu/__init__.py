"""GLU experts: a gated feed-forward net, three matrices and no bias. Torch-free: options and component."""

from typing import Literal

from moekit.spec.fields import option
from moekit.spec.kinds import ExpertSpec


class Glu(ExpertSpec):
    """Options of GLU experts. Each has 3·D·H parameters, and H more with ``scale_bias``."""

    hidden: int = option(help="H, width of the hidden layer", ge=1)
    activation: Literal["silu", "gelu", "relu", "sigmoid"] = option(
        "silu", "of the gate: silu (SwiGLU), gelu (GEGLU), relu (ReGLU), sigmoid (GLU)"
    )
    dropout: float = option(0.0, "share of the hidden layer's outputs set to 0, in training", ge=0, lt=1)
    scale_bias: bool = option(False, "whether each hidden unit has a learned factor, initially 1 (ST-MoE)")

"""GLU experts: a gated feed-forward net of three matrices. Torch-free: options and component."""

from collections.abc import Iterable
from typing import Literal

from moekit.spec.fields import option
from moekit.spec.kinds import ExpertSpec


class Glu(ExpertSpec):
    """Options of GLU experts. Each has 3·D·H parameters, and more with ``scale_bias``, ``bias`` or ``output_gate``."""

    hidden: int = option(help="H, width of the hidden layer", ge=1)
    activation: Literal["silu", "gelu", "relu", "sigmoid"] = option(
        "silu", "of the gate: silu (SwiGLU), gelu (GEGLU), relu (ReGLU), sigmoid (GLU)"
    )
    dropout: float = option(0.0, "share of the hidden layer's outputs set to 0, in training", ge=0, lt=1)
    scale_bias: bool = option(False, "whether each hidden unit has a learned factor, initially 1 (ST-MoE)")
    bias: bool = option(False, "whether gate, up and down have a bias (gpt-oss)")
    clamp: float | None = option(
        None, "the gate's input is at most this, up's output between minus this and this (gpt-oss: 7)", gt=0
    )
    alpha: float = option(1.0, "under silu, z·sigmoid(alpha·z) instead of z·sigmoid(z) (gpt-oss: 1.702)", gt=0)
    up_shift: float = option(0.0, "added to up's output (gpt-oss: 1)")
    output_gate: bool = option(
        False, "whether an expert's output is multiplied by sigmoid(w·x), w learned (Qwen2-MoE's shared expert)"
    )

    def check(self) -> Iterable[str]:
        """``alpha`` belongs to silu."""
        if self.alpha != 1 and self.activation != "silu":
            yield f"alpha={self.alpha:g} with activation={self.activation}: it is a factor inside silu; remove it"

"""First-party experts modules, with weights stacked over experts."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit.lazy import from_stub

MOEKIT_API = 2
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)


@hookimpl
def moekit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component(
            kind="expert",
            name="ffn",
            spec="moekit_experts.ffn:Ffn",
            target="moekit_experts.ffn.module:FfnExperts",
            summary="feed-forward net of two layers, with or without biases; 2·D·H parameters each",
            paper="Vaswani et al. 2017, Attention Is All You Need (arXiv 1706.03762)",
        ),
        Component(
            kind="expert",
            name="glu",
            spec="moekit_experts.glu:Glu",
            target="moekit_experts.glu.module:GluExperts",
            summary="gated feed-forward net: SwiGLU, GEGLU, ReGLU or GLU; 3·D·H parameters each",
            paper="Shazeer 2020, GLU Variants Improve Transformer (arXiv 2002.05202)",
        ),
        Component(
            kind="expert",
            name="linear",
            spec="moekit_experts.linear:Linear",
            target="moekit_experts.linear.module:LinearExperts",
            summary="one linear layer",
            paper="Jacobs et al. 1991, Adaptive Mixtures of Local Experts",
        ),
        Component(
            kind="expert",
            name="logistic",
            spec="moekit_experts.linear:Logistic",
            target="moekit_experts.linear.module:LinearExperts",
            summary="one linear layer with a logistic sigmoid on its outputs",
            paper="Jacobs et al. 1991, Adaptive Mixtures of Local Experts",
        ),
        Component(
            kind="expert",
            name="lora",
            spec="moekit_experts.lora:Lora",
            target="moekit_experts.lora.module:LoraExperts",
            summary="adapters of low rank over any frozen experts; rank·(in + out) parameters for each matrix",
            paper="Hu et al. 2021, LoRA (arXiv 2106.09685)",
        ),
    ]

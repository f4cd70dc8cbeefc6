"""First-party optimizers and learning-rate schedules."""

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
            kind="optimizer",
            name="adafactor",
            spec="moekit_optimizers.adafactor:Adafactor",
            target="moekit_optimizers.adafactor.module:AdafactorOptimizer",
            summary="second moments by rows and columns, steps relative to the weights' size, clipped updates",
            paper="Shazeer and Stern 2018, arXiv:1804.04235",
        ),
        Component(
            kind="optimizer",
            name="adamw",
            spec="moekit_optimizers.adamw:AdamW",
            target="moekit_optimizers.adamw.module:adamw",
            summary="Adam with decoupled weight decay, on weight matrices alone",
            paper="Loshchilov and Hutter 2019, arXiv:1711.05101",
            default=True,
        ),
        Component(
            kind="optimizer",
            name="sgd",
            spec="moekit_optimizers.sgd:SGD",
            target="moekit_optimizers.sgd.module:sgd",
            summary="gradient descent, with optional momentum",
            paper="Robbins and Monro 1951",
        ),
        Component(
            kind="schedule",
            name="constant",
            spec="moekit_optimizers.constant:Constant",
            target="moekit_optimizers.constant:constant",
            summary="the full rate throughout, after a warm-up",
            paper="Goyal et al. 2017, arXiv:1706.02677 (warm-up)",
        ),
        Component(
            kind="schedule",
            name="cosine",
            spec="moekit_optimizers.cosine:Cosine",
            target="moekit_optimizers.cosine:cosine",
            summary="half a cosine from the full rate to a final one, after a warm-up",
            paper="Loshchilov and Hutter 2017, arXiv:1608.03983",
        ),
        Component(
            kind="schedule",
            name="inverse_sqrt",
            spec="moekit_optimizers.inverse_sqrt:InverseSqrt",
            target="moekit_optimizers.inverse_sqrt:inverse_sqrt",
            summary="a warm-up, then down with one over the square root of the step",
            paper="Vaswani et al. 2017, arXiv:1706.03762",
        ),
        Component(
            kind="schedule",
            name="stages",
            spec="moekit_optimizers.stages:Stages",
            target="moekit_optimizers.stages:stages",
            summary="stages that hold the rate or move it, in a line or along a cosine, after a warm-up",
            paper="DeepSeek-AI 2024, arXiv:2412.19437",
        ),
        Component(
            kind="schedule",
            name="steps",
            spec="moekit_optimizers.steps:Steps",
            target="moekit_optimizers.steps:steps",
            summary="the full rate, multiplied by a factor at fractions of training, after a warm-up",
            paper="DeepSeek-AI 2024, arXiv:2401.02954",
        ),
        Component(
            kind="schedule",
            name="wsd",
            spec="moekit_optimizers.wsd:WSD",
            target="moekit_optimizers.wsd:wsd",
            summary="warm-up, then the full rate, then a linear decay to a final one",
            paper="Hu et al. 2024, arXiv:2404.06395; Hägele et al. 2024, arXiv:2405.18392",
        ),
    ]

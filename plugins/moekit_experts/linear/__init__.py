"""Experts of one layer: ``linear``, and ``logistic`` with a sigmoid on its outputs. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import ExpertSpec


@dataclass(frozen=True, kw_only=True)
class Linear(ExpertSpec):
    """Options of linear experts. Each has D·O parameters, and O more with a bias."""

    bias: bool = option(True, "whether the layer has a bias")


@dataclass(frozen=True, kw_only=True)
class Logistic(ExpertSpec):
    """Options of logistic experts. Each has D·O parameters, and O more with a bias."""

    bias: bool = option(True, "whether the layer has a bias")


COMPONENTS = (
    Component(
        name="linear",
        spec=Linear,
        target="moekit_experts.linear.module:LinearExperts",
        summary="one linear layer",
        paper="Jacobs et al. 1991, Adaptive Mixtures of Local Experts",
    ),
    Component(
        name="logistic",
        spec=Logistic,
        target="moekit_experts.linear.module:LinearExperts",
        summary="one linear layer with a logistic sigmoid on its outputs",
        paper="Jacobs et al. 1991, Adaptive Mixtures of Local Experts",
    ),
)

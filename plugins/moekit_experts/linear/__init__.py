"""Experts of one layer: ``linear``, and ``logistic`` with a sigmoid on its outputs. Torch-free."""

from moekit.spec.fields import option
from moekit.spec.kinds import ExpertSpec


class Linear(ExpertSpec):
    """Options of linear experts. Each has D·O parameters, and O more with a bias."""

    bias: bool = option(True, "whether the layer has a bias")


class Logistic(ExpertSpec):
    """Options of logistic experts. Each has D·O parameters, and O more with a bias."""

    bias: bool = option(True, "whether the layer has a bias")

"""Experts that change others: frozen weights, and few weights of their own that are trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from moekit.contracts.layer import ExpertBank


class AdaptedExperts(ExpertBank):
    """An experts module over another, whose parameters it freezes (``requires_grad`` false) when it is built.

    All its own parameters are below ``adapters``, and stacked over experts. A run that starts from the weights of plain
    experts loads them into ``base``, and ``adapters`` begin with initial weights. An exported model has plain experts.

    Attributes:
        base: the experts module that is changed.
    """

    base: ExpertBank

    @abstractmethod
    def merged(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """A parameter of plain experts that compute what these do.

        Args:
            name: of the parameter, in ``base``.
            read: gives a parameter of this module by its name, of some experts alone.

        Returns:
            The parameter for the same experts, in the dtype of the base's.
        """

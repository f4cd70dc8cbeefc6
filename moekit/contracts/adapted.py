"""Modules that change another one: frozen weights, and few weights of their own that are trained."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


class Read(Protocol):
    """Reads a parameter by its name: the requested rows, or all of them."""

    def __call__(self, name: str, *, whole: bool = False) -> Tensor:
        """The parameter, or its rows."""


@runtime_checkable
class Adapted(Protocol):
    """A module over another, its submodule ``base``, whose parameters it freezes when it is built.

    All its own parameters are below ``adapters``. A run that starts from the weights of a plain model loads them into
    ``base``, and ``adapters`` begin with initial weights. An exported model is plain again.
    """

    def merged_parameter(self, name: str, read: Read) -> Tensor:
        """A parameter of a plain module that computes what this one does.

        Args:
            name: of the parameter, in ``base``.
            read: gives a parameter of this module by its name.

        Returns:
            The parameter, in the dtype of the base's: the rows, or experts, that ``read`` gives.
        """

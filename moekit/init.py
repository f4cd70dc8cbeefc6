"""How weights are drawn before training: one rule for a whole model, which each part applies to its own weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Init:
    """Draws a weight from N(0, std²); or, with a ``scale``, by its number of inputs.

    Attributes:
        std: standard deviation of the normal distribution.
        scale: s of Switch Transformer 2021, section 2.4: a normal distribution of standard deviation sqrt(s / n), cut
            at two of them, n the number of inputs; ``std`` is not used then. (s stands inside the root: from s = 1 to
            0.1 the standard deviation falls by .316.)
    """

    std: float = 0.02
    scale: float | None = None

    @classmethod
    def of(cls, std: float | None, scale: float | None) -> Init:
        """What a model's spec says, of which at most one is given."""
        return cls(scale=scale) if std is None else cls(std=std)

    def draw(self, weight: Tensor, inputs: int | None = None) -> None:
        """Draws one weight anew, in place.

        Args:
            weight: laid out like ``nn.Linear``, inputs last.
            inputs: n, where it is not the last dimension (an embedding's is 1: one row is looked up).
        """
        if self.scale is None:
            nn.init.normal_(weight, std=self.std)
        else:
            std = math.sqrt(self.scale / (inputs or weight.shape[-1]))
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def init_matrices(module: nn.Module, init: Init) -> None:
    """Draws every weight of two or more dimensions by ``init`` and sets biases (named ``b_...``, ``bias``) to 0.

    One-dimensional parameters that are no biases (norms' gains, learned scales) keep what they have.
    """
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2].startswith(("b_", "bias")):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2:
            init.draw(parameter)

"""The distribution of initial weights: one rule for a whole model, which each component applies to its own weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Init:
    """N(0, std²); or, with a ``scale``, a truncated normal distribution whose variance is scale / inputs.

    Attributes:
        std: standard deviation; unused with a ``scale``.
        scale: s of Switch Transformer 2021, section 2.4: standard deviation sqrt(s / n) for n inputs, truncated at two
            standard deviations. s is inside the root: from s = 1 to 0.1 the standard deviation shrinks by .316.
    """

    std: float = 0.02
    scale: float | None = None

    @classmethod
    def of(cls, std: float | None, scale: float | None) -> Init:
        """From a model's spec, which gives at most one of the two."""
        return cls(scale=scale) if std is None else cls(std=std)

    def draw(self, weight: Tensor, inputs: float | None = None) -> None:
        """Initialises one weight, in place.

        Args:
            weight: as in ``nn.Linear``, inputs last.
            inputs: n, if it is not the size of the last dimension (1 for an embedding: one row is looked up).
        """
        if self.scale is None:
            nn.init.normal_(weight, std=self.std)
        else:
            std = math.sqrt(self.scale / (inputs or weight.shape[-1]))
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


class Table(nn.Embedding):
    """Rows that are looked up, with a rule of its own for initial values.

    Args:
        rows, width: shape of the table.
        std: standard deviation, whatever the model's distribution is; None for the model's.
        inputs: n of the model's distribution, if it has a ``scale``; 1 is the rule of every embedding.
    """

    def __init__(self, rows: int, width: int, *, std: float | None = None, inputs: float = 1) -> None:
        super().__init__(rows, width)
        self.std, self.inputs = std, inputs

    def draw(self, init: Init) -> None:
        """Initialises the table, in place, in a model with the distribution ``init``."""
        (init if self.std is None else Init(std=self.std)).draw(self.weight, self.inputs)


def init_matrices(module: nn.Module, init: Init) -> None:
    """Initialises every weight of two or more dimensions by ``init``; biases (named ``b_...``, ``bias``) become 0.

    Other one-dimensional parameters (gains of norms, learned scales) keep their values.
    """
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2].startswith(("b_", "bias")):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2:
            init.draw(parameter)

"""LoRA on linear layers of a model's blocks, such as the projections of attention. Torch-free.

Source: Hu et al. 2021, LoRA (arXiv 2106.09685, equation 3). Experts have an adapter of their own: ``use: lora``.
"""

from collections.abc import Iterable

from moekit.spec.fields import Spec, option


class Lora(Spec):
    """``W x + alpha / rank · B A x`` for a frozen W from D to H: rank·(D + H) parameters, 0 in effect at first."""

    rank: int = option(8, "width of the adapters", ge=1)
    alpha: float = option(16.0, "an adapter's output is multiplied by alpha / rank", gt=0)
    dropout: float = option(0.0, "share of an adapter's inputs set to 0, in training", ge=0, lt=1)
    at: list[str] = option(
        ["attention"], "which linear layers, by a word of their names, such as attention, cross_attention, q or v"
    )

    def check(self) -> Iterable[str]:
        """A layer must be named."""
        if not self.at:
            yield "lora.at is empty, so nothing would be adapted; lora: null for no adapters"

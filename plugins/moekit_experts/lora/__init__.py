"""LoRA over any experts: two small matrices next to each frozen one. Torch-free: options and component."""

from moekit.spec.fields import option
from moekit.spec.kinds import AdaptedSpec


class Lora(AdaptedSpec):
    """Options of LoRA: ``{use: lora, count: 8, rank: 16, base: {use: glu, hidden: 1024}}``.

    A matrix from D to H gets rank·(D + H) parameters for each expert, the only ones that are trained.
    """

    rank: int = option(8, "width of the adapters", ge=1)
    alpha: float = option(16.0, "an adapter's output is multiplied by alpha / rank", gt=0)
    dropout: float = option(0.0, "share of an adapter's inputs set to 0, in training", ge=0, lt=1)

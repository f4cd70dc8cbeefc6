"""Other ways than YaRN's to stretch rotary positions over a longer context. Torch-free.

Where angles depend on how long a text is, padding counts as text, as in ``transformers``, and no cache is kept.

Source: Chen et al. 2023, "Extending Context Window of Large Language Models via Positional Interpolation" (arXiv
2306.15595, eq. 4) for ``linear``; the NTK-aware base of r/LocalLLaMA (bloc97, emozilla 2023), as ``transformers`` has
it, for ``dynamic``; Ding et al. 2024, "LongRoPE" (arXiv 2402.13753), with the two lists of Phi-3's released code.
"""

from collections.abc import Iterable
from typing import Literal

from moekit.spec.fields import Spec, option


class Stretch(Spec):
    """Rotary angles that one factor makes smaller."""

    rule: Literal["linear", "dynamic"] = option(
        help="linear: all angles are divided by the factor; dynamic: in a text longer than original, they have a "
        "larger base, which grows with its length"
    )
    factor: float = option(help="s, how many times longer the context becomes", ge=1)
    original: int | None = option(None, "under dynamic: positions of the context that the model was trained on", ge=1)

    def check(self) -> Iterable[str]:
        """``original`` belongs to ``dynamic``."""
        if self.rule == "dynamic" and self.original is None:
            yield "rule=dynamic without original: say from how many positions on the base grows"
        if self.rule == "linear" and self.original is not None:
            yield f"original={self.original} with rule=linear: all positions are divided alike; remove it"

    @property
    def reads_length(self) -> bool:
        """Whether the angles depend on how long the whole text is."""
        return self.rule == "dynamic"

    def base(self, theta: float, width: int, length: int) -> float:
        """The base of the angles in a text of ``length`` positions: ``theta (s·n/L - s + 1)^(R/(R - 2))`` if n > L."""
        if self.original is None or length <= self.original:
            return theta
        return float(theta * (self.factor * length / self.original - self.factor + 1) ** (width / (width - 2)))

    def check_width(self, width: int) -> Iterable[str]:
        """The exponent of ``dynamic`` needs two pairs or more; the attention's spec calls this."""
        if self.rule == "dynamic" and width < 4:
            yield f"stretch.rule=dynamic needs 4 rotary dimensions or more, not {width}"


class LongRope(Spec):
    """Rotary angles that are divided by a number for each pair: one list for short texts, another for long ones."""

    short: list[float] = option(help="divides each pair's angle in a text of at most original positions")
    long: list[float] = option(help="the same in a longer text")
    original: int = option(help="positions of the context that the model was trained on", ge=1)
    short_scale: float = option(
        1.0, "in a short text the rotated parts of queries and keys are multiplied by this", gt=0
    )
    long_scale: float | None = option(None, "the same in a longer text; default: short_scale", gt=0)

    def check(self) -> Iterable[str]:
        """All divisors are above 0."""
        if min([*self.short, *self.long], default=0) <= 0:
            yield "short and long must be numbers above 0, one for each rotary pair"

    @property
    def reads_length(self) -> bool:
        """Whether the angles depend on how long the whole text is."""
        return list(self.short) != list(self.long) or self.long_scale not in (None, self.short_scale)

    def of(self, length: int) -> tuple[list[float], float]:
        """The divisors, and the factor of queries and keys, in a text of ``length`` positions."""
        if length > self.original:
            return list(self.long), self.short_scale if self.long_scale is None else self.long_scale
        return list(self.short), self.short_scale

    def check_width(self, width: int) -> Iterable[str]:
        """Each pair has its number; the attention's spec calls this."""
        if (len(self.short), len(self.long)) != (width // 2, width // 2):
            yield (
                f"long_rope has {len(self.short)} short and {len(self.long)} long divisors; expected {width // 2} of "
                f"each, one for each pair of {width} rotary dimensions"
            )

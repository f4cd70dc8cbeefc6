"""YaRN's options: rotary positions for a longer context than a model was trained on. Torch-free.

Source: Peng et al. 2023, "YaRN" (arXiv 2309.00071), section 3; DeepSeek-V2 2024 (section 3.1.4) and DeepSeek-V3 2024
(section 4.3) for the values.
"""

import math
from collections.abc import Iterable
from typing import Literal

from moekit.spec.fields import Spec, option


class Yarn(Spec):
    """Options of YaRN. It applies at every length: to train within ``original``, set the group to null.

    A rotary pair that turns more than ``beta_fast`` times in ``original`` positions keeps its angles. One that turns
    less than ``beta_slow`` times has them divided by ``factor``. Pairs between these interpolate. Scores are multiplied
    by ``score_factor()``.
    """

    factor: float = option(help="s, how many times longer the context becomes; DeepSeek-V2 and V3: 40", ge=1)
    original: int = option(4096, "L, positions of the context that the model was trained on", ge=1)
    beta_fast: float = option(32.0, "a pair with more turns than this in L positions keeps its angles (beta)", gt=0)
    beta_slow: float = option(1.0, "one with fewer turns than this has them divided by s (alpha)", gt=0)
    mscale: float = option(0.1, "m of sqrt(1/t) = m ln s + 1; DeepSeek-V3: .1, DeepSeek-V2: .0707", ge=0)
    ramp: Literal["index", "turns"] = option(
        "index", "what the interpolation is linear in: the pair's index (released code), or its turns (the paper)"
    )

    truncate: bool = option(True, "under ramp=index, round the two bounds to whole pairs; gpt-oss does not")

    def check(self) -> Iterable[str]:
        """``beta_fast`` is not less than ``beta_slow``; if they are equal, no pair interpolates (Kimi-K2, Llama 4)."""
        if self.beta_fast < self.beta_slow:
            yield f"beta_fast={self.beta_fast:g} must be at least beta_slow={self.beta_slow:g}"

    def check_base(self, theta: float) -> Iterable[str]:
        """The base of the angles must make later pairs slower; the attention's spec calls this."""
        if theta <= 1:
            yield f"rope_theta={theta:g} must be more than 1 under yarn: later pairs would not be slower"

    def score_factor(self) -> float:
        """The factor of scores in addition to the usual scale: 1/t, the *square* of ``m ln s + 1``."""
        return (self.mscale * math.log(self.factor) + 1) ** 2

    def bounds(self, width: int, theta: float) -> tuple[float, float]:
        """Under ``ramp: index``: pairs up to the first index keep their angles, from the second on they are divided.

        ``width`` is that of the rotary part of a head, ``theta`` the base of the angles.
        """
        fast, slow = (
            width * math.log(self.original / (2 * math.pi * turns)) / (2 * math.log(theta))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            fast, slow = math.floor(fast), math.ceil(slow)
        low, high = max(fast, 0), min(slow, width - 1)
        return low, high if high > low else low + 1e-3  # no pairs between them: a step

"""Grouped-query attention: each group of query heads shares one key and value head.

Groups of one head make multi-head attention, a single group makes multi-query attention.

Source: Ainslie et al. 2023, "GQA" (section 2.2), over Vaswani et al. 2017 (eq. 1); positions: RoFormer.
"""

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.fields import group, option
from moekit.spec.kinds import AttentionSpec
from moekit_models.yarn import Yarn


class GQA(AttentionSpec):
    """Options of grouped-query attention."""

    caches: ClassVar[bool] = True

    heads: int = option(help="query heads", ge=1)
    kv_heads: int | None = option(None, "key and value heads; default: as many as heads", ge=1)
    head_dim: int = option(help="width of a head, even", ge=2)
    rope_theta: float = option(10000.0, "base of the rotary angles", gt=0)
    yarn: Yarn | None = group("positions beyond the context trained on; null for none", default=None)
    qk_norm: bool = option(False, "RMSNorm on each query and key head, before the rotation")
    norm_eps: float = option(1e-6, "added inside the norms' square root", gt=0)

    def check(self) -> Iterable[str]:
        """Groups of heads are equal, rotary positions rotate pairs, and under YaRN later pairs are slower."""
        if self.heads % (self.kv_heads or self.heads):
            yield f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}"
        if self.head_dim % 2:
            yield f"head_dim={self.head_dim} must be even: rotary positions rotate pairs"
        if self.yarn is not None:
            yield from self.yarn.check_base(self.rope_theta)

"""Multi-head latent attention: the keys and values of all heads are computed from one small latent vector a token.

A second, rotary part of each head carries positions; all heads share one vector as its key. A decoder's cache holds
``kv_rank + rope_dim`` numbers a token, whatever the number of heads.

Source: DeepSeek-V2 2024 (section 2.1, eqs 9 to 19; arXiv 2405.04434); DeepSeek-V3 2024 (section 2.1.1).
"""

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.fields import group, option
from moekit.spec.kinds import AttentionSpec
from moekit_models.yarn import Yarn


class MLA(AttentionSpec):
    """Options of multi-head latent attention."""

    caches: ClassVar[bool] = True
    takes_documents: ClassVar[bool] = True

    heads: int = option(help="heads", ge=1)
    query_rank: int | None = option(None, "width of the queries' latent; null: queries directly from the token", ge=1)
    kv_rank: int = option(help="width of the latent from which keys and values are computed", ge=1)
    nope_dim: int = option(help="width of a head's part without positions", ge=1)
    rope_dim: int = option(help="width of a head's rotary part, even", ge=2)
    value_dim: int = option(help="width of a head's value", ge=1)
    rope_theta: float = option(10000.0, "base of the rotary angles", gt=0)
    yarn: Yarn | None = group("positions beyond the context trained on; null for none", default=None)
    norm_eps: float = option(1e-6, "added inside the norms' square root", gt=0)

    def check(self) -> Iterable[str]:
        """Rotary positions rotate pairs; under YaRN later pairs are slower."""
        if self.rope_dim % 2:
            yield f"rope_dim={self.rope_dim} must be even: rotary positions rotate pairs"
        if self.yarn is not None:
            yield from self.yarn.check_base(self.rope_theta)

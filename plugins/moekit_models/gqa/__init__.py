"""Grouped-query attention: each group of query heads shares one key and value head.

Groups of one head make multi-head attention, a single group makes multi-query attention.

Source: Ainslie et al. 2023, "GQA" (section 2.2), over Vaswani et al. 2017 (eq. 1); positions: RoFormer. Other
options are those of released models: ``norm_over`` and ``clip`` of OLMoE (Muennighoff et al. 2024, arXiv 2409.02060),
``sinks`` and ``window`` of gpt-oss (OpenAI 2025, arXiv 2508.10925), ``rotary_dim`` of GLM-4.5 (2025, arXiv 2508.06471),
``bias`` of Qwen2 (2024, arXiv 2407.10671), ``chunk``, ``norm_weight`` and ``temperature`` of Llama 4 (Meta 2025,
released code; the temperature after Nakanishi 2025, arXiv 2501.19399).
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

from moekit.spec.fields import Spec, group, option
from moekit.spec.kinds import AttentionSpec
from moekit_models.stretch import LongRope, Stretch
from moekit_models.yarn import Yarn


class Temperature(Spec):
    """Queries of position s (from 0) are multiplied by ``1 + scale · ln(1 + floor((s + 1) / floor))``."""

    scale: float = option(0.1, "how much they grow", gt=0)
    floor: int = option(8192, "positions after which they grow", ge=1)


class GQA(AttentionSpec):
    """Options of grouped-query attention."""

    caches: ClassVar[bool] = True
    takes_documents: ClassVar[bool] = True

    heads: int = option(help="query heads", ge=1)
    kv_heads: int | None = option(None, "key and value heads; default: as many as heads", ge=1)
    head_dim: int = option(help="width of a head, even", ge=2)
    rope_theta: float = option(10000.0, "base of the rotary angles", gt=0)
    yarn: Yarn | None = group("positions beyond the context trained on; null for none", default=None)
    stretch: Stretch | None = group("the same by one factor; null for none", default=None)
    long_rope: LongRope | None = group("the same by a number for each rotary pair; null for none", default=None)
    rotary_dim: int | None = option(
        None,
        "how many of a head's dimensions, the first ones, are rotated; default: all (GLM-4.5: half), 0: none",
        ge=0,
    )
    window: int | None = option(
        None, "a position attends to this many positions, itself included; default: to all before it", ge=1
    )
    chunk: int | None = option(
        None, "the text is cut into runs of this many positions, and one attends within its own; default: one run", ge=1
    )
    temperature: Temperature | None = group("queries that grow with their position; null for none", default=None)
    bias: Literal["none", "qkv", "all"] = option(
        "none", "which projections have a bias: queries, keys and values (Qwen2), or these and the output (gpt-oss)"
    )
    sinks: bool = option(False, "a learned logit for each head takes part in the softmax and has no value (gpt-oss)")
    qk_norm: bool = option(False, "RMSNorm on queries and keys, before the rotation")
    norm_over: Literal["head", "all"] = option(
        "head", "what one norm covers: each head (Qwen3), or all heads of a position at once (OLMoE)"
    )
    norm_weight: bool = option(True, "whether these norms have a learned weight (Llama 4 has none)")
    clip: float | None = option(
        None, "queries, keys and values are clamped to ± this, after the norm, before the rotation (OLMoE)", gt=0
    )
    norm_eps: float = option(1e-6, "added inside the norms' square root", gt=0)

    def check(self) -> Iterable[str]:
        """Groups of heads are equal, rotary positions rotate pairs, and under YaRN later pairs are slower."""
        if self.heads % (self.kv_heads or self.heads):
            yield f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}"
        if self.head_dim % 2:
            yield f"head_dim={self.head_dim} must be even: rotary positions rotate pairs"
        if self.rotary_dim is not None and (self.rotary_dim % 2 or self.rotary_dim > self.head_dim):
            yield f"rotary_dim={self.rotary_dim} must be even, and at most head_dim={self.head_dim}"
        if self.norm_over != "head" and not self.qk_norm:
            yield f"norm_over={self.norm_over} without qk_norm: set qk_norm=true, or remove it"
        if not self.norm_weight and not self.qk_norm:
            yield "norm_weight=false without qk_norm: set qk_norm=true, or remove it"
        if self.window is not None and self.chunk is not None:
            yield f"window={self.window} and chunk={self.chunk} both limit what a position attends to: keep one of them"
        if self.yarn is not None:
            yield from self.yarn.check_base(self.rope_theta)
        ways = [name for name in ("yarn", "stretch", "long_rope") if getattr(self, name) is not None]
        if len(ways) > 1:
            yield f"{' and '.join(ways)} both change the angles for a longer context: keep one of them"
        if ways and self.rotary_dim == 0:
            yield f"{ways[0]} with rotary_dim=0: nothing is rotated; remove one of them"
            return
        for way in (self.stretch, self.long_rope):
            yield from () if way is None else way.check_width(self.rotary_dim or self.head_dim)

    @property
    def longer(self) -> Yarn | Stretch | LongRope | None:
        """How the angles are changed for a longer context."""
        return self.yarn or self.stretch or self.long_rope

    def takes_cache(self) -> bool:
        """Not where the angles of earlier positions change as a text becomes longer."""
        return not any(way is not None and way.reads_length for way in (self.stretch, self.long_rope))

    def keeps_documents(self) -> bool:
        """Not where something counts positions from the start of the text instead of that of a document."""
        return self.takes_documents and self.takes_cache() and self.chunk is None and self.temperature is None

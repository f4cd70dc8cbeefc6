"""A decoder transformer: pre-norm blocks of attention and a feed-forward part, dense or a mixture of experts.

Optionally with multi-token prediction: small modules, used in training alone, that predict tokens further ahead.

Source: Vaswani et al. 2017 with RMSNorm, rotary positions and no biases; multi-token prediction: DeepSeek-V3 2024
(section 2.2, eqs 21 to 25; arXiv 2412.19437).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from moekit.component import Component
from moekit.spec.fields import Spec, fields_of, group, option, slot
from moekit.spec.kinds import AttentionSpec, ExpertSpec, ModelSpec, MoE


@dataclass(frozen=True, kw_only=True)
class At(Spec):
    """Which layers are mixtures: exactly one of three ways to say it. Layers are counted from 0."""

    first: int | None = option(None, "layers from this one on", ge=0)
    every: int | None = option(None, "every n-th layer: n - 1, 2n - 1, ...", ge=1)
    layers: list[int] | None = option(None, "these layers")

    def check(self) -> Iterable[str]:
        """Exactly one way, and no layer before the first."""
        given = [name for name in ("first", "every", "layers") if getattr(self, name) is not None]
        if len(given) != 1:
            yield f"give exactly one of first, every, layers (given: {', '.join(given) or 'none'})"
        elif self.layers is not None and (len(set(self.layers)) < len(self.layers) or min(self.layers, default=0) < 0):
            yield f"layers={list(self.layers)} must be different numbers from 0"

    def indices(self, depth: int) -> tuple[int, ...]:
        """The mixture layers of a stack of ``depth`` layers, in order."""
        if self.first is not None:
            return tuple(range(self.first, depth))
        if self.every is not None:
            return tuple(range(self.every - 1, depth, self.every))
        return tuple(sorted(self.layers or ()))


@dataclass(frozen=True, kw_only=True)
class DecoderMoE(MoE):
    """The mixture layers of a decoder: what they are, and where."""

    at: At = group("which layers are mixtures")


@dataclass(frozen=True, kw_only=True)
class MTP(Spec):
    """Multi-token prediction."""

    depth: int = option(1, "how many tokens past the next one are predicted", ge=1)


@dataclass(frozen=True, kw_only=True)
class Decoder(ModelSpec):
    """Options of the decoder."""

    gives: ClassVar[str] = "next_token"
    takes: ClassVar[str] = "tokens"

    vocab: int = option(help="tokens in the vocabulary", ge=1)
    dim: int = option(help="width of the tokens", ge=1)
    depth: int = option(help="layers", ge=1)
    attention: AttentionSpec = slot("attention", "how positions read each other")
    ffn: ExpertSpec = slot("expert", "the feed-forward part of dense layers")
    moe: DecoderMoE | None = group("the mixture layers; null for a dense model", default=None)
    mtp: MTP | None = group("multi-token prediction; null for none", default=None)
    tied: bool = option(False, "one matrix for the input embedding and the output head")
    init_std: float = option(0.02, "standard deviation that weights are drawn with", gt=0)
    init_scale: float | None = option(None, "draw with std sqrt(this / inputs) instead, cut at two (Switch: .1)", gt=0)
    norm_eps: float = option(1e-6, "added inside the norms' square root", gt=0)
    recompute: bool = option(False, "keep no activations inside blocks; compute them again for the gradient")

    def check(self) -> Iterable[str]:
        """The layers named exist, dense layers hold one expert, and no router sees later tokens."""
        if self.ffn.count != 1:
            yield f"ffn.count={self.ffn.count} must be 1: a dense layer is one expert that every token passes"
        if self.moe is None:
            return
        if leak := self.moe.leak():
            yield f"{leak} would leak later tokens: it is not causal, and a decoder predicts the next token"
        indices = self.moe.at.indices(self.depth)
        if not indices or indices[-1] >= self.depth:
            yield f"moe.at names {list(indices) or 'no layer'}, but the decoder has layers 0 to {self.depth - 1}"

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that are mixtures."""
        return () if self.moe is None else self.moe.at.indices(self.depth)

    def dense_twin(self) -> Decoder | None:
        """The dense decoder that does as many feed-forward multiply-adds a token, averaged over layers and rounded.

        Routers and multi-token prediction are left out of the sum; the latter stays, with a dense block. None when
        this decoder is dense itself, or when its ``ffn`` has no ``hidden`` width to set.
        """
        if self.moe is None or "hidden" not in fields_of(type(self.ffn)):
            return None
        from moekit.params import multiply_adds  # torch: only when a twin is asked for

        routed = self.moe.router.active(self.moe.experts.count)
        shared = self.moe.shared
        mixture = routed * multiply_adds(self.moe.experts, self.dim)
        mixture += 0 if shared is None else shared.count * multiply_adds(shared, self.dim)
        num_moe = len(self.moe_layers)
        dense = multiply_adds(self.ffn, self.dim)
        mean = (num_moe * mixture + (self.depth - num_moe) * dense) / self.depth
        hidden = max(1, round(self.ffn.hidden * mean / dense))  # type: ignore[attr-defined]
        return replace(self, moe=None, ffn=replace(self.ffn, hidden=hidden))  # type: ignore[call-arg]


COMPONENT = Component(
    name="decoder",
    spec=Decoder,
    target="moekit_models.decoder.module:DecoderModel",
    summary="a decoder transformer, each layer dense or a mixture of experts; multi-token prediction",
    paper="Vaswani et al. 2017; DeepSeek-V3 2024 (multi-token prediction)",
)

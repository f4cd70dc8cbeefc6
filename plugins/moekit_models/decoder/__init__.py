"""A decoder transformer: blocks of attention and a feed-forward part, dense or a mixture of experts.

Optionally with multi-token prediction: small modules, used only in training, that predict tokens further ahead.

Source: Vaswani et al. 2017 with RMSNorm, rotary positions and no biases; multi-token prediction: DeepSeek-V3 2024
(section 2.2, eqs 21 to 25; arXiv 2412.19437). Other options are those of released models: ``norm_at`` of OLMo 2 (2024,
section 3.3.2; arXiv 2501.00656), ``norm`` and ``head_bias`` of Phi-3.5-MoE (Abdin et al. 2024, arXiv 2404.14219).
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar, Literal

from moekit.spec.fields import Spec, group, option, slot
from moekit.spec.kinds import MOST_LAYERS, AttentionSpec, ExpertSpec, ModelSpec, MoE
from moekit_models.at import At as At
from moekit_models.at import check_dense, check_init, dense_equivalent, feed_forward_work, no_leak
from moekit_models.lora import Lora
from moekit_models.relative import Relative


class DecoderMoE(MoE):
    """The mixture layers of a decoder: what they are, and where."""

    at: At = group("which layers are mixtures")


class OtherAttention(Spec):
    """Layers whose attention differs from that of the others, such as every second one, without a window."""

    at: At = group("which layers")
    attention: AttentionSpec = slot("attention", "how positions attend to each other in these layers")


class MTP(Spec):
    """Multi-token prediction."""

    depth: int = option(1, "how many tokens past the next one are predicted", ge=1, le=MOST_LAYERS)


class Decoder(ModelSpec):
    """Options of the decoder."""

    gives: ClassVar[str] = "next_token"
    takes: ClassVar[str] = "tokens"

    vocab: int = option(help="tokens in the vocabulary", ge=1)
    dim: int = option(help="width of the tokens", ge=1)
    depth: int = option(help="layers", ge=1, le=MOST_LAYERS)
    attention: AttentionSpec = slot("attention", "how positions attend to each other")
    other_attention: OtherAttention | None = group("layers with another attention; null for none", default=None)
    ffn: ExpertSpec = slot("expert", "the feed-forward part of dense layers")
    moe: DecoderMoE | None = group("the mixture layers; null for a dense model", default=None)
    mtp: MTP | None = group("multi-token prediction; null for none", default=None)
    tied: bool = option(False, "one matrix for the input embedding and the output head")
    init_std: float | None = option(None, "standard deviation of initial weights; default: .02", gt=0)
    init_scale: float | None = option(
        None, "instead: initial weights have std sqrt(this / inputs), truncated at two (Switch: .1)", gt=0
    )
    norm_eps: float = option(1e-6, "added inside the norms' square root", gt=0)
    norm: Literal["rms", "layer"] = option("rms", "RMSNorm, or LayerNorm with a bias (Phi-3.5-MoE)")
    norm_at: Literal["input", "output"] = option(
        "input", "what is normed of each attention and feed-forward part: its input, or its output (OLMo 2)"
    )
    head_bias: bool = option(False, "whether the output head has a bias (Phi-3.5-MoE)")
    context: int | None = option(
        None, "tokens of a text that it reads at most when it generates; 0: all; null: data.seq, as in training", ge=0
    )
    lora: Lora | None = group("adapters of linear layers, which an export merges; null for none", default=None)
    recompute: Literal["none", "experts", "blocks"] = option(
        "none", "activations that backward recomputes instead of keeping them: of mixtures, or of whole blocks"
    )

    def check(self) -> Iterable[str]:
        """The named layers exist, a dense layer is one expert, and no part of a mixture sees later tokens."""
        yield from check_dense(self.ffn)
        yield from check_init(self.init_std, self.init_scale)
        other = self.other_attention
        every = [self.attention, *([] if other is None else [other.attention])]
        if any(isinstance(attention, Relative) and attention.shared for attention in every):
            yield "attention.shared is for the stacks of the model encoder_decoder: remove it"
        if self.tied and self.head_bias:
            yield "head_bias with tied: a tied head is the input embedding, which has no bias; remove one of them"
        if self.other_attention is not None:
            yield from self.other_attention.at.check_depth(self.depth, "decoder", "other_attention.at")
        if self.moe is None:
            return
        yield from no_leak(self.moe, "a decoder")
        yield from self.moe.at.check_depth(self.depth, "decoder")

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that are mixtures."""
        return () if self.moe is None else self.moe.at.indices(self.depth)

    def plain(self) -> "Decoder":
        """The model without ``lora``."""
        return replace(self, lora=None)

    def feed_forward_work(self, experts_per_token: float | None = None) -> float:
        """Multiply-adds of the blocks' feed-forward parts on one token, without those of multi-token prediction."""
        return feed_forward_work(
            self.ffn, self.moe, self.dim, layers=self.depth, mixtures=len(self.moe_layers),
            experts_per_token=experts_per_token,
        )  # fmt: skip

    def attention_of(self, layer: int) -> AttentionSpec:
        """The attention of a layer; of multi-token prediction, whose layer is ``depth``, that of most layers."""
        other = self.other_attention
        return self.attention if other is None or layer not in other.at.indices(self.depth) else other.attention

    @property
    def caches(self) -> bool:
        """Whether the attention of every layer takes a cache."""
        return all(self.attention_of(layer).takes_cache() for layer in range(self.depth))

    def takes_documents(self) -> bool:
        """Whether the attention of every layer keeps documents apart."""
        return all(self.attention_of(layer).keeps_documents() for layer in range(self.depth + (self.mtp is not None)))

    def dense_baseline(self, experts_per_token: float | None = None) -> "Decoder | None":
        """The dense decoder with as much ``feed_forward_work``, the same in each layer, rounded.

        Multi-token prediction stays, with a dense block. None if this decoder is dense itself, or if its ``ffn`` has no
        ``hidden`` width to set.
        """
        if self.moe is None:
            return None
        work = self.feed_forward_work(experts_per_token)
        ffn = dense_equivalent(self.ffn, self.dim, layers=self.depth, work=work)
        return None if ffn is None else replace(self, moe=None, ffn=ffn)

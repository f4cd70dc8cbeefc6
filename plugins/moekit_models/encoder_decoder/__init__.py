"""An encoder-decoder transformer: the encoder reads a source, the decoder writes a target and attends to the source.

Pre-norm RMSNorm blocks; in both stacks each layer is dense or a mixture of experts, with weights of its own. One
matrix embeds the tokens of source and target, unless ``source_embedding`` says otherwise.

Source: Vaswani et al. 2017 in T5's arrangement (Raffel et al. 2020, section 2.1). The mixtures in both stacks: GShard
2020 (section 2.1), Switch Transformer 2021 (section 2); the dense part in addition to a mixture, and the
encoder's own dispatcher: ST-MoE 2022 (arXiv 2202.08906, appendix C; batch prioritised routing).
"""

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import ClassVar, Literal

from moekit.spec.fields import ConflictError, Spec, group, option, slot
from moekit.spec.kinds import MOST_LAYERS, AttentionSpec, DispatcherSpec, ExpertSpec, ModelSpec, MoE
from moekit_models.at import At, check_dense, check_init, dense_equivalent, feed_forward_work, no_leak
from moekit_models.lora import Lora


class Cross(Spec):
    """The decoder's attention to the source, without positions."""

    heads: int = option(help="heads", ge=1)
    head_dim: int = option(help="width of a head; heads times this need not be the tokens' width", ge=1)
    scale: float | None = option(None, "factor of dot products; default: 1/sqrt(head_dim), T5: 1", gt=0)


class StackMoE(MoE):
    """The mixture layers of both stacks: what they are, and where."""

    at: At = group("which layers are mixtures, in each stack")
    decoder_at: At | None = group("the same in the decoder, if it differs there", default=None)
    dense_too: bool = option(False, "after each mixture a dense feed-forward part with its own norm (ST-MoE)")
    encoder_dispatcher: DispatcherSpec | None = slot(
        "dispatcher", "the encoder's own dispatcher, if it differs; it may read the whole batch", optional=True
    )

    def check(self) -> Iterable[str]:
        """The parts fit together, also with the encoder's dispatcher."""
        problems = list(super().check())
        yield from problems
        if not problems and self.encoder_dispatcher is not None:
            try:
                self.layer(encoder=True)
            except ConflictError as conflict:
                yield from (f"encoder_dispatcher: {sentence}" for sentence in conflict.sentences)

    def layer(self, *, encoder: bool) -> MoE:
        """One mixture layer of the encoder, or of the decoder."""
        parts = {f.name: getattr(self, f.name) for f in fields(MoE)}
        if encoder and self.encoder_dispatcher is not None:
            parts["dispatcher"] = self.encoder_dispatcher
        return MoE(**parts)


class EncoderDecoder(ModelSpec):
    """Options of the encoder-decoder."""

    gives: ClassVar[str] = "next_token"
    takes: ClassVar[str] = "pairs"

    vocab: int = option(help="tokens in the vocabulary, of source and target alike", ge=1)
    dim: int = option(help="width of the tokens", ge=1)
    depth: int = option(help="layers of the encoder", ge=1, le=MOST_LAYERS)
    decoder_depth: int | None = option(
        None, "layers of the decoder; default: as many as the encoder's", ge=1, le=MOST_LAYERS
    )
    attention: AttentionSpec = slot(
        "attention", "how positions attend to each other: in both directions in the encoder"
    )
    cross: Cross = group("how the decoder attends to the source")
    ffn: ExpertSpec = slot("expert", "the feed-forward part of dense layers")
    moe: StackMoE | None = group("the mixture layers; null for a dense model", default=None)
    tied: bool = option(False, "one matrix for the input embedding and the output head")
    source_embedding: bool = option(False, "a matrix of its own embeds the source's tokens")
    scaled_head: bool = option(False, "divide the logits by sqrt(dim), as T5 does with a tied head")
    dropout: float = option(0.0, "in training, of embeddings, of each part's output and of each stack's", ge=0, lt=1)
    init_std: float | None = option(None, "standard deviation of initial weights; default: .02", gt=0)
    init_scale: float | None = option(
        None, "instead: initial weights have std sqrt(this / inputs), truncated at two (Switch: .1)", gt=0
    )
    embedding_std: float | None = option(
        None, "standard deviation of the token embedding, if it differs from the other weights' rule; T5: 1", gt=0
    )
    norm_eps: float = option(1e-6, "added inside the norms' square root", gt=0)
    lora: Lora | None = group("adapters of linear layers, which an export merges; null for none", default=None)
    recompute: Literal["none", "experts", "blocks"] = option(
        "none", "activations that backward recomputes instead of keeping them: of mixtures, or of whole blocks"
    )

    def check(self) -> Iterable[str]:
        """The named layers exist, a dense layer is one expert, and nothing in the decoder sees later tokens."""
        yield from check_dense(self.ffn)
        yield from check_init(self.init_std, self.init_scale)
        if self.moe is None:
            return
        for leak in no_leak(self.moe, "a decoder", " in the decoder"):
            own = "" if leak.startswith("router") else " (for the encoder alone: moe.encoder_dispatcher)"
            yield leak + own
        yield from self.moe.at.check_depth(self.depth, "encoder")
        if self.moe.decoder_at is not None:
            yield from self.moe.decoder_at.check_depth(self.decoder_layers, "decoder", "moe.decoder_at")
        elif self.decoder_layers != self.depth:
            yield from self.moe.at.check_depth(self.decoder_layers, "decoder")

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder."""
        return self.decoder_depth or self.depth

    def moe_layers(self, *, encoder: bool) -> tuple[int, ...]:
        """Indices of the layers of one stack that are mixtures."""
        if self.moe is None:
            return ()
        if encoder:
            return self.moe.at.indices(self.depth)
        return (self.moe.decoder_at or self.moe.at).indices(self.decoder_layers)

    def plain(self) -> "EncoderDecoder":
        """The model without ``lora``."""
        return replace(self, lora=None)

    def feed_forward_work(self, experts_per_token: float | None = None) -> float:
        """Multiply-adds of the feed-forward parts of both stacks on one token, as if a token passed through both."""
        mixtures = len(self.moe_layers(encoder=True)) + len(self.moe_layers(encoder=False))
        return feed_forward_work(
            self.ffn, self.moe, self.dim, layers=self.depth + self.decoder_layers, mixtures=mixtures,
            dense_too=self.moe is not None and self.moe.dense_too, experts_per_token=experts_per_token,
        )  # fmt: skip

    def dense_baseline(self, experts_per_token: float | None = None) -> "EncoderDecoder | None":
        """The dense model with as much ``feed_forward_work``, the same in each layer, rounded.

        None if this model is dense itself, or if its ``ffn`` has no ``hidden`` width to set.
        """
        if self.moe is None:
            return None
        work = self.feed_forward_work(experts_per_token)
        ffn = dense_equivalent(self.ffn, self.dim, layers=self.depth + self.decoder_layers, work=work)
        return None if ffn is None else replace(self, moe=None, ffn=ffn)

"""The encoder-decoder, without dropout of attention probabilities (T5 has it). Wiring as a reference: ``naive.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, cast, final

import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts import Batch, Cache, Init, LayerReport, Model, ModelOutput, Source, Table
from moekit.errors import MoekitError
from moekit.products import Linear, linear
from moekit.registry import build
from moekit.seeds import random_seed
from moekit.weights import init_weights
from moekit_models.adapted import adapt
from moekit_models.blocks import attend, feed, feed_forward, mask, run_block
from moekit_models.encoder_decoder import Cross, EncoderDecoder
from moekit_models.norms import RMSNorm
from moekit_models.relative import Relative
from moekit_models.relative.module import RelativePositions


class CrossAttention(nn.Module):
    """Softmax attention of a target's positions to a source's, without biases and positions."""

    def __init__(self, spec: Cross, dim: int) -> None:
        super().__init__()
        self.heads, self.scale = spec.heads, spec.scale
        width = spec.heads * spec.head_dim
        self.q = Linear(dim, width, bias=False)
        self.k = Linear(dim, width, bias=False)
        self.v = Linear(dim, width, bias=False)
        self.out = Linear(width, dim, bias=False)

    def forward(self, x_BSD: Tensor, k: Tensor, v: Tensor, memory_valid_BS: Tensor | None) -> Tensor:
        """``y_BSD`` for the target's positions, from keys and values of the source without its padding."""
        seen = mask(False, memory_valid_BS)
        y = F.scaled_dot_product_attention(self._heads(self.q, x_BSD), k, v, **seen, scale=self.scale)
        return cast(Tensor, self.out(y.transpose(1, 2).flatten(-2)))

    def read(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a source, ``[B, heads, S, head_dim]``, for all positions of its target."""
        return self._heads(self.k, memory_BSD), self._heads(self.v, memory_BSD)

    def _heads(self, weight: nn.Module, x_BSD: Tensor) -> Tensor:
        return cast(Tensor, weight(x_BSD).unflatten(-1, (self.heads, -1)).transpose(1, 2))


class Block(nn.Module):
    """``x + part(norm(x))`` for each part in turn: attention, in a decoder cross-attention, then feed-forward or
    a mixture.
    """

    def __init__(self, spec: EncoderDecoder, is_moe: bool, *, encoder: bool) -> None:
        super().__init__()
        moe = spec.moe if is_moe else None
        dense_too = moe is not None and moe.dense_too
        self.recompute = spec.recompute
        self.attention_norm = RMSNorm(spec.dim, eps=spec.norm_eps)
        self.attention: nn.Module = build(spec.attention, spec.dim, not encoder)
        self.cross_norm = None if encoder else RMSNorm(spec.dim, eps=spec.norm_eps)
        self.cross_attention = None if encoder else CrossAttention(spec.cross, spec.dim)
        self.ffn_norm = RMSNorm(spec.dim, eps=spec.norm_eps)
        self.ffn = feed_forward(spec.ffn, None if moe is None else moe.layer(encoder=encoder), spec.dim)
        self.dense_norm = RMSNorm(spec.dim, eps=spec.norm_eps) if dense_too else None
        self.dense = feed_forward(spec.ffn, None, spec.dim) if dense_too else None
        self.dropout = nn.Dropout(spec.dropout)

    def forward(
        self,
        x_BSD: Tensor,
        valid_BS: Tensor | None,
        tokens_BS: Tensor,
        shared_bias: Tensor | None = None,
        memory_BSD: Tensor | None = None,
        memory_valid_BS: Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, LayerReport | None]:
        """``x_BSD -> x_BSD``, and the report of a mixture; with a cache, ``memory_BSD`` is not used."""
        x_BSD = x_BSD + self.dropout(
            attend(self.attention, self.attention_norm(x_BSD), valid_BS, cache, shared_bias=shared_bias)
        )
        if self.cross_attention is not None and self.cross_norm is not None:
            read = self.cross_attention.read
            known = read(cast(Tensor, memory_BSD)) if cache is None else cache.at("cross_attention").kept
            x_BSD = x_BSD + self.dropout(self.cross_attention(self.cross_norm(x_BSD), *known, memory_valid_BS))
        y_BSD, report = feed(self.ffn, self.ffn_norm(x_BSD), valid_BS, tokens_BS, self.recompute)
        x_BSD = x_BSD + self.dropout(y_BSD)
        if self.dense is not None and self.dense_norm is not None:
            x_BSD = x_BSD + self.dropout(feed(self.dense, self.dense_norm(x_BSD), valid_BS)[0])
        return x_BSD, report


class Stack(nn.Module):
    """The blocks of an encoder or of a decoder, and the norm after them."""

    def __init__(self, spec: EncoderDecoder, *, encoder: bool) -> None:
        super().__init__()
        self.recompute = spec.recompute
        mixtures = set(spec.moe_layers(encoder=encoder))
        depth = spec.depth if encoder else spec.decoder_layers
        self.blocks = nn.ModuleList(Block(spec, i in mixtures, encoder=encoder) for i in range(depth))
        self.norm = RMSNorm(spec.dim, eps=spec.norm_eps)
        self.dropout = nn.Dropout(spec.dropout)
        shares = isinstance(spec.attention, Relative) and spec.attention.shared
        self.positions = RelativePositions(cast(Relative, spec.attention), not encoder) if shares else None

    def forward(
        self,
        x_BSD: Tensor,
        valid_BS: Tensor | None,
        tokens_BS: Tensor,
        *memory: Tensor | None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, dict[str, LayerReport]]:
        """``x_BSD -> x_BSD``, and the mixtures' reports by name in the stack."""
        reports: dict[str, LayerReport] = {}
        bias = None
        if self.positions is not None:
            start = 0 if cache is None else cache.at("blocks.0").at("attention").length
            bias = self.positions(x_BSD.shape[1], start)
        x_BSD = self.dropout(x_BSD)
        for i, block in enumerate(self.blocks):
            if cache is None:
                x_BSD, report = run_block(block, self.recompute, x_BSD, valid_BS, tokens_BS, bias, *memory)
            else:
                x_BSD, report = block(x_BSD, valid_BS, tokens_BS, bias, *memory, cache=cache.at(f"blocks.{i}"))
            if report is not None:
                reports[f"blocks.{i}.ffn"] = report
        return self.dropout(self.norm(x_BSD)), reports


class Memory(NamedTuple):
    """The encoder's output for a source.

    Attributes:
        h_BSD: one vector for each token of the source.
        valid_BS: bool, False for its padding; None when all count.
        reports: of the encoder's mixtures, by name in the model.
    """

    h_BSD: Tensor
    valid_BS: Tensor | None
    reports: Mapping[str, LayerReport]


NO_SOURCE = "an encoder-decoder needs a source, Source(tokens)"


@final
class EncoderDecoderModel(Model):
    """The encoder-decoder of a spec. ``init_std`` or ``init_scale`` determines initial weights; norms start at 1."""

    def __init__(self, spec: EncoderDecoder) -> None:
        super().__init__()
        self.spec, seed = spec, random_seed()
        self.embedding = Table(spec.vocab, spec.dim, std=spec.embedding_std)
        self.source_embedding = Table(spec.vocab, spec.dim, std=spec.embedding_std) if spec.source_embedding else None
        self.encoder = Stack(spec, encoder=True)
        self.decoder = Stack(spec, encoder=False)
        self.head = None if spec.tied else Linear(spec.dim, spec.vocab, bias=False)
        adapt(self, spec.lora)
        init_weights(self, Init.of(spec.init_std, spec.init_scale), seed)

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None, source: Source | None = None) -> ModelOutput:
        """Logits of the next token of the target, at every position of it.

        Args:
            inputs: ``tokens_BS`` of the target so far, int64; the first is the start token.
            valid: bool ``[B, S]``, False for padding, which must come last in a sequence.
            source: the source of each target.

        Raises:
            MoekitError: no source.
        """
        if source is None:
            raise MoekitError(
                f"{NO_SOURCE}: call model(inputs, source=..), or model.on(batch) with a batch that has one"
            )
        return self.write(self.encode(source), inputs, valid)

    def on(self, batch: Batch) -> ModelOutput:
        """Runs on a batch of pairs."""
        output: ModelOutput = self(batch.inputs, valid=batch.valid, source=batch.source)
        return output

    def given(self, source: Source) -> Callable[[Tensor, Tensor | None], ModelOutput]:
        """``(inputs, valid) -> output`` for targets of one source, which is encoded once."""
        memory = self.encode(source)
        return lambda inputs, valid: self.write(memory, inputs, valid)

    def encode(self, source: Source) -> Memory:
        """Runs the encoder on a source."""
        x_BSD = (self.source_embedding or self.embedding)(source.tokens)
        h_BSD, reports = self.encoder(x_BSD, source.valid, source.tokens)
        return Memory(h_BSD, source.valid, {f"encoder.{name}": report for name, report in reports.items()})

    def write(self, memory: Memory, inputs: Tensor, valid: Tensor | None = None) -> ModelOutput:
        """Logits for a target, given its encoded source."""
        y_BSV, reports = self._logits(
            *self.decoder(self.embedding(inputs), valid, inputs, memory.h_BSD, memory.valid_BS)
        )
        return ModelOutput(y=y_BSV, reports={**memory.reports, **reports}, of_source=frozenset(memory.reports))

    def start_cache(self, source: Source | None = None) -> Cache | None:
        """A cache of each layer's keys and values of the source; None if the attention supports none.

        Raises:
            MoekitError: no source.
        """
        if not self.spec.attention.takes_cache():
            return None
        if source is None:
            raise MoekitError(f"{NO_SOURCE}: call model.start_cache(source)")
        memory, cache = self.encode(source), Cache()
        for i, block in enumerate(self.decoder.blocks):
            assert isinstance(block, Block) and block.cross_attention is not None
            cache.at(f"blocks.{i}").at("cross_attention").kept = block.cross_attention.read(memory.h_BSD)
        cache.kept = () if memory.valid_BS is None else (memory.valid_BS,)
        return cache

    def decode(self, inputs: Tensor, cache: Cache, *, valid: Tensor | None = None) -> ModelOutput:
        """Logits at the target's positions that follow those in the cache; arguments as of ``forward``."""
        if not self.spec.attention.takes_cache():
            return super().decode(inputs, cache)
        (memory_valid_BS,) = cache.kept or (None,)
        y_BSV, reports = self._logits(
            *self.decoder(self.embedding(inputs), valid, inputs, None, memory_valid_BS, cache=cache)
        )
        return ModelOutput(y=y_BSV, reports=reports)

    def _logits(self, x_BSD: Tensor, reports: Mapping[str, LayerReport]) -> tuple[Tensor, dict[str, LayerReport]]:
        """Logits of the decoder's output, and its reports by name in the model."""
        if self.spec.scaled_head:
            x_BSD = x_BSD * self.spec.dim**-0.5
        y_BSV = linear(x_BSD, self.embedding.weight) if self.head is None else self.head(x_BSD)
        return y_BSV, {f"decoder.{name}": report for name, report in reports.items()}

    def stack(self) -> list[nn.Module]:
        """The encoder's blocks and the decoder's."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def embeddings(self) -> tuple[nn.Parameter | None, nn.Parameter | None]:
        """The input embedding and the head's matrix."""
        embedding = cast(nn.Parameter, self.embedding.weight)
        return embedding, embedding if self.head is None else cast(nn.Parameter, self.head.weight)

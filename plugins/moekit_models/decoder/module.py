"""The decoder: embedding, blocks, norm, head; and the modules of multi-token prediction after the blocks.

Each module of multi-token prediction has its own norm before the shared head, as in the released weights.
Reference implementation of the wiring: ``naive.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast, final

import torch
from torch import Tensor, nn

from moekit.contracts import Batch, Cache, Init, LayerReport, Model, ModelOutput, Source
from moekit.products import Linear, linear
from moekit.registry import build
from moekit.seeds import random_seed
from moekit.weights import init_weights
from moekit_models.adapted import adapt
from moekit_models.blocks import attend, feed, feed_forward, run_block
from moekit_models.decoder import Decoder
from moekit_models.norms import LayerNorm, RMSNorm


def norm_of(spec: Decoder) -> nn.Module:
    """A norm of the decoder."""
    return (RMSNorm if spec.norm == "rms" else LayerNorm)(spec.dim, eps=spec.norm_eps)


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + ffn(norm(x))``; ``ffn`` may be a mixture.

    Under ``norm_at: output`` it is ``x + norm(attention(x))``, then ``x + norm(ffn(x))``.
    Multi-token prediction has a block of layer ``depth``: a mixture if the last layer is one.
    """

    def __init__(self, spec: Decoder, layer: int) -> None:
        super().__init__()
        self.recompute = spec.recompute
        self.norm_at = spec.norm_at
        self.attention_norm = norm_of(spec)
        self.attention: nn.Module = build(spec.attention_of(layer), spec.dim)
        self.ffn_norm = norm_of(spec)
        is_moe = min(layer, spec.depth - 1) in spec.moe_layers
        self.ffn = feed_forward(spec.ffn, spec.moe if is_moe else None, spec.dim)

    def forward(
        self,
        x_BSD: Tensor,
        valid_BS: Tensor | None,
        tokens_BS: Tensor,
        document_BS: Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, LayerReport | None]:
        """``x_BSD -> x_BSD``, and the report, if the feed-forward part is a mixture."""
        if self.norm_at == "output":
            x_BSD = x_BSD + self.attention_norm(attend(self.attention, x_BSD, None, cache, document_BS))
            y_BSD, report = feed(self.ffn, x_BSD, valid_BS, tokens_BS, self.recompute)
            return x_BSD + self.ffn_norm(y_BSD), report
        x_BSD = x_BSD + attend(self.attention, self.attention_norm(x_BSD), None, cache, document_BS)
        y_BSD, report = feed(self.ffn, self.ffn_norm(x_BSD), valid_BS, tokens_BS, self.recompute)
        return x_BSD + y_BSD, report


class Ahead(nn.Module):
    """One module of multi-token prediction: ``TRM(M [norm(h); norm(Emb(t))])``, in the paper's order.

    Released weights concatenate in the opposite order: code that reads them must swap the halves of M.
    """

    def __init__(self, spec: Decoder) -> None:
        super().__init__()
        self.hidden_norm = norm_of(spec)
        self.token_norm = norm_of(spec)
        self.merge = Linear(2 * spec.dim, spec.dim, bias=False)
        self.block = Block(spec, spec.depth)
        self.norm = norm_of(spec)

    def merged(self, h_BSD: Tensor, token_BSD: Tensor) -> Tensor:
        """Eq. 21: the hidden state of the past, with the embedding of a later token."""
        return cast(Tensor, self.merge(torch.cat([self.hidden_norm(h_BSD), self.token_norm(token_BSD)], dim=-1)))


@final
class DecoderModel(Model):
    """The decoder of a spec. ``init_std`` or ``init_scale`` determines initial weights; norms start at 1."""

    def __init__(self, spec: Decoder) -> None:
        super().__init__()
        self.spec, seed = spec, random_seed()
        self.caches = spec.caches
        self.embedding = nn.Embedding(spec.vocab, spec.dim)
        self.blocks = nn.ModuleList(Block(spec, i) for i in range(spec.depth))
        self.norm = norm_of(spec)
        self.head = None if spec.tied else Linear(spec.dim, spec.vocab, bias=spec.head_bias)
        ahead = 0 if spec.mtp is None else spec.mtp.depth
        self.mtp = nn.ModuleList(Ahead(spec) for _ in range(ahead))
        adapt(self, spec.lora)
        init_weights(self, Init.of(spec.init_std, spec.init_scale), seed)

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None, document: Tensor | None = None) -> ModelOutput:
        """Logits of the next token at every position; in training also of later ones.

        Args:
            inputs: ``tokens_BS``, int64.
            valid: bool ``[B, S]``, False for padding, which must come last in a sequence.
            document: int64 ``[B, S]``, as in ``Batch``: attention does not cross from one to another.
        """
        h_BSD, reports = self._run(inputs, valid, document)
        logits_BSV = self._logits(self.norm(h_BSD))
        future = tuple(self._predict_ahead(h_BSD, inputs, valid, document, reports)) if self.training else ()
        return ModelOutput(y=logits_BSV, reports=reports, future=future)

    def on(self, batch: Batch) -> ModelOutput:
        """Runs on a batch's inputs, and keeps its documents apart."""
        output: ModelOutput = self(batch.inputs, valid=batch.valid, document=batch.document)
        return output

    def start_cache(self, source: Source | None = None) -> Cache | None:
        """An empty cache; None if the attention supports none."""
        return Cache() if self.caches else None

    def decode(self, inputs: Tensor, cache: Cache, *, valid: Tensor | None = None) -> ModelOutput:
        """Logits at the positions that follow those in the cache; arguments as of ``forward``."""
        if not self.caches:
            return super().decode(inputs, cache)
        h_BSD, reports = self._run(inputs, valid, cache=cache)
        return ModelOutput(y=self._logits(self.norm(h_BSD)), reports=reports)

    def embeddings(self) -> tuple[nn.Parameter | None, nn.Parameter | None]:
        """The input embedding and the head's matrix."""
        embedding = cast(nn.Parameter, self.embedding.weight)
        return embedding, embedding if self.head is None else cast(nn.Parameter, self.head.weight)

    def stack(self) -> list[nn.Module]:
        """The blocks, with those of multi-token prediction last."""
        return [*self.blocks, *(cast(Ahead, ahead).block for ahead in self.mtp)]

    def extra_parts(self) -> Mapping[str, nn.Module]:
        """Multi-token prediction, if there is any."""
        return {"mtp": self.mtp} if len(self.mtp) else {}

    def _run(
        self, inputs: Tensor, valid: Tensor | None, document: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, dict[str, LayerReport]]:
        """The output of the blocks, and the mixtures' reports by name."""
        reports: dict[str, LayerReport] = {}
        h_BSD = self.embedding(inputs)
        for i, block in enumerate(self.blocks):
            if cache is None:
                h_BSD, report = run_block(block, self.spec.recompute, h_BSD, valid, inputs, document)
            else:
                h_BSD, report = block(h_BSD, valid, inputs, cache=cache.at(f"blocks.{i}"))
            if report is not None:
                reports[f"blocks.{i}.ffn"] = report
        return h_BSD, reports

    def _predict_ahead(
        self,
        h_BSD: Tensor,
        inputs: Tensor,
        valid: Tensor | None,
        document: Tensor | None,
        reports: dict[str, LayerReport],
    ) -> list[Tensor]:
        """Eqs 21 to 23: depth k reads depth k - 1 at position i, and token i + k; each depth has one position fewer.

        A position whose token i + k is of another document is treated as padding, of a document of its own.
        """
        future: list[Tensor] = []
        for k, ahead in enumerate(self.mtp, start=1):
            S = inputs.shape[1] - k
            if S < 1:
                break
            assert isinstance(ahead, Ahead)
            merged_BSD = ahead.merged(h_BSD[:, :S], self.embedding(inputs[:, k:]))
            seen_BS, within_BS = None if valid is None else valid[:, k:], None
            if document is not None:
                same_BS = document[:, :S] == document[:, k:]
                seen_BS = same_BS if seen_BS is None else seen_BS & same_BS
                within_BS = document[:, :S].where(same_BS, -1)
            block, tokens_BS = ahead.block, inputs[:, k:]
            h_BSD, report = run_block(block, self.spec.recompute, merged_BSD, seen_BS, tokens_BS, within_BS)
            if report is not None:
                reports[f"mtp.{k - 1}.block.ffn"] = report
            future.append(self._logits(ahead.norm(h_BSD)))
        return future

    def _logits(self, h_BSD: Tensor) -> Tensor:
        return linear(h_BSD, self.embedding.weight) if self.head is None else cast(Tensor, self.head(h_BSD))

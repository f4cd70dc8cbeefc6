"""The smallest healthy model of pairs; broken ones are this, at fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from healthy_layers import Pick, PickRouter, Tanh, TanhBank, Walk, WalkDispatcher
from torch import Tensor, nn

from moekit import Batch, LayerDims, Model, ModelOutput, MoELayer, Source, option
from moekit.spec.kinds import ModelSpec


def layer() -> MoELayer:
    dims = LayerDims(dim=8, num_experts=3)
    return MoELayer(
        router=PickRouter(Pick(), dims),
        experts=TanhBank(Tanh(count=3), dims),
        dispatcher=WalkDispatcher(Walk(), dims),
    )


@dataclass(frozen=True, kw_only=True)
class Echo(ModelSpec):
    takes: ClassVar[str] = "pairs"
    vocab: int = option(11, "tokens in the vocabulary", ge=1)


class EchoModel(Model):
    """A target's token and the mean of the source's, each through an MoE layer of its own."""

    def __init__(self, spec: Echo) -> None:
        super().__init__()
        self.embed = nn.Embedding(spec.vocab, 8)
        self.read = layer()
        self.write = layer()
        self.head = nn.Linear(8, spec.vocab, bias=False)

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None, source: Source | None = None) -> ModelOutput:
        assert source is not None
        h_BSD, read = self.read(self.embed(source.tokens), valid=self.mask(source))
        x_BSD, write = self.write(self.embed(inputs) + self.memory(h_BSD, source), valid=valid)
        return ModelOutput(y=self.head(x_BSD), reports={"read": read, "write": write}, of_source=frozenset({"read"}))

    def mask(self, source: Source) -> Tensor | None:
        return source.valid

    def memory(self, h_BSD: Tensor, source: Source) -> Tensor:
        counts_BS = torch.ones_like(source.tokens) if source.valid is None else source.valid.long()
        return (h_BSD * counts_BS[..., None]).sum(1, keepdim=True) / counts_BS.sum(1)[:, None, None]

    def on(self, batch: Batch) -> ModelOutput:
        output: ModelOutput = self(batch.inputs, valid=batch.valid, source=batch.source)
        return output

"""Tiny models that decode with a cache, in fp64; and options of parts that see later tokens, which models refuse."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from moekit import Model, build
from moekit.spec.kinds import DispatcherSpec, RouterSpec
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
from moekit_models.decoder import MTP, At, Decoder, DecoderMoE
from moekit_models.encoder_decoder import Cross, EncoderDecoder, StackMoE
from moekit_models.mla import MLA
from moekit_models.relative import Relative
from moekit_routers.topk import TopK

VOCAB, DIM, GROUPED = 17, 12, Grouped()


def moe_of(kind: Any, dispatcher: DispatcherSpec, **more: Any) -> Any:
    router, experts = TopK(top_k=2, score="sigmoid", renormalize=True), Glu(count=6, hidden=5)
    return kind(router=router, experts=experts, shared=Glu(hidden=5), dispatcher=dispatcher, **more)


def decoder(dispatcher: DispatcherSpec = GROUPED, **changes: Any) -> Decoder:
    parts: dict[str, Any] = {
        "attention": MLA(heads=3, query_rank=7, kv_rank=5, nope_dim=4, rope_dim=2, value_dim=9),
        "ffn": Glu(hidden=8),
        "moe": moe_of(DecoderMoE, dispatcher, at=At(first=1)),
        "mtp": MTP(depth=1),
        "init_std": 0.4,
    }
    return Decoder(vocab=VOCAB, dim=DIM, depth=3, **{**parts, **changes})


def pairs(dispatcher: DispatcherSpec = GROUPED, **changes: Any) -> EncoderDecoder:
    parts: dict[str, Any] = {
        "attention": Relative(heads=2, head_dim=5, buckets=8, max_distance=6),
        "cross": Cross(heads=2, head_dim=5),
        "ffn": Glu(hidden=8),
        "moe": moe_of(StackMoE, dispatcher, at=At(layers=[1]), dense_too=True),
        "dropout": 0.1,
        "scaled_head": True,
        "init_std": 0.4,
    }
    return EncoderDecoder(vocab=VOCAB, dim=DIM, depth=2, decoder_depth=3, **{**parts, **changes})


def model_of(spec: Any) -> Model:
    torch.manual_seed(1)
    model: Model = build(spec)
    return model.double().eval()


class Batchwise(RouterSpec):
    """A router whose choices depend on later tokens."""

    causal: ClassVar[bool] = False


class Crowding(DispatcherSpec):
    """A dispatcher in which later tokens may displace earlier ones."""

    def causal(self) -> bool:
        return False

"""Every component of moekit's own plugins passes the conformance kit. New components need not be listed here.

A component is tested with its defaults, with the ``EXAMPLES`` below, or, if options have no default, as in a recipe.
"""

from __future__ import annotations

import atexit
import dataclasses
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

from tiny_folders import byte_level_tokenizer

from moekit.registry import current
from moekit.spec.fields import Spec
from moekit.spec.kinds import MoE
from moekit_balancers.communication_balance import CommunicationBalance
from moekit_balancers.cv_squared import CVSquared
from moekit_balancers.device_balance import DeviceBalance
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.sequence_balance import SequenceBalance
from moekit_balancers.sign_bias import SignBias
from moekit_data.bpe import BytePairs
from moekit_data.bytes import Bytes
from moekit_data.chat import Chat
from moekit_data.hf_dataset import HfDataset
from moekit_data.labelled_text import LabelledText
from moekit_data.local_text import LocalText
from moekit_data.span_corruption import SpanCorruption
from moekit_data.text_files import TextFiles
from moekit_data.translations import Translations
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.soft import Soft
from moekit_experts.ffn import Ffn
from moekit_experts.glu import Glu
from moekit_experts.linear import Linear, Logistic
from moekit_experts.lora import Lora
from moekit_hf.tokenizer import TokenizerFile
from moekit_lightning.wandb import WandB
from moekit_models.decoder import MTP, At, Decoder, DecoderMoE, OtherAttention
from moekit_models.encoder_decoder import Cross, EncoderDecoder, StackMoE
from moekit_models.gqa import GQA, Temperature
from moekit_models.lstm import LSTM
from moekit_models.mixture import Mixture
from moekit_models.mla import MLA
from moekit_models.mlp import MLP
from moekit_models.relative import Relative
from moekit_models.stretch import Stretch
from moekit_models.yarn import Yarn
from moekit_objectives.causal_lm import CausalLM
from moekit_objectives.competitive import Competitive
from moekit_routers.dense import Dense
from moekit_routers.hash import Hash
from moekit_routers.hierarchical import Hierarchical
from moekit_routers.noisy_topk import NoisyTopK
from moekit_routers.sparse_mixer import SparseMixer
from moekit_routers.strict import Strict
from moekit_routers.topk import TopK
from moekit_testing import parametrize_checks
from moekit_testing.cases import examples_in_recipes

TOKENIZER = Path(mkdtemp(prefix="moekit-")) / "tokenizer.json"
atexit.register(shutil.rmtree, TOKENIZER.parent, ignore_errors=True)
TOKENIZER.write_text(byte_level_tokenizer())
DEEPSEEK_V3 = TopK(
    top_k=4, score="sigmoid", groups=4, top_groups=2, group_score="top2_sum", renormalize=True, scale=2.5
)
MLA_EXAMPLE = MLA(heads=2, query_rank=8, kv_rank=8, nope_dim=4, rope_dim=2, value_dim=4)
MODEL = Decoder(
    vocab=19,
    dim=12,
    depth=2,
    attention=MLA_EXAMPLE,
    ffn=Glu(hidden=8),
    moe=DecoderMoE(
        at=At(first=1),
        router=TopK(top_k=2, score="sigmoid", renormalize=True),
        experts=Glu(count=6, hidden=5),
        shared=Glu(hidden=5),
        dispatcher=Grouped(),
        balancers={"bias": SignBias(), "sequence": SequenceBalance()},
    ),
    mtp=MTP(depth=1),
)

PAIRS = EncoderDecoder(
    vocab=19,
    dim=12,
    depth=2,
    attention=Relative(heads=2, head_dim=5, buckets=8, max_distance=6),
    cross=Cross(heads=2, head_dim=5),
    ffn=Glu(hidden=8),
    moe=StackMoE(
        at=At(every=2),
        router=TopK(top_k=1),
        experts=Glu(count=4, hidden=5),
        dispatcher=Grouped(),
        balancers={"load": LoadBalance()},
        dense_too=True,
    ),
    tied=True,
    scaled_head=True,
    dropout=0.1,
)

EXAMPLES: dict[str, list[Spec]] = {
    "router/topk": [
        TopK(top_k=2),
        TopK(top_k=1, input_jitter=0.1),
        TopK(top_k=2, score_over="chosen", bias=True),
        TopK(top_k=3, score="sigmoid", score_over="chosen"),
        TopK(top_k=4, groups=4, top_groups=2, scale=16.0),
        DEEPSEEK_V3,
        TopK(top_k=2, renormalize=True, send_threshold=0.5),
    ],
    "router/sparse_mixer": [SparseMixer(), SparseMixer(top_k=3, jitter=0.3)],
    "router/noisy_topk": [NoisyTopK(top_k=2), NoisyTopK(top_k=4, noise_epsilon=0.0, zero_init=False)],
    "router/hierarchical": [Hierarchical(branches=4), Hierarchical(branches=2, top_k=3, zero_init=False)],
    "router/hash": [Hash(vocab=64), Hash(vocab=19, seed=1)],
    "router/strict": [Strict(top_k=2), Strict(top_k=1, threshold_weight=0.1)],
    "router/dense": [Dense(), Dense(bias=False)],
    "dispatcher/capacity": [
        Capacity(),
        Capacity(factor=1.0, eval_factor=2.0, count="tokens", order="choice", per="sequence", rounding="floor"),
        Capacity(factor=0.5, order="priority"),
        Capacity(factor=0.5, order="affinity", at_least=2, multiple=2),
    ],
    "dispatcher/device_capacity": [
        DeviceCapacity(groups=2, inner=Grouped()),
        DeviceCapacity(groups=4, factor=0.5, exempt=0.0, inner=Capacity(factor=2.0)),
    ],
    "dispatcher/expert_parallel": [
        ExpertParallel(local=Grouped()),
        ExpertParallel(size=4, local=DeviceCapacity(groups=4, factor=0.5, exempt=0.0, inner=Capacity(factor=2.0))),
    ],
    "expert/glu": [
        Glu(hidden=7),
        Glu(hidden=11, activation="gelu", dropout=0.4, scale_bias=True),
        Glu(hidden=7, bias=True, clamp=2.0, alpha=1.702, up_shift=1.0),
        Glu(hidden=7, output_gate=True),
    ],
    "expert/lora": [
        Lora(base=Glu(hidden=7), rank=3),
        Lora(base=Ffn(hidden=7, bias=True), rank=2, alpha=1.0, dropout=0.2),
    ],
    "expert/ffn": [Ffn(hidden=7), Ffn(hidden=7, activation="gelu", bias=True), Ffn(hidden=7, dropout=0.4)],
    "expert/linear": [Linear(), Linear(bias=False)],
    "expert/logistic": [Logistic()],
    "balancer/communication_balance": [CommunicationBalance(groups=4, top_groups=2)],
    "balancer/cv_squared": [CVSquared(of="importance"), CVSquared(of="load")],
    "balancer/device_balance": [
        DeviceBalance(groups=4, scope="sequence"),
        DeviceBalance(groups=2, scope="micro_batch"),
        DeviceBalance(groups=8),
    ],
    "balancer/load_balance": [
        *(LoadBalance(scope=scope) for scope in ("sequence", "micro_batch", "global_batch", "step")),
        LoadBalance(count="first"),
        LoadBalance(count="first", scope="sequence", normalize=False),
    ],
    "balancer/sequence_balance": [SequenceBalance(count="routed"), SequenceBalance(count="affinity")],
    "balancer/sign_bias": [SignBias(), SignBias(rule="proportional", until=0.9)],
    "attention/gqa": [
        GQA(heads=4, head_dim=6),
        GQA(heads=4, kv_heads=2, head_dim=6, qk_norm=True),
        GQA(heads=2, head_dim=6, yarn=Yarn(factor=40.0)),
        GQA(heads=2, kv_heads=1, head_dim=6, rotary_dim=4, window=3, bias="all", sinks=True, clip=2.0),
        GQA(heads=4, kv_heads=2, head_dim=6, qk_norm=True, norm_over="all", bias="qkv"),
        GQA(heads=4, kv_heads=2, head_dim=6, chunk=4, qk_norm=True, norm_weight=False),
        GQA(heads=2, head_dim=6, rotary_dim=0, temperature=Temperature(floor=2)),
        GQA(heads=2, head_dim=6, stretch=Stretch(rule="dynamic", factor=3.0, original=8)),
    ],
    "attention/mla": [MLA_EXAMPLE, dataclasses.replace(MLA_EXAMPLE, query_rank=None, yarn=Yarn(factor=4.0))],
    "attention/relative": [Relative(heads=4, head_dim=6, max_distance=40), Relative(heads=2, head_dim=9, scale=1.0)],
    "model/decoder": [
        MODEL,
        dataclasses.replace(MODEL, moe=None, mtp=None, tied=True, attention=GQA(heads=2, head_dim=4)),
        dataclasses.replace(
            MODEL,
            other_attention=OtherAttention(at=At(layers=[1]), attention=GQA(heads=2, head_dim=4, window=3)),
        ),
        dataclasses.replace(MODEL, norm_at="output", norm="layer", head_bias=True),
    ],
    "model/lstm": [
        LSTM(
            vocab=19,
            dim=12,
            moe=MoE(
                router=TopK(top_k=2, score_over="chosen"),
                experts=Ffn(count=6, hidden=5),
                dispatcher=Grouped(),
                balancers={"load": LoadBalance()},
            ),
        ),
        LSTM(vocab=19, dim=12, ffn=Ffn(hidden=5)),
    ],
    "model/encoder_decoder": [
        PAIRS,
        dataclasses.replace(PAIRS, moe=None, decoder_depth=1, tied=False, attention=MLA_EXAMPLE, recompute="blocks"),
        dataclasses.replace(
            PAIRS,
            attention=Relative(heads=2, head_dim=4, scale=1.0, shared=True),
            cross=Cross(heads=2, head_dim=4, scale=1.0),
        ),
    ],
    "model/mixture": [
        Mixture(inputs=2, moe=MoE(router=Dense(), experts=Logistic(count=3), dispatcher=Soft())),
    ],
    "model/mlp": [MLP(inputs=2, hidden=5)],
    "objective/causal_lm": [CausalLM(mtp_late_weight=0.1, exact=True)],
    "objective/competitive": [Competitive(error=error) for error in ("cooperative", "competitive", "likelihood")],
    "data/chat": [Chat(path=str(Path(__file__).parents[1] / "chats.jsonl"), seq=128, batch=2)],
    "data/local_text": [LocalText(domains=["python"], megabytes=0.2, seq=16, batch=2)],
    "data/translations": [
        Translations(
            languages=["de", "th"], tokenizer=BytePairs(vocab=297), vocab=300, batch_tokens=64, validation_pairs=3
        ),
        Translations(languages=["el"], tokenizer=Bytes(), vocab=258, batch_tokens=64, max_chars=20),
    ],
    "data/labelled_text": [
        LabelledText(text=LocalText(domains=["python", "prose"], megabytes=0.2, seq=16, batch=2)),
    ],
    "data/span_corruption": [
        SpanCorruption(text=LocalText(domains=["python"], megabytes=0.2, seq=16, batch=2)),
        SpanCorruption(text=LocalText(domains=["python"], megabytes=0.2, seq=16, batch=2), density=0.5, mean_span=1.0),
    ],
    "logger/wandb": [WandB(offline=True)],
    "tokenizer/bpe": [BytePairs(vocab=300)],
    "tokenizer/tokenizer_json": [TokenizerFile(vocab=300, end="<|end|>", file=str(TOKENIZER))],
    "data/text_files": [TextFiles(path=str(Path(__file__).parents[2] / "docs"), seq=16, batch=2)],
    "data/hf_dataset": [
        HfDataset(path="text", data_files=[str(Path(__file__).parents[2] / "docs" / "*.md")], seq=16, batch=2),
    ],
}

if not find_spec("datasets"):
    del EXAMPLES["data/hf_dataset"]

COMPONENTS = [c for c in current().components() if c.name != "hf_dataset" or find_spec("datasets")]
KNOWN = examples_in_recipes(COMPONENTS) | EXAMPLES


@parametrize_checks(COMPONENTS, examples=KNOWN)
def test_conformance(check: Callable[[], None]) -> None:
    check()


def test_first_party_components_cover_every_kind() -> None:
    assert {c.kind for c in COMPONENTS} == set(current().kinds)
    assert not current().failed

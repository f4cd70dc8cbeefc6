"""DeepSeek-V2 2024: the cache of latent attention, and routing limited to M devices. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moekit_reproduce.papers.field import COLUMNS, RATES, SHARE, Node, decoder, mixture, saved
from moekit_reproduce.study import Arm, ClaimSpec, Panel, Prediction, Study

if TYPE_CHECKING:
    from moekit.contracts import Data
    from moekit.training.module import LitMoE

DEVICES = 8
MLA: Node = {
    "use": "mla",
    "heads": 4,
    "query_rank": None,
    "kv_rank": 24,
    "nope_dim": 16,
    "rope_dim": 8,
    "value_dim": 16,
}
PROBE = "moekit_reproduce.papers.deepseek_v2:probe"


class DeepSeekV2(ClaimSpec):
    """Sizes of the experiment."""


def study(spec: DeepSeekV2) -> Study:
    """Latent attention with four limits of devices; attention with four key heads, and with one."""

    def arm(name: str, limit: int, attention: Node, rate_of: str = "") -> Arm:
        router = {"use": "topk", "top_k": 6, "groups": DEVICES, "top_groups": limit, "group_score": "max"}
        experts, shared = {"use": "glu", "count": 64, "hidden": 27}, {"use": "glu", "count": 2, "hidden": 27}
        balancers: Node = {
            "load": {"use": "load_balance", "scope": "sequence", "weight": 3e-3},
            "device": {"use": "device_balance", "groups": DEVICES, "weight": 5e-2, "scope": "sequence"},
            "communication": {
                "use": "communication_balance", "groups": DEVICES, "top_groups": limit, "weight": 2e-2,
            },
        }  # fmt: skip
        changes = (mixture(router, experts, balancers, shared=shared), {"model": {"attention": attention}})
        recipe = decoder(spec, *changes)
        return Arm(name=name, recipe=recipe, rates=RATES, rate_of=rate_of, probe=PROBE)

    mha, mqa = ({"use": "gqa", "heads": 4, "kv_heads": heads, "head_dim": 16} for heads in (4, 1))
    limits = (1, 2, 3, DEVICES)
    arms = [arm(f"MLA, M = {limit}", limit, MLA, rate_of="" if limit == 3 else "MLA, M = 3") for limit in limits]
    return Study(
        title="DeepSeek-AI 2024: DeepSeek-V2",
        about=(
            "Top-6 of 64 experts on 8 devices and 2 shared ones, in two of three layers, with the paper's three "
            "balance losses and no drops. M is the number of devices that a token may use. Latent attention keeps "
            "24 + 8 numbers of a token and layer, as many as one key head of 16; four key heads keep 128. At the "
            "paper's size the cache is 1.8 % of that of as many key heads, which four heads cannot show. Bytes are "
            "those of a token's rows to its devices and back, in fp32, if each device were elsewhere."
        ),
        arms=(*arms, arm("MHA, M = 3", 3, mha), arm("1 key head, M = 3", 3, mqa)),
        predictions=(
            Prediction(
                claim="latent attention needs a far smaller cache than multi-head attention",
                paper="93.3 % smaller than DeepSeek 67B's",
                source="abstract",
                measure="share of the cache's bytes saved",
                contrast=saved("MLA, M = 3", "MHA, M = 3", "cache_bytes"),
                at_least=0.467,
            ),
            Prediction(
                claim="latent attention is as good as multi-head attention, or better",
                paper="better on benchmarks (no figure that we have seen)",
                source="appendix D.2",
                measure=f"{SHARE}; a loss of .005 counts as none",
                contrast=saved("MLA, M = 3", "MHA, M = 3"),
                at_least=-0.005,
            ),
            Prediction(
                claim="with a cache of the same size it is better than grouped key heads",
                paper="no figure that we have seen (equal to 2.25 groups of GQA in size)",
                source="section 2.1.4, table 1",
                measure=SHARE,
                contrast=saved("MLA, M = 3", "1 key head, M = 3"),
            ),
            Prediction(
                claim="three devices are as good as no limit",
                paper="M ≥ 3 about as good as unrestricted top-K (no figure)",
                source="section 2.2.2",
                measure=f"{SHARE}, M = 3 against M = 8; a loss of .005 counts as none",
                contrast=saved("MLA, M = 3", "MLA, M = 8"),
                at_least=-0.005,
            ),
            Prediction(
                claim="one device is worse than three",
                paper="no figure",
                source="section 2.2.2",
                measure=SHARE,
                contrast=saved("MLA, M = 3", "MLA, M = 1"),
            ),
            Prediction(
                claim="the limit saves traffic",
                paper="no figure",
                source="section 2.2.2",
                measure="share of the bytes saved, M = 3 against M = 8",
                contrast=saved("MLA, M = 3", "MLA, M = 8", "sent_bytes"),
            ),
        ),
        panels=(
            Panel(value="loss", title="validation loss, nats per byte"),
            Panel(value="sent_bytes", title="bytes sent for a token, all layers"),
        ),
        columns={
            **COLUMNS,
            "devices": "devices of a token",
            "sent_bytes": "bytes sent",
            "cache_bytes": "cache, bytes a token",
        },
    )


def probe(module: LitMoE, data: Data) -> dict[str, float]:
    """Devices that a token uses in a layer, bytes that it is sent in all, and bytes that the cache keeps of it."""
    import torch

    from moekit.parallel.traffic import reached, sent

    model: Any = module.model
    batch = next(iter(data.validation_batches()))
    with torch.no_grad():
        reports = model.on(batch).reports.values()
        devices = [float(reached(sent(report.routing), DEVICES).sum(1).float().mean()) for report in reports]
        cache = model.start_cache()
        model.decode(batch.inputs[:1], cache)
    width = module.model.embeddings()[0]
    assert width is not None
    row = 2 * 4 * width.shape[1]
    return {
        "devices": sum(devices) / len(devices),
        "sent_bytes": row * sum(devices),
        "cache_bytes": 4 * cache.numel() / batch.inputs.shape[1],
    }

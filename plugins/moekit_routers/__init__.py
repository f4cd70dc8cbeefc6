"""First-party routers: they turn tokens into routings."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit.lazy import from_stub

MOEKIT_API = 2
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)


@hookimpl
def moekit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component(
            kind="router",
            name="dense",
            spec="moekit_routers.dense:Dense",
            target="moekit_routers.dense.module:DenseRouter",
            summary="softmax over all experts; every expert works for every token",
            paper="Jacobs, Jordan, Nowlan, Hinton 1991",
        ),
        Component(
            kind="router",
            name="hash",
            spec="moekit_routers.hash:Hash",
            target="moekit_routers.hash.module:HashRouter",
            summary="a fixed table sends each token id to an expert; no gate, nothing learned",
            paper="Roller et al. 2021, arXiv:2106.04426",
        ),
        Component(
            kind="router",
            name="hierarchical",
            spec="moekit_routers.hierarchical:Hierarchical",
            target="moekit_routers.hierarchical.module:HierarchicalRouter",
            summary="two levels of noisy top-k: the best groups, then the best experts of each",
            paper="Shazeer et al. 2017",
        ),
        Component(
            kind="router",
            name="noisy_topk",
            spec="moekit_routers.noisy_topk:NoisyTopK",
            target="moekit_routers.noisy_topk.module:NoisyTopKRouter",
            summary="each token takes its k best experts by logits with learned noise; gives the expected load",
            paper="Shazeer et al. 2017",
        ),
        Component(
            kind="router",
            name="sparse_mixer",
            spec="moekit_routers.sparse_mixer:SparseMixer",
            target="moekit_routers.sparse_mixer.module:SparseMixerRouter",
            summary="experts one after another, in training sampled among those close to the best, with an estimate of "
            "the gradient",
            paper="Liu et al. 2024, GRIN",
        ),
        Component(
            kind="router",
            name="strict",
            spec="moekit_routers.strict:Strict",
            target="moekit_routers.strict.module:StrictRouter",
            summary="each expert keeps its k·T/E best tokens in training, and in evaluation those above a learned "
            "threshold",
            paper="Shazeer et al. 2017",
        ),
        Component(
            kind="router",
            name="topk",
            spec="moekit_routers.topk:TopK",
            target="moekit_routers.topk.module:TopKRouter",
            summary="each token takes its k best experts: softmax or sigmoid, groups, selection bias, renormalise, "
            "scale",
            paper="Shazeer et al. 2017 to DeepSeek-V3 2024",
        ),
    ]

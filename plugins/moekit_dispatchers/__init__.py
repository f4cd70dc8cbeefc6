"""First-party dispatchers: how tokens get to their experts and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit.lazy import from_stub

if TYPE_CHECKING:
    from moekit.training.run.hooks import EndedRun, StartingRun

MOEKIT_API = 2
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)


@hookimpl
def moekit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component(
            kind="dispatcher",
            name="auto",
            spec="moekit_dispatchers.auto:Auto",
            target="moekit_dispatchers.auto.module:AutoDispatcher",
            summary="the fastest dropless dispatcher: times those that fit, once for each size on a machine",
            default=True,
        ),
        Component(
            kind="dispatcher",
            name="capacity",
            spec="moekit_dispatchers.capacity:Capacity",
            target="moekit_dispatchers.capacity.module:CapacityDispatcher",
            summary="C slots per expert, all experts in one batched product; drops the rest; compiles whole",
            paper="Lepikhin et al. 2020, GShard (arXiv 2006.16668); Fedus et al. 2021, Switch Transformer (arXiv "
            "2101.03961)",
        ),
        Component(
            kind="dispatcher",
            name="device_capacity",
            spec="moekit_dispatchers.device_capacity:DeviceCapacity",
            target="moekit_dispatchers.device_capacity.module:DeviceCapacityDispatcher",
            summary="in training, drops each device's lowest affinities beyond its budget; wraps another dispatcher",
            paper="DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434)",
        ),
        Component(
            kind="dispatcher",
            name="expert_parallel",
            spec="moekit_dispatchers.expert_parallel:ExpertParallel",
            target="moekit_dispatchers.expert_parallel.module:ExpertParallelDispatcher",
            summary="experts split over ranks; sends each token once to every rank that it needs; in one process, "
            "another",
            paper="Lepikhin et al. 2020, GShard (arXiv 2006.16668); DeepSeek-AI 2024, DeepSeek-V2 and V3",
        ),
        Component(
            kind="dispatcher",
            name="fused",
            spec="moekit_dispatchers.fused:Fused",
            target="moekit_dispatchers.fused.module:FusedDispatcher",
            summary="expert by expert in cache-sized buffers, saving little for backward; GLU and FFN banks, on CPUs",
        ),
        Component(
            kind="dispatcher",
            name="grouped",
            spec="moekit_dispatchers.grouped:Grouped",
            target="moekit_dispatchers.grouped.module:GroupedDispatcher",
            summary="sorts pairs by expert and runs all experts in one grouped product; dropless, compiles whole",
            paper="Gale et al. 2022, MegaBlocks (arXiv 2211.15841)",
        ),
        Component(
            kind="dispatcher",
            name="loop",
            spec="moekit_dispatchers.loop:Loop",
            target="moekit_dispatchers.loop.module:LoopDispatcher",
            summary="one expert after the other, for reading and as reference in tests; dropless",
        ),
        Component(
            kind="dispatcher",
            name="soft",
            spec="moekit_dispatchers.soft:Soft",
            target="moekit_dispatchers.soft.module:SoftDispatcher",
            summary="every expert for every token (1991), or for mixtures of tokens in slots (Soft MoE)",
            paper="Jacobs et al. 1991; Puigcerver et al. 2023 (arXiv 2308.00951)",
        ),
        Component(
            kind="dispatcher",
            name="textbook",
            spec="moekit_dispatchers.textbook:Textbook",
            target="moekit_dispatchers.textbook.module:TextbookDispatcher",
            summary="sort, index, grouped product, weighted sum, as one would first write it; fast on small layers",
        ),
        Component(
            kind="dispatcher",
            name="triton",
            spec="moekit_dispatchers.triton:Triton",
            target="moekit_dispatchers.triton.module:TritonDispatcher",
            summary="gathers, multiplies, activates and combines in Triton kernels; dropless; GLU and FFN banks, on "
            "GPUs",
        ),
    ]


@hookimpl
def moekit_run_starting(run: StartingRun) -> None:
    """A run keeps the choices of ``auto`` in its folder, and resumes with them."""
    from moekit_dispatchers.auto.choices import CHOICES

    CHOICES.follow(run.folder / "dispatchers.json")


@hookimpl
def moekit_run_ended(run: EndedRun) -> None:
    """What is built after the run takes its choices from the user's file again."""
    from moekit_dispatchers.auto.choices import CHOICES

    CHOICES.follow(None)

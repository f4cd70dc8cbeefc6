"""Sparse layers, dispatch alone and routers alone, each against a baseline of equal work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.contracts import Dispatcher, ExpertBank, LayerDims, Router
from moekit.moe_layer import run_on_all
from moekit.routing import gates_of
from moekit.spec.fields import Spec
from moekit_bench import peers
from moekit_bench.components import dispatchers_for, routers_for
from moekit_bench.measure import Settings, Variant, measure
from moekit_bench.request import Shape, titled
from moekit_bench.results import ShapeResult
from moekit_bench.workload import (
    IdentityExperts,
    Workload,
    build_in,
    counted_multiply_adds,
    expert_spec,
    make_workload,
    plain,
    plain_dispatch,
    stacked_weights,
)


def compare_layers(
    name: str, shape: Shape, settings: Settings, *, dispatchers: Sequence[str] = (), against: Sequence[str] = ()
) -> ShapeResult:
    """E GLU experts, K per token, with each dispatcher and by hand, against a dense GLU of hidden K·H.

    The routing is uniform and given. A ratio above 1 is the cost of being sparse. All dispatchers that fit are measured
    if ``dispatchers`` is empty. ``against`` names other libraries (see ``moekit_bench.peers``).

    Raises:
        MoekitError: a requested dispatcher or library cannot be used.
    """
    work = make_workload(shape, settings.device, settings.dtype)
    experts = work.experts()
    dispatched, skips, explained = _dispatched(work, experts, settings, dispatchers)
    variants = [dense_variant(work), plain_variant(work, experts), *dispatched]
    for peer in against:
        variants += peers.load(peer)(work, experts)
    found = _compared(name, work, settings, variants, skips)
    sparse, dense = counted_multiply_adds(shape)
    counts = {"sparse": sparse, "dense": dense}
    return replace(found, multiply_adds=counts, least_bytes=work.least_bytes(), explained=explained)


def compare_dispatch(name: str, shape: Shape, settings: Settings, *, dispatchers: Sequence[str] = ()) -> ShapeResult:
    """Each dispatcher with identity experts, against copying as many numbers in order.

    Raises:
        MoekitError: a requested dispatcher cannot be used.
    """
    work = make_workload(shape, settings.device, settings.dtype)
    dispatched, skips, explained = _dispatched(work, IdentityExperts(work.dims), settings, dispatchers)
    leaves = [work.x_TD, work.gate_TK]
    by_hand = Variant(
        name="plain",
        forward=lambda: plain_dispatch(work.x_TD, work.routing.expert_TK, work.gate_TK, shape.E),
        leaves=leaves,
    )
    variants = [Variant(name="copy", forward=lambda: _copied(work), leaves=leaves), by_hand, *dispatched]
    return replace(_compared(name, work, settings, variants, skips), explained=explained)


def compare_routers(name: str, shape: Shape, settings: Settings, *, routers: Sequence[str] = ()) -> ShapeResult:
    """Each router, in training, against a linear layer, softmax and ``torch.topk`` in fp32.

    All routers that fit are measured if ``routers`` is empty.

    Raises:
        MoekitError: a requested router cannot be used.
    """
    work = make_workload(shape, settings.device, settings.dtype)
    selection = routers_for(shape, routers)
    weight_ED = torch.randn(shape.E, shape.D, device=work.x_TD.device, requires_grad=True)
    by_hand = Variant(
        name="plain",
        forward=lambda: F.linear(work.x_TD.float(), weight_ED).softmax(-1).topk(shape.K).values,
        leaves=[work.x_TD, weight_ED],
        weights=[weight_ED],
        agrees=False,
    )
    routed = [
        router_variant(label, build_in(spec, work.dims, settings.device, torch.float32), work)
        for label, spec in selection.specs.items()
    ]
    return _compared(name, work, settings, [by_hand, *routed], selection.skips)


def _compared(
    name: str, work: Workload, settings: Settings, variants: Sequence[Variant], skips: Mapping[str, str]
) -> ShapeResult:
    """Measures variants, the first of which is the baseline."""
    baseline = variants[0].name
    rows, failures = measure(variants, settings, baseline=baseline, pairs=work.shape.T * work.shape.K)
    return ShapeResult(
        title=titled(name, work.shape),
        baseline=baseline,
        rows=rows,
        sizes=work.shape._asdict(),
        input_bytes=work.input_bytes,
        skips={**skips, **failures},
    )


def _dispatched(
    work: Workload, experts: ExpertBank, settings: Settings, texts: Sequence[str]
) -> tuple[list[Variant], Mapping[str, str], dict[str, str]]:
    """A variant for each dispatcher; those skipped, with reasons; and explanations where they are requested."""
    selection = dispatchers_for(work.shape, texts, explain=settings.explain)
    built = {
        label: build_in(spec, work.dims, settings.device, settings.dtype) for label, spec in selection.specs.items()
    }
    variants = [
        dispatcher_variant(label, dispatcher, work, experts, selection.specs[label])
        for label, dispatcher in built.items()
    ]
    return variants, selection.skips, explanations(built, work, experts) if settings.explain else {}


def dense_variant(work: Workload) -> Variant:
    """The dense layer of equal multiply-adds."""
    dims = LayerDims(dim=work.shape.D, num_experts=1)
    dense: ExpertBank = build_in(
        expert_spec(1, work.shape.K * work.shape.H), dims, work.x_TD.device.type, work.x_TD.dtype
    )
    weights = list(dense.parameters())
    return Variant(
        name="dense",
        forward=lambda: run_on_all(dense, work.x_TD),
        leaves=[work.x_TD, *weights],
        weights=weights,
        agrees=False,
    )


def plain_variant(work: Workload, experts: ExpertBank) -> Variant:
    """Sort and ``F.grouped_mm``, written by hand."""
    weights = stacked_weights(experts)
    return Variant(
        name="plain",
        forward=lambda: plain(work.x_TD, work.routing.expert_TK, work.gate_TK, *weights),
        leaves=[work.x_TD, work.gate_TK, *weights],
        weights=weights,
    )


def dispatcher_variant(name: str, dispatcher: Dispatcher, work: Workload, experts: ExpertBank, spec: Spec) -> Variant:
    """The layer with a dispatcher. Dropped pairs are counted unless its spec claims to be dropless."""
    weights = list(experts.parameters())
    drops = not getattr(spec, "dropless", True)

    def forward() -> Tensor:
        y_TO: Tensor = dispatcher(work.x_TD, work.routing, experts).y_TO
        return y_TO

    return Variant(
        name=name,
        forward=forward,
        leaves=[work.x_TD, work.gate_TK, *weights],
        weights=weights,
        dropped=(lambda: int(dispatcher(work.x_TD, work.routing, experts).dropped)) if drops else None,
    )


def router_variant(name: str, router: Router, work: Workload) -> Variant:
    """A router; its gates are differentiated."""
    weights = list(router.parameters())

    return Variant(
        name=name,
        forward=lambda: gates_of(router(work.x_TD)),
        leaves=[work.x_TD, *weights],
        weights=weights,
        agrees=False,
    )


def explanations(built: Mapping[str, Any], work: Workload, experts: ExpertBank) -> dict[str, str]:
    """What each dispatcher with a method ``explain(x_TD, routing, experts)`` would do here, and why."""
    return {
        name: str(dispatcher.explain(work.x_TD, work.routing, experts))
        for name, dispatcher in built.items()
        if hasattr(dispatcher, "explain")
    }


def _copied(work: Workload) -> Tensor:
    """``y_TD``: each token copied K times, in order, weighted and summed: as many numbers, without any lookup."""
    T, D, _, _, K = work.shape
    copies_TKD = work.x_TD[:, None].expand(T, K, D).contiguous()
    return (copies_TKD * work.gate_TK.to(work.x_TD.dtype).unsqueeze(-1)).sum(1)

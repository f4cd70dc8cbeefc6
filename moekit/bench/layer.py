"""A sparse layer against a dense one of as many multiply-adds: what it costs to be sparse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from moekit.bench import peers
from moekit.bench.measure import Settings, measure
from moekit.bench.parts import dispatchers_for
from moekit.bench.result import Comparison
from moekit.bench.shapes import Shape, titled
from moekit.bench.timing import Variant
from moekit.bench.work import Work, build_in, counted_work, dense_spec, make_work, plain, sparse_spec
from moekit.contracts import Dispatcher, ExpertBank, LayerDims
from moekit.layer import run_on_all
from moekit.spec.fields import Spec


def compare_layers(
    name: str, shape: Shape, settings: Settings, *, dispatchers: Sequence[str] = (), against: Sequence[str] = ()
) -> Comparison:
    """E GLU experts, K a token, under each dispatcher and by hand, against a dense GLU of hidden K·H.

    The routing is uniform and given. Everything above 1 is the price of being sparse.

    Args:
        name: how the shape is called.
        shape: its sizes.
        settings: how to measure.
        dispatchers: those to measure; all that fit when empty.
        against: names of other libraries (see ``moekit.bench.peers``).

    Raises:
        MoekitError: a dispatcher or library that was asked for cannot be used.
    """
    work = make_work(shape, settings.device, settings.dtype)
    experts: ExpertBank = build_in(sparse_spec(shape), work.dims, settings.device, settings.dtype)
    chosen = dispatchers_for(shape, dispatchers, explain=settings.explain)
    built = {
        called: build_in(spec, work.dims, settings.device, settings.dtype) for called, spec in chosen.specs.items()
    }
    variants = [dense_variant(work, settings), plain_variant(work, experts)]
    variants += [
        dispatched(called, dispatcher, work, experts, chosen.specs[called]) for called, dispatcher in built.items()
    ]
    for peer in against:
        variants += peers.load(peer).variants(work, experts)
    explained = explanations(built, work, experts) if settings.explain else {}
    rows, skips = measure(variants, settings, baseline="dense", pairs=shape.T * shape.K)
    sparse_work, dense_work = counted_work(shape)
    return Comparison(
        title=titled(name, shape),
        baseline="dense",
        rows=rows,
        sizes=shape._asdict(),
        multiply_adds={"sparse": sparse_work, "dense": dense_work},
        input_bytes=work.input_bytes,
        least_bytes=work.least_bytes(),
        skips={**chosen.skips, **skips},
        explained=explained,
    )


def dense_variant(work: Work, settings: Settings) -> Variant:
    """The dense layer of equal work."""
    dims = LayerDims(dim=work.shape.D, num_experts=1)
    dense: ExpertBank = build_in(dense_spec(work.shape), dims, settings.device, settings.dtype)
    weights = list(dense.parameters())
    return Variant(
        name="dense",
        forward=lambda: run_on_all(dense, work.x_TD),
        leaves=[work.x_TD, *weights],
        weights=weights,
        agrees=False,
    )


def plain_variant(work: Work, experts: ExpertBank) -> Variant:
    """Sort and ``F.grouped_mm``, by hand."""
    form = experts.standard_form()
    assert form is not None
    w_in_EHD, w_out_EOH = form.w_in_EHD, form.w_out_EOH
    return Variant(
        name="plain",
        forward=lambda: plain(work.x_TD, work.routing.expert_TK, work.gate_TK, w_in_EHD, w_out_EOH),
        leaves=[work.x_TD, work.gate_TK, w_in_EHD, w_out_EOH],
        weights=[w_in_EHD, w_out_EOH],
    )


def dispatched(name: str, dispatcher: Dispatcher, work: Work, experts: ExpertBank, spec: Spec) -> Variant:
    """The layer under a dispatcher; pairs dropped are counted where its spec does not claim that there are none."""
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


def explanations(built: Mapping[str, Any], work: Work, experts: ExpertBank) -> dict[str, str]:
    """What dispatchers with a method ``explain(x_TD, routing, experts)`` say that they would do here, and why."""
    return {
        name: str(dispatcher.explain(work.x_TD, work.routing, experts))
        for name, dispatcher in built.items()
        if hasattr(dispatcher, "explain")
    }

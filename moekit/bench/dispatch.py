"""The way to the experts and back alone: experts that do nothing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from moekit.bench.layer import dispatched, explanations
from moekit.bench.measure import Settings, measure
from moekit.bench.parts import dispatchers_for
from moekit.bench.result import Comparison
from moekit.bench.shapes import Shape, titled
from moekit.bench.timing import Variant
from moekit.bench.work import IdentityExperts, Work, build_in, make_work, plain_dispatch


def compare_dispatch(name: str, shape: Shape, settings: Settings, *, dispatchers: Sequence[str] = ()) -> Comparison:
    """Each dispatcher with identity experts, against moving as many numbers in order.

    Args:
        name: how the shape is called.
        shape: its sizes; H plays no part.
        settings: how to measure.
        dispatchers: those to measure; all that fit when empty.

    Raises:
        MoekitError: a dispatcher that was asked for cannot be used.
    """
    work = make_work(shape, settings.device, settings.dtype)
    experts = IdentityExperts(work.dims)
    chosen = dispatchers_for(shape, dispatchers, explain=settings.explain)
    built = {
        called: build_in(spec, work.dims, settings.device, settings.dtype) for called, spec in chosen.specs.items()
    }
    variants = [copy_variant(work), plain_variant(work)]
    variants += [
        dispatched(called, dispatcher, work, experts, chosen.specs[called]) for called, dispatcher in built.items()
    ]
    explained = explanations(built, work, experts) if settings.explain else {}
    rows, skips = measure(variants, settings, baseline="copy", pairs=shape.T * shape.K)
    return Comparison(
        title=titled(name, shape),
        baseline="copy",
        rows=rows,
        sizes=shape._asdict(),
        input_bytes=work.input_bytes,
        skips={**chosen.skips, **skips},
        explained=explained,
    )


def copy_variant(work: Work) -> Variant:
    """Each token copied K times, in order, weighted and summed: as many numbers, and nothing to look up."""
    T, D, _, _, K = work.shape

    def forward() -> Tensor:
        copies_TKD = work.x_TD[:, None].expand(T, K, D).contiguous()
        return (copies_TKD * work.gate_TK.to(work.x_TD.dtype).unsqueeze(-1)).sum(1)

    return Variant(name="copy", forward=forward, leaves=[work.x_TD, work.gate_TK])


def plain_variant(work: Work) -> Variant:
    """Sort, index, un-sort, weighted sum, by hand."""
    E = work.shape.E
    return Variant(
        name="plain",
        forward=lambda: plain_dispatch(work.x_TD, work.routing.expert_TK, work.gate_TK, E),
        leaves=[work.x_TD, work.gate_TK],
    )

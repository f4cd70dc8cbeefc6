"""Routers alone: scores, and the choice of K among E."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.bench.measure import Settings, measure
from moekit.bench.parts import routers_for
from moekit.bench.result import Comparison
from moekit.bench.shapes import Shape, titled
from moekit.bench.timing import Variant
from moekit.bench.work import Work, build_in, make_work
from moekit.contracts import Router
from moekit.routing import ExpertChoice, Soft, TokenChoice


def compare_routers(name: str, shape: Shape, settings: Settings, *, routers: Sequence[str] = ()) -> Comparison:
    """Each router, in training, against a linear layer, softmax and ``torch.topk`` in fp32 by hand.

    Args:
        name: how the shape is called.
        shape: its sizes; H plays no part.
        settings: how to measure.
        routers: those to measure; all that can be made from K and E when empty.

    Raises:
        MoekitError: a router that was asked for cannot be used.
    """
    work = make_work(shape, settings.device, settings.dtype)
    chosen = routers_for(shape, routers)
    variants = [plain_variant(work)]
    for called, spec in chosen.specs.items():
        variants.append(routed(called, build_in(spec, work.dims, settings.device, torch.float32), work))
    rows, skips = measure(variants, settings, baseline="plain", pairs=shape.T * shape.K)
    return Comparison(
        title=titled(name, shape),
        baseline="plain",
        rows=rows,
        sizes=shape._asdict(),
        input_bytes=work.input_bytes,
        skips={**chosen.skips, **skips},
    )


def plain_variant(work: Work) -> Variant:
    """Linear, softmax, ``torch.topk``; fp32, as every router of the kit."""
    _, D, _, E, K = work.shape
    weight_ED = torch.randn(E, D, device=work.x_TD.device, requires_grad=True)
    return Variant(
        name="plain",
        forward=lambda: F.linear(work.x_TD.float(), weight_ED).softmax(-1).topk(K).values,
        leaves=[work.x_TD, weight_ED],
        weights=[weight_ED],
        agrees=False,
    )


def routed(name: str, router: Router, work: Work) -> Variant:
    """A router; what is differentiated is its gates."""
    weights = list(router.parameters())

    def forward() -> Tensor:
        routing = router(work.x_TD)
        if isinstance(routing, TokenChoice):
            return routing.gate_TK
        if isinstance(routing, ExpertChoice):
            return routing.gate_EC
        assert isinstance(routing, Soft)
        return routing.combine_TEP

    return Variant(name=name, forward=forward, leaves=[work.x_TD, *weights], weights=weights, agrees=False)

"""Every router with every dispatcher, balancer and expert: what fits trains; the rest is refused with a reason when the
spec is composed.

The list is generated, so a new component is tested with all others. Its options are those of its first example in the
conformance tests, or its defaults.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moekit import MoELayer, load
from moekit.registry import current
from moekit.spec.fields import ConflictError
from moekit.spec.kinds import BalancerSpec, DispatcherSpec, ExpertSpec, MoE, RouterSpec
from moekit.training import LitMoE
from moekit.training.balance import BalanceStep

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from test_first_party import KNOWN

E, D = 16, 12
PLUGINS = ("routers", "dispatchers", "balancers", "experts")


def first_party(kind: str) -> dict[str, Any]:
    """One spec of each first-party component of a kind, by its name."""
    names = [c for c in current().components(kind) if c.plugin in PLUGINS]
    return {c.name: KNOWN[f"{kind}/{c.name}"][0] if f"{kind}/{c.name}" in KNOWN else c.spec_class() for c in names}


ROUTERS: dict[str, RouterSpec] = first_party("router")
DISPATCHERS: dict[str, DispatcherSpec] = first_party("dispatcher")
BALANCERS: dict[str, BalancerSpec] = first_party("balancer")
EXPERTS: dict[str, ExpertSpec] = {n: dataclasses.replace(s, count=E) for n, s in first_party("expert").items()}


def reasons(router: RouterSpec, dispatcher: DispatcherSpec, balancer: BalancerSpec) -> list[str]:
    """Why three components do not fit, by what they declare."""
    why = [*router.check_experts(E), *dispatcher.check_experts(E), *dispatcher.check_router(router)]
    why += balancer.check_router(router, E)
    if router.form not in dispatcher.forms:
        why.append("form of the dispatcher")
    if router.form not in balancer.forms:
        why.append("form of the balancer")
    if balancer.gives_bias and not router.takes_bias:
        why.append("bias")
    return why


def train_two_steps(spec: MoE) -> None:
    """Two optimizer steps of a layer on tokens of two sequences, the second ending in padding."""
    torch.manual_seed(0)
    layer = MoELayer.from_spec(spec, D).train()
    holder = torch.nn.ModuleDict({"layer": layer})
    balance = BalanceStep(holder)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, target = torch.randn(2, 16, D), torch.randn(2, 16, D)
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[1, 12:] = False
    tokens = torch.randint(50, (2, 16))
    for _ in range(2):
        y, report = layer(x, valid=valid, tokens=tokens)
        balance.observe({"layer": report})
        loss = (y - target)[valid].square().mean() + report.loss()
        optimizer.zero_grad()
        loss.backward()
        assert torch.isfinite(loss)
        for name, parameter in layer.named_parameters():
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name
        assert all((p.grad is not None) == p.requires_grad for p in layer.experts.parameters())
        optimizer.step()
        seen = balance.step()
        assert seen is not None
        assert int(seen.tokens["layer"]) == 28
        assert 0 <= int(seen.dropped["layer"]) <= int(seen.load_E["layer"].sum())
    assert not bool(y.detach()[1, 12:].any())


@pytest.mark.parametrize(("router", "dispatcher"), list(itertools.product(ROUTERS, DISPATCHERS)))
def test_every_combination_trains_or_is_refused_with_a_reason(router: str, dispatcher: str) -> None:
    trained = refused = 0
    for balancer, expert in itertools.product(BALANCERS, EXPERTS):
        chosen = {"router": ROUTERS[router], "dispatcher": DISPATCHERS[dispatcher], "experts": EXPERTS[expert]}
        why = reasons(ROUTERS[router], DISPATCHERS[dispatcher], BALANCERS[balancer])
        what = f"{router} x {dispatcher} x {balancer} x {expert}"
        try:
            spec = MoE(**chosen, balancers={"it": BALANCERS[balancer]})
        except ConflictError as error:
            assert why, f"{what} was refused without need: {error}"
            assert len(error.sentences) == len(why)
            assert all(len(sentence.split()) > 4 for sentence in error.sentences), f"{what}: no reason in {error}"
            refused += 1
            continue
        assert not why, f"{what} was not refused: {why}"
        try:
            train_two_steps(spec)
        except Exception as error:
            error.add_note(what)
            raise
        trained += 1
    assert trained + refused == len(BALANCERS) * len(EXPERTS)


def test_every_component_fits_in_some_combination() -> None:
    fits = [
        names
        for names in itertools.product(ROUTERS, DISPATCHERS, BALANCERS)
        if not reasons(ROUTERS[names[0]], DISPATCHERS[names[1]], BALANCERS[names[2]])
    ]
    for i, known in enumerate((ROUTERS, DISPATCHERS, BALANCERS)):
        assert {names[i] for names in fits} == set(known)
    assert len(fits) > 20


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.moe.router={use: noisy_topk, top_k: 8}"],
        ["model.moe.router={use: noisy_topk, top_k: 8}", "model.moe.dispatcher={use: capacity}"],
        ["model.moe.experts={use: ffn, count: 64, hidden: 16}", "model.moe.balancers.z={use: z_loss}"],
    ],
    ids=["2017 noise with a 2024 bias", "and capacity", "plain experts and z-loss"],
)
def test_components_of_different_papers_train_together_in_a_decoder(overrides: list[str]) -> None:
    small = ["model.dim=16", "model.depth=2", "data.domains=[python]", "data.megabytes=0.2", "data.seq=16"]
    module = LitMoE(load("deepseek_v3", [*small, *overrides, "data.batch=2", "compare=null"]))
    optimizer = torch.optim.SGD(module.model.parameters(), lr=0.1)
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        output = module.model(tokens)
        module.balance.observe(output.reports)
        loss = output.y.square().mean() + sum(report.loss() for report in output.reports.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert module.balance.step() is not None
    biases = [b.selection_bias() for layer in module.balance.layers.values() for b in layer.balancers.values()]
    assert any(bias is not None and bool(bias.any()) for bias in biases)

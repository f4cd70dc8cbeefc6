"""A layer rejects what its components must not return: it names the component, what was found and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moekit import (
    BalanceContext,
    Balancer,
    Dispatched,
    Dispatcher,
    ExpertBank,
    ExpertChoice,
    Groups,
    LayerDims,
    LossTerm,
    MoELayer,
    Router,
    Routing,
    Soft,
    build,
)
from moekit.errors import PluginError
from moekit_dispatchers.auto import Auto
from moekit_experts.glu import Glu
from moekit_routers.topk import TopK

T, D, E, K = 6, 8, 4, 2
DIMS = LayerDims(dim=D, num_experts=E)
NAN = float("nan")
Change = Callable[[Any], Any]


class BadRouter(Router):
    """A sound router whose routing is changed."""

    def __init__(self, change: Change, form: str) -> None:
        super().__init__()
        self.inner, self.change, self.form = build(TopK(top_k=K), DIMS), change, form

    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> Routing:
        routing = self.inner(x_TD, valid_T=valid_T, selection_bias_E=selection_bias_E)
        common = {"logits_TE": routing.logits_TE, "scores_TE": routing.scores_TE, "valid_T": valid_T}
        scores_ET = routing.scores_TE.T
        if self.form == "expert_choice":
            token_EC = scores_ET.argsort(1)[:, :3]
            routing = ExpertChoice(**common, token_EC=token_EC, gate_EC=scores_ET.gather(1, token_EC))
        elif self.form == "soft":
            routing = Soft(**common, combine_TEP=routing.scores_TE[:, :, None])
        elif self.form == "slots":
            weights_TEP = routing.scores_TE[:, :, None].expand(-1, -1, 3)
            routing = Soft(**common, combine_TEP=weights_TEP, dispatch_TEP=weights_TEP)
        return self.change(routing)  # type: ignore[no-any-return]


class BadDispatcher(Dispatcher):
    def __init__(self, change: Change) -> None:
        super().__init__()
        self.inner, self.change = build(Auto(), DIMS), change

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        return self.change(self.inner(x_TD, routing, experts, num_sequences=num_sequences))  # type: ignore[no-any-return]


class BadBank(ExpertBank):
    def __init__(self, change: Change) -> None:
        super().__init__()
        self.num_experts, self.out_dim, self.change = E, D, change

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        return self.change(x_ND)  # type: ignore[no-any-return]


class BadBalancer(Balancer):
    def __init__(self, term: Any = None, bias: Any = None) -> None:
        super().__init__()
        self.term, self.bias = term, bias

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm | None:
        return self.term  # type: ignore[no-any-return]

    def selection_bias(self) -> Tensor | None:
        return self.bias  # type: ignore[no-any-return]


def layer(**parts: Any) -> MoELayer:
    sound = {"router": build(TopK(top_k=K), DIMS), "experts": build(Glu(count=E, hidden=5), DIMS)}
    return MoELayer(**{**sound, "dispatcher": build(Auto(), DIMS), **parts})


def put(**parts: Any) -> Change:
    """Replaces fields by values, or by a function of the old ones."""
    return lambda old: replace(old, **{n: new(getattr(old, n)) if callable(new) else new for n, new in parts.items()})


def rejects(broken: MoELayer, message: str, valid: Tensor | None = None) -> None:
    with pytest.raises(PluginError, match=message):
        broken(torch.randn(T, D), valid=valid)


SHAPES: list[tuple[str, Change, str]] = [
    ("token_choice", lambda routing: {}, r"dict\n  expected a Routing"),
    ("token_choice", put(scores_TE=lambda s: s[1:]), r"scores_TE = torch.float32 \[5, 4\]\n.* \[6, E\]"),
    ("token_choice", put(scores_TE=lambda s: s.long()), r"scores_TE = torch.int64 .*\n  expected a float tensor"),
    ("token_choice", put(logits_TE=lambda z: z.T), r"logits_TE = torch.float32 \[4, 6\]\n.* \[6, 4\]"),
    ("token_choice", put(logits_TE=None), r"logits_TE = None\n  expected a float tensor \[6, 4\]"),
    (
        "token_choice",
        put(expert_TK=lambda e: e[1:]),
        r"expert_TK = torch.int64 \[5, 2\]\n  expected an int64 tensor \[6, K\]",
    ),
    ("token_choice", put(expert_TK=lambda e: e.int()), r"expert_TK = torch.int32 \[6, 2\]\n  expected an int64"),
    ("token_choice", put(expert_TK=lambda e: e.float()), "expert_TK = torch.float32"),
    (
        "token_choice",
        put(expert_TK=lambda e: e[:, :1]),
        r"gate_TK = torch.float32 \[6, 2\]\n  expected a float tensor \[6, 1\]",
    ),
    (
        "token_choice",
        put(gate_TK=lambda g: g.T),
        r"gate_TK = torch.float32 \[2, 6\]\n  expected a float tensor \[6, 2\]",
    ),
    ("token_choice", put(gate_TK=lambda g: g[:, [0, 1, 1]]), r"gate_TK = torch.float32 \[6, 3\]"),
    ("token_choice", put(gate_TK=lambda g: g[:, :, None]), r"gate_TK = torch.float32 \[6, 2, 1\]"),
    ("token_choice", put(sent_TK=lambda _: torch.ones(T, 1).bool()), r"sent_TK = torch.bool \[6, 1\]\n.* \[6, 2\]"),
    ("token_choice", put(sent_TK=lambda _: torch.ones(T, K)), r"sent_TK = torch.float32 \[6, 2\]\n  expected a bool"),
    (
        "token_choice",
        put(valid_T=lambda _: torch.ones(T).bool()),
        r"valid_T = torch.bool \[6\]\n.* was given it",
    ),
    ("token_choice", put(smooth_load_E=lambda _: torch.ones(E + 1)), r"smooth_load_E = torch.float32 \[5\]\n.* \[4\]"),
    ("token_choice", put(own_loss=0.5), r"float\n  expected own_loss as a LossTerm"),
    (
        "expert_choice",
        put(token_EC=lambda t: t[1:]),
        r"token_EC = torch.int64 \[3, 3\]\n  expected an int64 tensor \[4, C\]",
    ),
    ("expert_choice", put(gate_EC=lambda g: g.T), r"gate_EC = torch.float32 \[3, 4\]\n.* \[4, 3\]"),
    ("soft", put(combine_TEP=lambda c: c.squeeze(2)), r"combine_TEP = torch.float32 \[6, 4\]\n.* \[6, 4, 1\]"),
    ("soft", put(combine_TEP=lambda c: c.repeat(1, 1, 2)), r"combine_TEP = torch.float32 \[6, 4, 2\]\n.* \[6, 4, 1\]"),
    ("slots", put(combine_TEP=lambda c: c[:, 0]), r"combine_TEP = torch.float32 \[6, 3\]\n.* \[6, 4, P\]"),
    ("slots", put(dispatch_TEP=lambda d: d[..., :1]), r"dispatch_TEP = torch.float32 \[6, 4, 1\]\n.* \[6, 4, 3\]"),
]


@pytest.mark.parametrize(
    ("form", "change", "message"), SHAPES, ids=[f"{i}-{form}" for i, (form, *_) in enumerate(SHAPES)]
)
def test_a_routing_of_another_shape_or_dtype_is_rejected(form: str, change: Change, message: str) -> None:
    rejects(layer(router=BadRouter(change, form)), f"^Router BadRouter returned {message}")


def test_a_routing_without_the_mask_that_the_router_was_given_is_rejected() -> None:
    valid = torch.arange(T) > 1
    broken = layer(router=BadRouter(put(valid_T=None), "token_choice"))
    rejects(broken, r"^Router BadRouter returned valid_T = None\n  expected valid_T in the routing", valid)
    shorter = layer(router=BadRouter(put(valid_T=lambda v: v[1:]), "token_choice"))
    rejects(shorter, r"valid_T = torch.bool \[5\]\n  expected a bool tensor \[6\]", valid)


@pytest.mark.parametrize("form", ["token_choice", "expert_choice", "soft", "slots"])
def test_a_sound_routing_of_each_form_passes_with_its_values(form: str) -> None:
    sound = layer(router=BadRouter(lambda routing: routing, form))
    sound.check_values = True
    for valid in (None, torch.arange(T) > 1):
        sound(torch.randn(T, D), valid=valid)
        sound(torch.randn(0, D), valid=None if valid is None else valid[:0])


def set_at(at: tuple[int, int], value: float) -> Callable[[Tensor], Tensor]:
    def changed(old: Tensor) -> Tensor:
        new = old.clone()
        new[at] = value
        return new

    return changed


VALUES: list[tuple[str, Change, str]] = [
    (
        "token_choice",
        put(expert_TK=set_at((3, 1), -1)),
        "expert_TK from -1 to .*\n  expected indices of experts from 0 to 3",
    ),
    ("token_choice", put(expert_TK=set_at((3, 1), E)), "expert_TK from 0 to 4"),
    (
        "token_choice",
        put(expert_TK=lambda e: e[:, :1].expand(-1, 2)),
        "expert . twice in row 0 of expert_TK\n  expected distinct",
    ),
    ("token_choice", put(gate_TK=set_at((2, 0), NAN)), r"a gate of nan at \[2, 0\]\n  expected finite gates"),
    ("token_choice", put(gate_TK=set_at((2, 0), torch.inf)), r"a gate of inf at \[2, 0\]"),
    (
        "expert_choice",
        put(token_EC=set_at((0, 0), T)),
        "token_EC from . to 6\n  expected indices of tokens from 0 to 5",
    ),
    ("expert_choice", put(token_EC=lambda t: t[:, :1].expand(-1, 3)), "token . twice in row 0 of token_EC"),
    ("expert_choice", put(gate_EC=set_at((1, 2), NAN)), r"a gate of nan at \[1, 2\]"),
    ("soft", put(combine_TEP=lambda c: c.masked_fill(c == c.max(), NAN)), "a gate of nan at"),
]


@pytest.mark.parametrize(
    ("form", "change", "message"), VALUES, ids=[f"{i}-{form}" for i, (form, *_) in enumerate(VALUES)]
)
def test_values_that_a_routing_must_not_have_are_rejected_where_asked(
    form: str, change: Change, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEKIT_CHECK", "1")
    broken = layer(router=BadRouter(change, form))
    assert broken.check_values
    rejects(broken, f"^Router BadRouter returned {message}")


@pytest.mark.parametrize("value", [None, "", "0"])
def test_values_are_not_read_unless_asked(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOEKIT_CHECK", raising=False)
    if value is not None:
        monkeypatch.setenv("MOEKIT_CHECK", value)
    assert not layer().check_values


def test_nan_gates_of_a_token_with_nan_are_a_matter_of_numbers() -> None:
    checked = layer()
    checked.check_values = True
    x_TD = torch.randn(T, D)
    x_TD[2] = NAN
    assert checked(x_TD)[1].routing.gate_TK[2].isnan().all()


def test_choices_that_are_not_sent_may_repeat_an_expert() -> None:
    twice = put(expert_TK=lambda e: e[:, :1].expand(-1, 2), sent_TK=lambda _: torch.tensor([[True, False]] * T))
    checked = layer(router=BadRouter(twice, "token_choice"))
    checked.check_values = True
    checked(torch.randn(T, D))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: out.y_TO, r"Tensor\n  expected a Dispatched"),
        (lambda out: None, r"NoneType\n  expected a Dispatched"),
        (put(y_TO=lambda y: y[1:]), r"y_TO = torch.float32 \[5, 8\]\n  expected a float tensor \[6, 8\]"),
        (put(y_TO=lambda y: y[:, 1:]), r"y_TO = torch.float32 \[6, 7\]"),
        (put(dropped=3), r"dropped = 3\n  expected an int64 tensor \[\]"),
        (put(dropped=lambda d: d[None]), r"dropped = torch.int64 \[1\]"),
        (put(dropped=lambda d: d.float()), r"dropped = torch.float32 \[\]"),
        (put(expert_TEO=lambda _: torch.ones(T, E)), r"expert_TEO = torch.float32 \[6, 4\]\n.* \[6, 4, 8\]"),
    ],
)
def test_what_a_dispatcher_must_not_return_is_rejected(change: Change, message: str) -> None:
    rejects(layer(dispatcher=BadDispatcher(change)), f"^Dispatcher BadDispatcher returned {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[1:], r"y_NO = torch.float32 \[11, 8\]\n  expected a float tensor \[12, 8\]"),
        (lambda x: x[:, 1:], r"y_NO = torch.float32 \[12, 7\]"),
        (lambda x: x.long(), r"y_NO = torch.int64 \[12, 8\]"),
        (lambda x: None, r"y_NO = None"),
    ],
)
def test_rows_that_an_experts_module_must_not_return_are_rejected(change: Change, message: str) -> None:
    rejects(layer(experts=BadBank(change)), f"^ExpertBank BadBank returned {message}")
    rejects(layer(shared=BadBank(change)), "^ExpertBank BadBank returned y_NO")


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (0.5, r"float\n  expected its loss as a LossTerm\(value=..., weight=...\) or None"),
        (
            LossTerm(value=torch.ones(E), weight=1.0),
            r"its loss, LossTerm.value = torch.float32 \[4\]\n.* a float tensor \[\]",
        ),
        (LossTerm(value=torch.tensor(1), weight=1.0), r"its loss, LossTerm.value = torch.int64 \[\]"),
        (LossTerm(value=0.5, weight=1.0), "its loss, LossTerm.value = 0.5"),  # type: ignore[arg-type]
        (LossTerm(value=torch.ones(()), weight=None), r"LossTerm.weight = None\n  expected its loss with a number"),  # type: ignore[arg-type]
    ],
)
def test_what_a_balancer_must_not_return_is_rejected(term: Any, message: str) -> None:
    rejects(
        layer(balancers={"b": BadBalancer(term)}),
        f"^Balancer BadBalancer returned {message}",
    )


@pytest.mark.parametrize("bias", [torch.ones(E + 1), torch.ones(E, 1), torch.ones(E).long(), 0.5])
def test_a_selection_bias_of_another_shape_or_dtype_is_rejected(bias: Any) -> None:
    rejects(
        layer(balancers={"b": BadBalancer(bias=bias)}),
        r"(?s)^Balancer BadBalancer returned a selection bias = .*float tensor \[4\]",
    )


@pytest.mark.parametrize("form", ["token_choice", "soft"])
def test_the_checks_compile_into_one_graph(form: str) -> None:
    torch.compiler.reset()
    sound = layer(router=BadRouter(lambda routing: routing, form), balancers={"b": BadBalancer(bias=torch.ones(E))})
    compiled = torch.compile(sound, backend="eager", fullgraph=True)
    x_TD = torch.randn(T, D)
    assert torch.equal(compiled(x_TD)[0], sound(x_TD)[0])
    torch.compiler.reset()

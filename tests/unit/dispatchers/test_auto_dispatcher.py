"""The automatic dispatcher: what it chooses and why, and that the choice changes no result."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from routings import best_of_random
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from moekit.contracts import ExpertBank, LayerDims
from moekit.routing import Routing, Soft, TokenChoice
from moekit_dispatchers.auto import Auto, module, timing
from moekit_dispatchers.auto.choices import Choices
from moekit_dispatchers.auto.module import AutoDispatcher
from moekit_dispatchers.auto.timing import time_dispatchers
from moekit_dispatchers.grouped import gpus
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.loop.module import LoopDispatcher
from moekit_dispatchers.triton import module as triton
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts

T, D, H, E, K = 12, 8, 6, 4, 2
DIMS = LayerDims(dim=D, num_experts=E)


def routing() -> TokenChoice:
    torch.manual_seed(0)
    return best_of_random(T, E, K)


def soft() -> Soft:
    logits_TE = routing().logits_TE
    scores_TE = logits_TE.softmax(1)
    return Soft(logits_TE=logits_TE, scores_TE=scores_TE, combine_TEP=scores_TE[:, :, None])


def glu(**changes: Any) -> GluExperts:
    torch.manual_seed(1)
    return GluExperts(Glu(count=E, hidden=H, **changes), DIMS)


ROWS = T * K // E
WORK = ROWS * 2 * H * D
NUMBERS = T * K * (D + 2 * H + H + D)


@pytest.mark.parametrize(
    ("routed", "bank", "x_TD", "limits", "words"),
    [
        (soft(), glu(), torch.randn(T, D), (0, 0), "soft: the routing is soft"),
        (routing(), glu(scale_bias=True), torch.randn(T, D), (0, 0), "grouped: GluExperts has no standard form"),
        (routing(), glu(), torch.randn(T, D), (WORK, NUMBERS - 1), f"fused: {T * K} pairs, {ROWS} rows per expert"),
        (routing(), glu(), torch.randn(T, D), (WORK + 1, NUMBERS - 1), f"grouped: {T * K} pairs, {ROWS} rows"),
        (routing(), glu(), torch.randn(T, D), (WORK, NUMBERS), f"textbook: {T * K} pairs, {ROWS} rows"),
        (routing(), glu().double(), torch.randn(T, D).double(), (0, NUMBERS), f"fused: {T * K} pairs"),
        (
            routing(),
            glu(),
            torch.randn(T, D).bfloat16(),
            (0, 0),
            "grouped: 'fused' cannot: it takes fp32 or fp64 throughout",
        ),
    ],
    ids=["soft", "no form", "work enough", "too little work", "few numbers", "fp64", "dtypes differ"],
)
def test_the_fixed_rule_explains_its_choice(
    routed: Routing,
    bank: ExpertBank,
    x_TD: Tensor,
    limits: tuple[int, int],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FUSED_FROM", limits[0])
    monkeypatch.setattr(module, "TEXTBOOK_UP_TO", limits[1])
    assert AutoDispatcher(Auto(), DIMS).explain(x_TD, routed, bank).startswith(words)


@pytest.fixture
def choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Choices:
    """Times choose in this test, and are kept in a folder of its own."""
    monkeypatch.delenv("MOEKIT_AUTO")
    made = Choices(tmp_path / "cache" / "dispatchers.json")
    monkeypatch.setattr(module, "CHOICES", made)
    return made


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({"fused": 2.0, "onednn": 1.5, "textbook": 1.0}, "textbook"),
        ({"fused": 1.02, "onednn": 1.0, "textbook": 1.0}, "fused"),
        ({"fused": 1.04, "onednn": 1.02, "textbook": 1.0}, "onednn"),
        ({"triton": 0.1, "textbook": 1.0}, "textbook"),  # of a file that was written where triton could run
    ],
)
def test_the_fastest_is_taken_and_of_equally_fast_ones_that_which_saves_least(
    times: dict[str, float], chosen: str, choices: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "time_dispatchers", lambda *args, **kwargs: times)
    monkeypatch.setattr(module, "has_onednn", lambda: True)
    words = AutoDispatcher(Auto(), DIMS).explain(torch.randn(T, D), routing(), glu())
    assert words.startswith(f"{chosen}: measured: ")


def test_a_size_is_timed_once_on_a_machine_and_each_kind_of_call_on_its_own(
    choices: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["grad"])
        return time_dispatchers(*args, **kwargs)

    monkeypatch.setattr(module, "time_dispatchers", counted)
    auto, bank, x_TD = AutoDispatcher(Auto(), DIMS), glu(), torch.randn(T, D)
    expected_TO = LoopDispatcher(Loop(), DIMS)(x_TD, routing(), bank).y_TO
    for _ in range(2):
        torch.testing.assert_close(auto(x_TD, routing(), bank).y_TO, expected_TO)
    assert seen == [True]
    with torch.no_grad():
        auto(torch.randn(40 * T, D), best_of_random(40 * T, E, K), bank)
    assert seen == [True, False]
    monkeypatch.setattr(module, "CHOICES", Choices(choices.user))  # as another process, which reads the file
    AutoDispatcher(Auto(), DIMS)(x_TD, routing(), bank)
    assert seen == [True, False]


def test_timing_changes_nothing_of_the_caller(choices: Choices) -> None:
    auto, bank, x_TD = AutoDispatcher(Auto(), DIMS), glu(), torch.randn(T, D, requires_grad=True)
    routed, state = routing(), torch.get_rng_state()
    auto(x_TD, routed, bank)
    assert choices.known and torch.equal(state, torch.get_rng_state())
    assert x_TD.grad is None and all(p.grad is None for p in bank.parameters())


def test_a_layer_that_is_timed_within_recomputation_has_the_same_gradients(choices: Choices) -> None:
    auto, bank, x_TD, routed = AutoDispatcher(Auto(), DIMS), glu(), torch.randn(T, D, requires_grad=True), routing()

    def run(x_TD: Tensor) -> Tensor:
        y_TO: Tensor = auto(x_TD, routed, bank).y_TO
        return y_TO.sin().sum()

    loss: Tensor = checkpoint(run, x_TD, use_reentrant=False)  # type: ignore[no-untyped-call]
    assert choices.known  # it was timed
    (found_TD,) = torch.autograd.grad(loss, [x_TD])
    (expected_TD,) = torch.autograd.grad(run(x_TD), [x_TD])
    torch.testing.assert_close(found_TD, expected_TD)


def test_nothing_is_timed_where_it_would_confuse_or_differ(choices: Choices, monkeypatch: pytest.MonkeyPatch) -> None:
    auto, bank, x_TD = AutoDispatcher(Auto(), DIMS), glu(), torch.randn(T, D)
    with FlopCounterMode(display=False):
        assert "operators are being recorded" in auto.explain(x_TD, routing(), bank)
    assert "choose=fixed" in AutoDispatcher(Auto(choose="fixed"), DIMS).explain(x_TD, routing(), bank)
    torch.use_deterministic_algorithms(True)
    try:
        assert "torch must be deterministic" in auto.explain(x_TD, routing(), bank)
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setenv("MOEKIT_AUTO", "fixed")
    assert "MOEKIT_AUTO=fixed" in AutoDispatcher(Auto(), DIMS).explain(x_TD, routing(), bank)
    assert choices.known == {} and not choices.user.exists()  # type: ignore[union-attr]


def test_a_dispatcher_that_fails_when_it_is_timed_is_not_chosen(
    choices: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no kernel image is available")

    auto = AutoDispatcher(Auto(), DIMS)
    monkeypatch.setattr(auto.textbook, "forward", broken)
    words = auto.explain(torch.randn(T, D), routing(), glu())
    assert "measured: " in words and "textbook" not in words


@pytest.mark.parametrize("limits", [(0, 0), (1 << 60, 0), (0, 1 << 60)], ids=["fused", "grouped", "textbook"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_choice_changes_no_result(
    limits: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FUSED_FROM", limits[0])
    monkeypatch.setattr(module, "TEXTBOOK_UP_TO", limits[1])
    x_TD, routed, bank = torch.randn(T, D, dtype=dtype), routing(), glu().to(dtype)
    found, expected = (d(x_TD, routed, bank).y_TO for d in (AutoDispatcher(Auto(), DIMS), LoopDispatcher(Loop(), DIMS)))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_the_option_save_is_passed_on() -> None:
    auto = AutoDispatcher(Auto(save="nothing"), DIMS)
    assert auto.fused.spec.save == auto.onednn.spec.save == auto.triton.spec.save == "nothing"


def test_what_takes_long_and_is_slow_is_tried_once_and_what_is_quick_in_every_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A busy moment makes a quick dispatcher look slow, and trying it again costs nothing."""
    now = 0.0
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now, thread_time=lambda: now))
    calls = dict.fromkeys(("quick", "less quick", "slow"), 0)
    routed, experts = routing(), glu()
    form = experts.standard_form()
    assert form is not None

    class Waiting(LoopDispatcher):
        def __init__(self, name: str, seconds: float) -> None:
            super().__init__(Loop(), DIMS)
            self.name, self.seconds = name, seconds

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal now
            calls[self.name] += 1
            now += self.seconds
            return super().forward(*args, **kwargs)

    dispatchers = {
        "quick": Waiting("quick", 1e-4),
        "less quick": Waiting("less quick", 1e-3),
        "slow": Waiting("slow", 0.3),
    }
    size = timing.size_of(T, routed.expert_TK.numel(), E)
    times = time_dispatchers(dispatchers, torch.randn(T, D), form, size, grad=False)
    assert calls["slow"] == 1 and set(times) == set(calls)
    timed = time_dispatchers(
        {"quick": dispatchers["quick"], "less quick": dispatchers["less quick"]},
        torch.randn(T, D),
        form,
        size,
        grad=False,
    )
    assert calls["less quick"] >= 5 and timed["quick"] < timed["less quick"]


def test_the_dispatchers_that_fit_are_those_that_are_timed(choices: Choices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not ``grouped`` where ``fused`` can, which it never beats, nor ``textbook`` where its rows fit in no cache.

    Times of fewer dispatchers, as an older version or another build of torch has kept, do not choose.
    """
    seen = []
    monkeypatch.setattr(
        module, "time_dispatchers", lambda able, *args, **kwargs: seen.append(list(able)) or {"fused": 1.0}
    )
    bank, x_TD = glu(), torch.randn(T, D)
    for has in (False, True):
        choices.follow(None)
        monkeypatch.setattr(module, "has_onednn", lambda has=has: has)
        AutoDispatcher(Auto(), DIMS).explain(x_TD, routing(), bank)
    monkeypatch.setattr(module, "TEXTBOOK_NEVER_FROM", {True: 0, False: 0})
    for has in (True, False):
        choices.follow(None)
        monkeypatch.setattr(module, "has_onednn", lambda has=has: has)
        words = AutoDispatcher(Auto(save="all"), DIMS).explain(x_TD, routing(), bank)
    assert seen == [["fused", "textbook"], ["fused", "onednn", "textbook"], ["fused", "onednn"]]
    assert words == f"fused: nothing else is worth timing for {T * K} pairs"


def test_few_choices_stay_in_memory_while_numbers_of_tokens_change(
    choices: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_KNOWN", 3)
    monkeypatch.setattr(module, "time_dispatchers", lambda *args, **kwargs: {"fused": 1.0})
    auto = AutoDispatcher(Auto(), DIMS)
    for tokens in range(2, 9):
        assert auto.explain(torch.randn(tokens, D), best_of_random(tokens, E, K), glu()).startswith("fused")
    assert len(choices.chosen) <= 3


@pytest.mark.parametrize(
    ("capability", "dtype", "bank", "words"),
    [
        ((9, 0), torch.bfloat16, glu(), "grouped: torch has one kernel"),
        ((8, 0), torch.bfloat16, glu(), "triton: torch has no grouped product in torch.bfloat16 for 4 experts"),
        ((9, 0), torch.float16, glu(), "triton: torch has no grouped product in torch.float16"),
        ((7, 5), torch.float16, glu(), "grouped: 'fused' cannot: "),
        ((8, 0), torch.bfloat16, glu(bias=True), "grouped: GluExperts has no standard form"),
    ],
    ids=["H100", "A100", "fp16", "T4", "biases"],
)
def test_on_a_gpu_without_a_grouped_kernel_the_fixed_rule_takes_triton(
    capability: tuple[int, int], dtype: torch.dtype, bank: GluExperts, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is needed: the choice is made from static facts."""
    monkeypatch.setattr(gpus, "capability_of", lambda device: capability)
    monkeypatch.setattr(triton, "capability_of", lambda device: capability)
    auto = AutoDispatcher(Auto(choose="fixed"), DIMS)
    auto.triton.installed = True
    with FakeTensorMode():
        x_TD = torch.empty(T, D, device="cuda", dtype=dtype)
    assert auto.explain(x_TD, routing(), bank.to(dtype)).startswith(words)

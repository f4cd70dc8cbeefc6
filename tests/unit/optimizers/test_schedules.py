import importlib
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.registry import build
from moekit_optimizers.constant import Constant
from moekit_optimizers.cosine import Cosine
from moekit_optimizers.inverse_sqrt import InverseSqrt
from moekit_optimizers.phases import progress
from moekit_optimizers.stages import Stages
from moekit_optimizers.steps import Steps
from moekit_optimizers.wsd import WSD

warmups = st.integers(0, 50)
lengths = st.integers(1, 300)
shares = st.floats(0, 1)
examples = settings(max_examples=100, deadline=None)


def rates(spec, total):
    factor = build(spec, total)
    return [factor(step) for step in range(total)]


def test_progress_counts_the_kth_of_n_steps():
    assert [progress(step, 2, 4) for step in range(8)] == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [progress(step, 2, 0) for step in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Constant(warmup=4), [0.25, 0.5, 0.75, 1, 1, 1]),
        (Constant(), [1, 1, 1]),
        (Cosine(warmup=2, final=0.0), [0.5, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
        (Cosine(final=0.5), [0.75, 0.5]),
        (WSD(warmup=2, decay=0.4, final=0.2), [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
        (WSD(decay=0.0, final=0.2), [1, 1, 1]),
        (WSD(decay=1.0, final=0.0), [0.75, 0.5, 0.25, 0]),
        (WSD(warmup=3, decay=0.9, final=0.0), [1 / 3, 2 / 3, 1, 0.5, 0]),  # no decay within the warm-up
        (WSD(decay=0.01, final=0.1), [*[1] * 9, 0.1]),  # a short decay still ends on the final rate
        (InverseSqrt(warmup=4), [0.25, 0.5, 0.75, 1, *(math.sqrt(4 / k) for k in range(5, 10))]),
        (InverseSqrt(), [1, 1 / math.sqrt(2), 1 / math.sqrt(3), 0.5]),
        (Stages(), [1, 1, 1]),
        (Stages(warmup=2), [0.5, 1, 1]),
        (Stages(to=[0.0], shape=["linear"]), [0.75, 0.5, 0.25, 0]),
        (
            Stages(
                until=[0.2, 0.6, 0.8], to=[1.0, 0.2, 0.2, 0.1], shape=["constant", "cosine", "constant", "constant"]
            ),
            [1, 1, *(0.2 + 0.8 * (1 + math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3, 4)), 0.2, 0.2, 0.1, 0.1],
        ),
        (Stages(until=[0.5], to=[0.5, 1.0], shape=["linear", "linear"]), [0.75, 0.5, 0.75, 1]),
        (Stages(until=[0.5], to=[1.0, 0.5], shape=["constant"] * 2, warmup=4), [0.25, 0.5, 0.375, 0.5]),
        (Steps(), [*[1] * 8, 0.316, 0.316**2]),
        (Steps(warmup=2, at=[0.6, 0.9], gamma=0.5), [0.5, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
        (Steps(at=[]), [1, 1, 1]),
        (Steps(), [1]),  # too short a run for a fall
        (Steps(warmup=4, at=[0.5], gamma=0.5), [0.25, 0.5, 0.375, 0.5]),  # a fall within the warm-up
    ],
)
def test_the_rates_of_a_whole_run(spec, expected):
    assert rates(spec, len(expected)) == pytest.approx(expected, abs=1e-15)


def test_rates_long_after_the_warmup_and_the_falls():
    assert build(InverseSqrt(warmup=100), 1)(399) == pytest.approx(0.5)  # half the rate after four warm-ups
    assert build(Steps(), 10)(1000) == pytest.approx(0.1, rel=0.002)  # the paper's "10% of the maximum"


def test_inverse_sqrt_is_the_papers_min_of_two_lines_over_its_peak():
    dim, warmup = 512, 40
    paper = [dim**-0.5 * min(k**-0.5, k * warmup**-1.5) for k in range(1, 200)]
    assert rates(InverseSqrt(warmup=warmup), 199) == pytest.approx([r / (dim * warmup) ** -0.5 for r in paper])


@pytest.mark.parametrize("at", [[0.9, 0.8], [0.5, 0.5]])
def test_fractions_that_do_not_rise_are_refused(at):
    with pytest.raises(ValueError, match=r"must be rising fractions of training, such as \[0.8, 0.9\]"):
        Steps(at=at)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"to": [1.0, 0.1], "shape": ["constant", "cosine"]}, "until has 0 entries, to 2 and shape 2; n stages have n"),
        ({"to": [1.0, 0.1], "until": [0.5]}, "until has 1 entries, to 2 and shape 1"),
        (
            {"until": [0.9, 0.6], "to": [1.0] * 3, "shape": ["constant"] * 3},
            r"until=\[0.9, 0.6\] must be rising fractions of training",
        ),
        ({"shape": ["cosin"]}, "has cosin; the choices are constant, linear, cosine"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Stages(**wrong)


def test_a_schedule_of_stages_stays_at_its_last_rate_after_the_run():
    factor = build(Stages(until=[0.5], to=[1.0, 0.25], shape=["constant", "linear"]), 10)
    assert factor(9) == factor(10) == factor(1000) == 0.25


@examples
@given(warmups, lengths, shares)
def test_a_cosine_stage_of_a_whole_run_is_the_cosine_schedule(warmup, total, final):
    """Up to the warm-up, which the cosine schedule takes out of the run, and stages multiply."""
    assert rates(Stages(to=[final], shape=["cosine"]), total) == pytest.approx(rates(Cosine(final=final), total))


@pytest.mark.parametrize(
    "spec", [Constant(warmup=20), Cosine(warmup=20), WSD(warmup=20), InverseSqrt(warmup=20), Stages(warmup=20)]
)
def test_a_run_that_ends_within_the_warmup_only_rises(spec):
    assert rates(spec, 3) == [1 / 20, 2 / 20, 3 / 20]


@examples
@given(warmups, lengths, shares, shares)
def test_the_first_rate_is_above_0_and_all_are_at_most_1(warmup, total, decay, final):
    for spec in (
        Constant(warmup=warmup),
        Cosine(warmup=warmup, final=final),
        InverseSqrt(warmup=warmup),
        Steps(warmup=warmup),
        WSD(warmup=warmup, decay=decay),
    ):
        found = rates(spec, total)
        assert found[0] > 0 or total == 1
        assert all(0 <= rate <= 1 for rate in found)


@examples
@given(warmups, lengths, shares, shares)
def test_rise_then_fall_to_exactly_final(warmup, after, decay, final):
    total = warmup + after
    for spec in (Cosine(warmup=warmup, final=final), WSD(warmup=warmup, decay=decay, final=final)):
        found = rates(spec, total)
        rise, fall = found[:warmup], found[warmup:]
        assert rise == [(k + 1) / warmup for k in range(warmup)]
        assert all(a >= b for a, b in itertools.pairwise(fall))
        last = 1.0 if isinstance(spec, WSD) and decay == 0 else final
        assert found[-1] == last
        assert build(spec, total)(total + 7) == last


def test_a_schedule_depends_on_the_step_alone():
    factor = build(WSD(warmup=5), 50)
    assert [factor(s) for s in (30, 2, 49, 2)] == [factor(30), factor(2), factor(49), factor(2)]


@pytest.mark.parametrize("name", ["constant", "cosine", "inverse_sqrt", "stages", "steps", "wsd"])
def test_each_schedule_names_its_source(name):
    function = getattr(importlib.import_module(f"moekit_optimizers.{name}"), name)
    assert "*Source*" in function.__doc__
    assert "arXiv:" in function.__doc__


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(warmup=-1), r"warmup=-1 is out of range \(>= 0\)"),
        (lambda: Cosine(final=1.5), r"final=1.5 is out of range \(>= 0 and <= 1\)"),
        (lambda: Steps(at=[0.8, 1.0]), r"at=\[0.8, 1.0\] is out of range \(> 0 and < 1\)"),
        (lambda: WSD(decay=-0.1), r"decay=-0.1 is out of range \(>= 0 and <= 1\)"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

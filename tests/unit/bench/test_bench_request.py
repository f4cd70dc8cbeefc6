"""The options of a benchmark, and shapes: by name, by size, in series, and those that are too large for a CPU."""

from __future__ import annotations

from typing import Any

import pytest

from moekit.errors import MoekitError
from moekit_bench.request import (
    BENCHMARKS,
    FOR_CPU,
    FOR_GPU,
    SHAPES,
    BenchRequest,
    Shape,
    check_cpu_limits,
    parse_shape,
    select_shapes,
    series_of,
    shape_named,
    titled,
)

GB = 10**9


@pytest.mark.parametrize(
    ("what", "options", "said"),
    [
        ("step", {}, "step needs the name of a recipe or a file"),
        ("step", {"names": ("x",), "growth": "experts"}, "--growth is an option of layer and router and dispatch"),
        ("step", {"names": ("x",), "shapes": ("8,4,4,2,1",)}, "--shape is an option of"),
        ("step", {"names": ("x",), "dtype": "float64"}, "float32, or in bfloat16"),
        ("router", {"dispatchers": ("loop",)}, "--dispatchers is an option of layer and dispatch, not of router"),
        ("dispatch", {"against": ("transformers",)}, "--against is an option of layer and step, not of dispatch"),
        ("layer", {"routers": ("topk",)}, "--routers is an option of router, not of layer"),
        ("layer", {"rounds": 0}, "expected --rounds >= 1"),
        ("layer", {"warmup": 0}, "expected --rounds >= 1 and --warmup >= 1"),
        ("layer", {"threads": -1}, "expected --threads from 0"),
        ("layer", {"threads": 10**11}, "expected --threads from 0"),
        ("layer", {"tokens": 0}, "--tokens >= 1"),
    ],
)
def test_options_that_do_not_apply_or_are_out_of_range_are_rejected(
    what: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(MoekitError, match=said):
        BenchRequest(what=what, **options)


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(MoekitError, match=r"\A[^\n]*--growth is[^\n]*\n[^\n]*step needs[^\n]*\n[^\n]*--rounds[^\n]*\Z"):
        BenchRequest(what="step", growth="experts", rounds=0)


def test_options_of_a_benchmark_are_accepted_together() -> None:
    for what in BENCHMARKS:
        assert BenchRequest(what=what, names=("x",), memory=True, json=True).what == what
    assert BenchRequest(what="layer", growth="tokens", against=("transformers",), explain=True, tokens=1).rounds == 9


def test_named_shapes_have_their_documented_sizes() -> None:
    assert SHAPES["small"] == (512, 128, 256, 8, 2)
    assert SHAPES["fine"] == (4096, 512, 256, 64, 8)
    assert SHAPES["many"] == (4096, 512, 256, 256, 8)
    assert SHAPES["deepseek_v3"] == (16384, 7168, 2048, 256, 8)
    assert SHAPES["mixtral"] == (16384, 4096, 14336, 8, 2)
    assert {*FOR_CPU, *FOR_GPU} <= set(SHAPES)


def test_names_and_sizes_come_in_the_order_given() -> None:
    assert select_shapes(["tiny", "small"], ["8,4,4,2,1"], None, FOR_CPU) == {
        "tiny": SHAPES["tiny"],
        "small": SHAPES["small"],
        "8,4,4,2,1": Shape(8, 4, 4, 2, 1),
    }
    assert list(select_shapes([], [], None, ["base"])) == ["base"]
    assert list(select_shapes([], ["8,4,4,2,1"], None, ["base"])) == ["8,4,4,2,1"]


def test_tokens_replace_those_of_every_shape() -> None:
    assert {shape.T for shape in select_shapes(["small", "mixtral"], ["8,4,4,2,1"], 16, []).values()} == {16}


def test_an_unknown_shape_is_rejected_with_the_nearest_name() -> None:
    with pytest.raises(MoekitError, match=r"unknown shape 'smal'.*\n  did you mean 'small'"):
        shape_named("smal")


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,x", "0,4,4,2,1", "8,4,4,2,-1", "8,4,4,2,1,1"])
def test_a_malformed_shape_is_rejected(text: str) -> None:
    with pytest.raises(MoekitError, match="expected T,D,H,E,K"):
        parse_shape(text)


def test_a_shape_with_more_choices_than_experts_is_rejected() -> None:
    with pytest.raises(MoekitError, match="expected K <= E"):
        parse_shape("8,4,4,2,3")


def test_a_title_does_not_repeat_sizes_that_are_the_name() -> None:
    assert titled("small", SHAPES["small"]) == "small: 512 128 256 8 2"
    assert titled("8,4,4,2,1", Shape(8, 4, 4, 2, 1)) == "8 4 4 2 1"


def test_a_series_of_experts_keeps_all_other_sizes() -> None:
    series = series_of("fine", SHAPES["fine"], "experts")
    assert [shape.E for shape in series.values()] == [8, 16, 32, 64, 128, 256]
    assert len({shape._replace(E=0) for shape in series.values()}) == 1
    assert [shape.E for shape in series_of("x", Shape(8, 4, 4, 256, 20), "experts").values()] == [32, 64, 128, 256]


def test_a_series_of_tokens_ends_at_the_shape_itself() -> None:
    assert [shape.T for shape in series_of("fine", SHAPES["fine"], "tokens").values()] == [256, 512, 1024, 2048, 4096]
    assert [shape.T for shape in series_of("x", Shape(3, 4, 4, 2, 1), "tokens").values()] == [1, 3]


@pytest.mark.parametrize("name", FOR_CPU)
@pytest.mark.parametrize("what", ["layer", "dispatch", "router"])
def test_a_cpu_takes_the_shapes_for_cpus(what: str, name: str) -> None:
    check_cpu_limits(what, name, SHAPES[name], 4, memory=16 * GB)


@pytest.mark.parametrize("what", ["layer", "dispatch"])
def test_too_many_pairs_for_memory_are_rejected_with_a_number_of_tokens_that_fits(what: str) -> None:
    with pytest.raises(MoekitError, match=r"moving its tokens takes 15\.0 GB of 16\.0 GB\n.*--tokens 8192"):
        check_cpu_limits(what, "deepseek_v3", SHAPES["deepseek_v3"], 4, memory=16 * GB)
    check_cpu_limits("dispatch", "deepseek_v3", SHAPES["deepseek_v3"]._replace(T=8192), 4, memory=16 * GB)


@pytest.mark.parametrize("tokens", [10**11, 10**25])
def test_too_many_scores_for_memory_are_rejected_with_a_number_of_tokens_that_fits(tokens: int) -> None:
    with pytest.raises(MoekitError, match=r"tokens and scores take .* of 16\.0 GB\n.*--tokens 2097152"):
        check_cpu_limits("router", "small", SHAPES["small"]._replace(T=tokens), 4, memory=16 * GB)
    check_cpu_limits("router", "small", SHAPES["small"]._replace(T=2097152), 4, memory=16 * GB)


def test_too_large_weights_are_rejected_with_a_shape_that_fits() -> None:
    small = SHAPES["deepseek_v3"]._replace(T=256)
    with pytest.raises(MoekitError, match=r"too large for a CPU.*90\.2 GB of 16\.0 GB\n.*--shape 256,7168,2048,8,8"):
        check_cpu_limits("layer", "deepseek_v3", small, 4, memory=16 * GB)


def test_too_many_multiply_adds_are_rejected_with_a_number_of_tokens_that_is_quick_enough() -> None:
    with pytest.raises(MoekitError, match=r"too much work for a CPU: .*\n  use --device cuda, .*--tokens 256"):
        check_cpu_limits("layer", "mixtral", SHAPES["mixtral"], 4, memory=64 * GB)
    check_cpu_limits("layer", "mixtral", SHAPES["mixtral"]._replace(T=256), 4, memory=64 * GB)


def test_a_series_of_experts_needs_an_e_of_at_least_k() -> None:
    with pytest.raises(MoekitError, match="shape wide has K=299, more than the series' E=256 experts"):
        series_of("wide", Shape(8, 8, 8, 300, 299), "experts")

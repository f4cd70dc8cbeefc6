"""Shapes by name, written out, in series; and those that are too much for a CPU."""

from __future__ import annotations

import pytest

from moekit.bench.shapes import (
    FOR_CPU,
    FOR_GPU,
    SHAPES,
    Shape,
    chosen,
    grown,
    named,
    parsed,
    refuse_on_cpu,
    refuse_to_choose,
    refuse_to_move,
    titled,
)
from moekit.errors import MoekitError

GB = 10**9


def test_the_shapes_by_name() -> None:
    assert SHAPES["small"] == (512, 128, 256, 8, 2)
    assert SHAPES["fine"] == (4096, 512, 256, 64, 8)
    assert SHAPES["many"] == (4096, 512, 256, 256, 8)
    assert SHAPES["deepseek_v3"] == (16384, 7168, 2048, 256, 8)
    assert SHAPES["mixtral"] == (16384, 4096, 14336, 8, 2)
    assert {*FOR_CPU, *FOR_GPU} <= set(SHAPES)


def test_names_and_sizes_come_in_the_order_given() -> None:
    assert chosen(["tiny", "small"], ["8,4,4,2,1"], None, FOR_CPU) == {
        "tiny": SHAPES["tiny"],
        "small": SHAPES["small"],
        "8,4,4,2,1": Shape(8, 4, 4, 2, 1),
    }
    assert list(chosen([], [], None, ["base"])) == ["base"]
    assert list(chosen([], ["8,4,4,2,1"], None, ["base"])) == ["8,4,4,2,1"]


def test_tokens_replace_those_of_every_shape() -> None:
    assert {shape.T for shape in chosen(["small", "mixtral"], ["8,4,4,2,1"], 16, []).values()} == {16}


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(MoekitError, match=r"unknown shape 'smal'.*\n  did you mean 'small'"):
        named("smal")


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,x", "0,4,4,2,1", "8,4,4,2,-1", "8,4,4,2,1,1"])
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(MoekitError, match="expected T,D,H,E,K"):
        parsed(text)


def test_no_more_experts_a_token_than_there_are() -> None:
    with pytest.raises(MoekitError, match="expected K <= E"):
        parsed("8,4,4,2,3")


def test_a_shape_is_told_once() -> None:
    assert titled("small", SHAPES["small"]) == "small: 512 128 256 8 2"
    assert titled("8,4,4,2,1", Shape(8, 4, 4, 2, 1)) == "8 4 4 2 1"


def test_experts_grow_at_equal_work() -> None:
    series = grown("fine", SHAPES["fine"], "experts")
    assert [shape.E for shape in series.values()] == [8, 16, 32, 64, 128, 256]
    assert len({shape._replace(E=0) for shape in series.values()}) == 1
    assert [shape.E for shape in grown("x", Shape(8, 4, 4, 256, 20), "experts").values()] == [32, 64, 128, 256]


def test_tokens_grow_to_all() -> None:
    assert [shape.T for shape in grown("fine", SHAPES["fine"], "tokens").values()] == [256, 512, 1024, 2048, 4096]
    assert [shape.T for shape in grown("x", Shape(3, 4, 4, 2, 1), "tokens").values()] == [1, 3]


@pytest.mark.parametrize("name", FOR_CPU)
def test_a_cpu_takes_its_own_shapes(name: str) -> None:
    refuse_on_cpu(name, SHAPES[name], 4, memory=16 * GB)
    refuse_to_move(name, SHAPES[name], 4, memory=16 * GB)


def test_what_cannot_be_moved_is_refused_with_a_number_of_tokens_that_can() -> None:
    with pytest.raises(MoekitError, match=r"moving its tokens takes 15\.0 GB of 16\.0 GB\n.*--tokens 8192"):
        refuse_to_move("deepseek_v3", SHAPES["deepseek_v3"], 4, memory=16 * GB)
    refuse_to_move("deepseek_v3", SHAPES["deepseek_v3"]._replace(T=8192), 4, memory=16 * GB)


@pytest.mark.parametrize("tokens", [10**11, 10**25])
def test_what_cannot_be_scored_is_refused(tokens: int) -> None:
    with pytest.raises(MoekitError, match=r"tokens and scores take .* of 16\.0 GB\n.*--tokens 2097152"):
        refuse_to_choose("small", SHAPES["small"]._replace(T=tokens), memory=16 * GB)
    refuse_to_choose("small", SHAPES["small"]._replace(T=2097152), memory=16 * GB)
    for name in FOR_CPU:
        refuse_to_choose(name, SHAPES[name], memory=16 * GB)


def test_a_series_without_a_shape_is_refused() -> None:
    with pytest.raises(MoekitError, match="asks for K=299 of at most E=256 experts"):
        grown("wide", Shape(8, 8, 8, 300, 299), "experts")


def test_what_is_too_large_is_refused_by_its_weights() -> None:
    with pytest.raises(MoekitError, match=r"too large for a CPU.*90\.2 GB of 16\.0 GB"):
        refuse_on_cpu("deepseek_v3", SHAPES["deepseek_v3"], 4, memory=16 * GB)


def test_what_is_too_much_work_is_refused_with_a_number_of_tokens_that_is_not() -> None:
    with pytest.raises(MoekitError, match="--tokens 256") as refusal:
        refuse_on_cpu("mixtral", SHAPES["mixtral"], 4, memory=64 * GB)
    assert "use --device cuda" in str(refusal.value)
    refuse_on_cpu("mixtral", SHAPES["mixtral"]._replace(T=256), 4, memory=64 * GB)

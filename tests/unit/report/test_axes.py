"""Values and ranges of a sweep."""

from __future__ import annotations

from moekit_report.axes import Range, split


def test_a_range_is_two_numbers() -> None:
    assert Range.of("8..64") == Range(low=8, high=64, is_whole=True)
    assert Range.of("0.1..0.5") == Range(low=0.1, high=0.5, is_whole=False)
    assert Range.of("1e-4..1e-2") == Range(low=1e-4, high=1e-2, is_whole=False)
    assert Range.of("a..b") is None and Range.of("3") is None
    assert Range(low=1e-4, high=1e-2, is_whole=False).text(0.00123456) == "0.001235"


def test_a_comma_inside_brackets_does_not_divide() -> None:
    assert split("[a,b],{use: topk, top_k: 2},'x,y',3") == ["[a,b]", "{use: topk, top_k: 2}", "'x,y'", "3"]

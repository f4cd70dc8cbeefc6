"""``moekit generate`` checks its options before it looks for a run."""

from __future__ import annotations

import pytest

from moekit.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tokens", "-1"], "expected --tokens >= 0"),
        (["--temperature", "-0.5"], "a finite --temperature >= 0"),
        (["--temperature", "nan"], "a finite --temperature >= 0"),
        (["--temperature", "inf"], "a finite --temperature >= 0"),
        (["--top-p", "nan"], "0 < --top-p <= 1"),
        (["--seed", "-1"], "--seed -1 is out of range\n  expected 0 <= --seed < 2**63"),
        (["--seed", str(2**63)], "is out of range\n  expected 0 <= --seed < 2**63"),
    ],
)
def test_a_number_out_of_range_is_reported(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "nothing", "x", *words]) == 2
    assert said in capsys.readouterr().err

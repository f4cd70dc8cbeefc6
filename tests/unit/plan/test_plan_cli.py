"""``moekit plan``: mistakes are reported before anything is built."""

from __future__ import annotations

import json

import pytest

from moekit.cli import main
from moekit_optimizers.adafactor import Adafactor

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices", "0"], "devices=0 is out of range\n  expected at least 1"),
        (
            ["--devices", "4", "--ep", "3"],
            "ep=3 does not divide 4 devices and 64 experts evenly\n  expected one of 1, 2",
        ),
        (["--devices", "4", "--ep", "1,x"], "invalid --ep '1,x'\n  expected whole numbers, such as 1,2,4"),
        (["--devices", "4", "--ep", ","], "invalid --ep ','"),
        (["--devices", "4", "--precision", "bf17-mixed"], "did you mean 'bf16-mixed'?"),
        (["--devices", "4", "--recompute", "block"], "did you mean 'blocks'?"),
        (["--devices", "4", "trainer.precision=bf17-mixed"], "at trainer.precision  in command line"),
        (["--devices", "4", "trainer.accumulate_grad_batches=two"], "accumulate_grad_batches: 'two' is not an integer"),
        (["--devices", "4", "--device-memory", "nan"], "--device-memory nan is out of range"),
        (["--devices", "4", "--device-memory", "inf"], "--device-memory inf is out of range"),
        (["--devices", "4", "--device-memory", "-3"], "--device-memory -3 is out of range"),
        (["--devices", "4", "--device-memory", "1e300"], "--device-memory 1e+300 is out of range"),
        (["glam", "--devices", "4"], "expected one name, then key=value, got deepseek_v3, glam"),
    ],
)
def test_mistakes_are_reported_with_what_is_expected(words: list[str], said: str, capsys: Captured) -> None:
    assert main(["plan", "deepseek_v3", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_short_name_of_a_precision_is_accepted(capsys: Captured) -> None:
    assert main(["plan", "jacobs1991", "--devices", "2", "--precision", "bf16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["request"]["precision"] == "bf16-mixed"


def test_an_optimizer_that_is_rejected_in_shards_is_reported(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    adafactor = ["plan", "jacobs1991", "optimizer={use: adafactor}", "--devices"]
    assert main([*adafactor, "2"]) == 0
    assert "rejects" not in capsys.readouterr().out
    monkeypatch.setattr(Adafactor, "takes_shards", False)
    assert main([*adafactor, "2"]) == 0
    assert "optimizer 'adafactor' needs unsharded tensors, so sharded training rejects it" in capsys.readouterr().out
    assert main([*adafactor, "1"]) == 0
    assert "rejects" not in capsys.readouterr().out

"""``moekit bench``, from the command line to tables and JSON, on tiny shapes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from moekit.cli import main
from moekit_bench import run as bench_run
from moekit_bench.stopwatch import TIMED

Captured = pytest.CaptureFixture[str]
QUICK = ["--rounds", "2", "--warmup", "1", "--threads", "1", "--device", "cpu"]
TINY = ["--shape", "16,8,8,8,4"]
RECIPE = ["deepseek_v3", "model.dim=16", "model.depth=2", "model.mtp=null", "data.seq=8", "data.batch=2"]
RECIPE += ["data.domains=[python]", "data.megabytes=0.05", "model.ffn.hidden=16", "model.moe.experts.hidden=8"]


def plain(capsys: Captured, *words: str) -> dict[str, Any]:
    assert main(["bench", *words, *QUICK, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["what"] == words[0]
    assert (found["rounds"], found["warmup"]) == (2, 1)
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == 1
    return found


def test_a_layer_is_printed_as_json(capsys: Captured) -> None:
    (found,) = plain(capsys, "layer", *TINY, "--dispatchers", "loop", "--memory")["results"]
    assert found["sizes"] == {"T": 16, "D": 8, "H": 8, "E": 8, "K": 4}
    assert found["multiply_adds"] == {"sparse": 3 * 16 * 4 * 8 * 8, "dense": 3 * 16 * 4 * 8 * 8}
    assert found["input_bytes"] == 4 * 16 * 8
    assert [row["name"] for row in found["rows"]] == ["dense", "plain", "loop"]
    for row in found["rows"]:
        assert len(row["seconds"]["forward"]) == len(row["seconds"]["backward"]) == 2
        assert row["saved"]["bytes"] == sum(size for *_, size in row["saved"]["tensors"])
        assert row["ms"] > 0


def test_layers_are_printed_as_tables_with_a_summary(capsys: Captured) -> None:
    assert main(["bench", "layer", *TINY, "--shape", "8,8,8,8,4", "--dispatchers", "loop", "--memory", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "16 8 8 8 4" in out and "8 8 8 8 4" in out
    assert "multiply-adds of one forward pass, sparse: 12,288" in out
    assert "T·D + T·K·2H" in out
    assert "÷ dense: best rounds (median of the rounds)" in out
    assert f"torch {torch.__version__}" in out.splitlines()[-1]
    assert "2 rounds after 1 round of warm-up" in out.splitlines()[-1]
    assert err.splitlines() == ["layer 16,8,8,8,4: 16 8 8 8 4", "layer 8,8,8,8,4: 8 8 8 8 4"]


@pytest.mark.parametrize(
    ("by", "letter", "sizes"), [("experts", "E", [8, 16, 32, 64, 128, 256]), ("tokens", "T", [1, 2, 4, 8, 16])]
)
def test_growth_measures_a_series_of_shapes(by: str, letter: str, sizes: list[int], capsys: Captured) -> None:
    results = plain(capsys, "dispatch", *TINY, "--dispatchers", "loop", "--growth", by)["results"]
    assert [found["sizes"][letter] for found in results] == sizes


def test_routers_are_measured_against_plain(capsys: Captured) -> None:
    (found,) = plain(capsys, "router", "small", "--tokens", "16", "--routers", "topk,dense")["results"]
    assert found["baseline"] == "plain"
    assert [row["name"] for row in found["rows"]] == ["plain", "topk", "dense"]
    assert found["sizes"]["T"] == 16


def test_a_reason_for_skipping_is_printed_once(capsys: Captured) -> None:
    assert main(["bench", "dispatch", *TINY, "--shape", "8,8,8,8,4", *QUICK]) == 0
    assert capsys.readouterr().out.count("skipped: soft") == 1


def test_a_step_is_printed_as_json(capsys: Captured) -> None:
    (found,) = plain(capsys, "step", *RECIPE, "--memory")["results"]
    mixture, dense = found["rows"]
    assert [mixture["name"], dense["name"]] == ["mixture", "dense"]
    assert dense["ratio"]["best"] == 1.0
    for row in (mixture, dense):
        assert set(row["parts"]) == {*TIMED, "lightning"}
        always = set(row["parts"]) - {"balance", "logging"}
        assert all(row["parts"][part] > 0 for part in always)
        assert row["parts"]["logging"] == 0
        assert row["logging_ms"] > 0
        assert row["log_every"] >= 1
        assert 0 < row["outside"] < 1
        assert len(row["seconds"]) == 2
        assert row["saved"]["bytes"] > 0
        assert row["peak"] is None
    assert mixture["parts"]["balance"] > 0


def test_a_step_of_a_model_without_a_dense_baseline_is_printed_as_a_table(capsys: Captured) -> None:
    assert main(["bench", "step", "jacobs1991", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "one training step of jacobs1991" in out
    assert "this model has no dense baseline to compare with" in out
    assert "outside model, objective and optimizer" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["layer", "smal"], "did you mean 'small'"),
        (["layer", "mixtral"], "for a CPU"),
        (["layer", "deepseek_v3"], "for a CPU"),
        (["router", "small", "--tokens", "9" * 20], "too large for a CPU"),
        (["layer", "--shape", "8,4"], "expected T,D,H,E,K"),
        (["layer", "small", "--against", "missing"], "unknown library"),
        (["layer", *TINY, "--explain", "--dispatchers", "loop"], "chooses for itself"),
        (["layer", *TINY, "--dispatchers", "missing"], "unknown dispatcher 'missing'"),
        (["dispatch", *TINY, "--dispatchers", "missing"], "  in --dispatchers missing"),
        (["router", *TINY, "--routers", "missing"], "unknown router 'missing'"),
        (["step", "missing"], "missing"),
        (["step"], "step needs the name of a recipe"),
        (["step", "switch-c"], "a recipe without data cannot be trained"),
        (["step", *RECIPE, "--against", "st_moe_pytorch"], "unknown library"),
        (["router", "small", "--against", "transformers"], "--against is an option of layer and step"),
    ],
)
def test_mistakes_are_reported_before_anything_is_measured(words: list[str], said: str, capsys: Captured) -> None:
    assert main(["bench", *words, *QUICK]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.startswith("error: ") and not out


def test_a_missing_gpu_is_reported_and_the_cpu_is_the_default(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "layer", *TINY, "--device", "cuda"]) == 2
    assert "this torch sees no GPU" in capsys.readouterr().err
    assert bench_run.device_of("") == "cpu"

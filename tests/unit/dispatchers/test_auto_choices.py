"""Times of dispatchers that are kept: those of a run first, then the first measurement of any process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import moekit
from moekit_dispatchers.auto.choices import Choices, user_file

TIMES = {"fused": 1.0, "textbook": 2.0}
OTHER = {"fused": 2.0, "textbook": 1.0}


def test_the_first_measurement_of_several_processes_counts(tmp_path: Path) -> None:
    first, second = (Choices(tmp_path / "new" / "file.json") for _ in range(2))
    assert first.get("cpu", "small") is None
    assert first.put("cpu", "small", TIMES) == TIMES
    assert second.put("cpu", "small", OTHER) == TIMES == second.get("cpu", "small")
    assert second.get("another cpu", "small") is second.get("cpu", "large") is None


def test_a_run_keeps_what_it_used_and_reads_its_own_file_first(tmp_path: Path) -> None:
    choices = Choices(tmp_path / "user.json")
    choices.follow(tmp_path / "run.json")
    choices.put("cpu", "small", TIMES)
    elsewhere = Choices(tmp_path / "user_of_another_home.json")
    elsewhere.put("cpu", "small", OTHER)
    elsewhere.follow(tmp_path / "run.json")
    assert elsewhere.get("cpu", "small") == TIMES
    elsewhere.follow(None)
    assert elsewhere.get("cpu", "small") == OTHER


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "null", "[" * 99_999, '{"cpu": 3}', '{"cpu": {"small": {"a": "fast"}}}', '{"cpu": {"small": {}}}'],
    ids=["empty", "cut", "list", "null", "deep", "no sizes", "text", "no times"],
)  # fmt: skip
def test_a_damaged_file_is_begun_again(text: str, tmp_path: Path) -> None:
    file = tmp_path / "dispatchers.json"
    file.write_text(text)
    choices = Choices(file)
    assert choices.get("cpu", "small") is None
    choices.put("cpu", "small", TIMES)
    assert json.loads(file.read_text())["cpu"]["small"] == TIMES


def test_a_file_that_cannot_be_written_costs_nothing_but_the_time_to_measure_again(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    choices = Choices(tmp_path / "file" / "dispatchers.json")
    assert choices.put("cpu", "small", TIMES) == TIMES == choices.get("cpu", "small")


def test_the_user_s_file_is_in_a_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOEKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    assert user_file() == Path("/home/ada/.cache/moekit/dispatchers.json")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert user_file() == Path("/scratch/moekit/dispatchers.json")
    monkeypatch.setenv("MOEKIT_CACHE", "/own")
    assert user_file() == Path("/own/dispatchers.json")


def test_a_run_resumes_with_the_choices_of_its_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOEKIT_AUTO")
    options = [
        "trainer.max_steps=1",
        "data.seq=16",
        "data.batch=2",
        "data.megabytes=0.1",
        "trainer.accelerator=cpu",
        "model.depth=2",
    ]
    run = moekit.train("deepseek_v3", options, out=tmp_path, compare=False, quiet=True)
    file = run.path / "dispatchers.json"
    used = json.loads(file.read_text())
    machine, sizes = next(iter(used.items()))
    slowed = {size: {name: 1.0 + (name != "grouped") for name in times} for size, times in sizes.items()}
    file.write_text(json.dumps({machine: slowed}))
    moekit.train(resume=run.path, overrides=["trainer.max_steps=2"], quiet=True)
    assert json.loads(file.read_text()) == {machine: slowed}

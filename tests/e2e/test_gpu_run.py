"""``benchmarks/gpu.sh``: what a run on a card would write, rehearsed on a CPU; no part stops another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import measured
import pytest
from gpu import tables
from gpu.__main__ import MINUTES, PARTS
from gpu.case import Where
from gpu.runner import Part, run_parts

TOP = Path(__file__).parents[2]
HEAD = "import os, time\nfrom gpu.case import Case, Result\ndef nothing():\n    return Result(figures={'n': 1})\n"
MODULES = {
    "raising": "def bad():\n    raise ValueError('of no use')\ndef cases(where):\n"
    "    yield Case(name='a', run=bad)\n    yield Case(name='b', run=lambda: Result(ok=True))\n",
    "dying": "def cases(where):\n    yield Case(name='a', run=nothing)\n    yield Case(name='b', run=os.abort)\n"
    "    yield Case(name='c', run=nothing)\n",
    "slow": "def cases(where):\n    yield Case(name='a', run=nothing)\n"
    "    yield Case(name='b', run=lambda: time.sleep(600))\n",
    "unimportable": "import no_such_module\n",
    "good": "def cases(where):\n    yield Case(name='a', run=lambda: Result(ok=True, note=where.device))\n",
}


GUARDS = {
    "grouped, bf16, 1,023 experts", "grouped, bf16, 1,024 experts", "triton, bf16, 1,024 experts",
    "grouped products of rows that lie column by column", "grouped products of rows that start at eight bytes",
    "weight gradients of idle experts are 0", "the default precision is one that the card computes in itself",
    "tests without -m gpu see no card", "a translation model is evaluated on the device that trained it",
    "two deterministic runs are equal to the last bit", "saves pin no more than one buffer",
    "16-mixed", "32-true, sharded",
}  # fmt: skip
"""What was once wrong on GPUs by the sources of torch, and only a card can show."""


def parts_of(results: Path) -> dict[str, Any]:
    found = json.loads(results.read_text())
    return {part["name"]: part for part in found["parts"]}


def verdicts(part: dict[str, Any]) -> dict[str, bool | None]:
    return {case["name"]: case["ok"] for case in part["cases"]}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output file; the modules can be imported by the processes of parts."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(HEAD + text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(TOP / "benchmarks")]))
    return tmp_path / "gpu.json"


def test_a_broken_part_is_reported_and_does_not_stop_the_others(results: Path) -> None:
    parts = [Part(module=name, title=name, limit=3 if name == "slow" else 60) for name in MODULES]
    said: list[str] = []
    assert not run_parts(parts, Where(device="cpu"), results, seconds=600, say=said.append)
    found = parts_of(results)
    assert {name: found[name]["ended"] for name in MODULES} == {
        "raising": "complete", "dying": "complete", "slow": "out of time",
        "unimportable": "ended with 1 before its first case", "good": "complete",
    }  # fmt: skip
    assert verdicts(found["raising"]) == {"a": False, "b": True}
    assert "ValueError at" in found["raising"]["cases"][0]["note"] and "of no use" in said[1]
    assert verdicts(found["dying"]) == {"a": None, "b": False, "c": None}, "another process continues after the case"
    assert found["dying"]["cases"][1]["note"] == "ended its process with -6"
    assert verdicts(found["slow"]) == {"a": None, "b": False} and found["slow"]["seconds"] < 60
    assert found["slow"]["cases"][1]["note"] == "took too long"
    assert "no_such_module" in found["unimportable"]["log"]
    assert found["good"]["cases"][0]["note"] == "cpu"


def test_what_is_known_is_in_the_file_at_once_and_no_part_starts_without_time(results: Path) -> None:
    seen: list[dict[str, bool | None]] = []

    def say(line: str) -> None:
        if results.exists():
            dying = parts_of(results)["dying"]
            assert dying["ended"] == "running" or line.startswith("==")
            seen.append(verdicts(dying))

    parts = [Part(module="dying", title="", limit=60), Part(module="good", title="", limit=60)]
    ends = run_parts(parts[:1], Where(device="cpu"), results, seconds=60, say=say)
    assert not ends and {"a": None} in seen and {"a": None, "b": False} in seen
    assert not run_parts(parts[1:], Where(device="cpu"), results, seconds=0.5, say=str)
    assert parts_of(results)["good"]["ended"] == "not started"


def test_all_parts_together_stay_within_nine_minutes() -> None:
    assert sum(part.limit for part in PARTS) <= 60 * MINUTES <= 540


def test_the_results_of_a_card_become_tables_that_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"card": "CARD 80GB", "processor": "CPU", "cores": 16, "CUDA": "13.0", "triton": "3.9", "torch": "2.13"}
    row = {"variant": "triton", "ms": 1.5, "ratio": 1.25, "median": 1.3, "low": 1.2, "high": 1.4, "peak MiB": 7}
    found = {
        "rehearsal": False,
        "started": "2026-01-02 03:04",
        "parts": [
            {"name": "machine", "title": "the card", "ended": "complete", "seconds": 3.0,
             "cases": [{"name": "machine", "ok": None, "note": "", "figures": about}]},
            {"name": "layers", "title": "layers", "ended": "out of time", "seconds": 90.0,
             "cases": [{"name": "olmoe", "ok": False, "note": "loop {differs}", "figures": {"rows": [row]}}]},
        ],
    }  # fmt: skip
    page, results = tmp_path / "page.md", tmp_path / "gpu.json"
    page.write_text("a\n<!-- results of benchmarks/gpu.sh -->\nNone.\n<!-- end of results -->\nb\n")
    results.write_text(json.dumps(found))
    monkeypatch.setattr(tables, "PAGE", page)
    monkeypatch.setattr(measured, "PAGES", (page,))
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "measured")
    tables.publish(results)
    text = page.read_text()
    assert "| olmoe | `triton` | 1.50 | 1.25 | 1.30 (1.20 to 1.40) | 7 |" in text
    assert "| layers | out of time | 90 | 1 | 0 | 0 |" in text
    assert "Failed: layers, olmoe: loop {differs}" in text and "None." not in text
    where = "Measured 2026-01-02 by `benchmarks/gpu.sh`: CPU (16 cores), CARD 80GB, CUDA 13.0, triton 3.9; torch 2.13,"
    assert where in " ".join(text.split())
    tables.publish(results)
    assert page.read_text() == text
    results.write_text(json.dumps(found | {"rehearsal": True}))
    with pytest.raises(ValueError, match="is of a rehearsal"):
        tables.publish(results)


@pytest.mark.slow
def test_a_rehearsal_gives_a_result_for_every_part(tmp_path: Path) -> None:
    results = tmp_path / "gpu.json"
    command = ["sh", str(TOP / "benchmarks" / "gpu.sh"), "--rehearse", "--out", str(results)]
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    found = parts_of(results)
    assert [*found] == [part.name for part in PARTS]
    for name, part in found.items():
        assert part["ended"] == "complete" and part["cases"], name
        assert all(case["ok"] is True or case["figures"] or case["note"] for case in part["cases"]), name
    named = {case["name"] for part in found.values() for case in part["cases"]}
    assert named >= GUARDS
    compared = [case for case in found["layers"]["cases"] if "rows" in case["figures"]]
    installed = [case["name"] for case in found["layers"]["cases"] if case["note"] == "installed"]
    for case in compared:
        variants = " ".join(row["variant"] for row in case["figures"]["rows"])
        assert all(name in variants for name in ("plain", "grouped", "triton", "auto", *installed)), case["note"]
    skipped = [case["name"] for part in found.values() for case in part["cases"] if case["note"].startswith("skipped")]
    assert "16-mixed" in skipped and "saves pin no more than one buffer" in skipped
    made = tables.tables(json.loads(results.read_text()))
    assert {*made} == {f"gpu_{name}" for name in ("checks", "dispatchers", "layers", "olmoe", "training", "reads")}
    assert all(measured.text(table) for table in made.values())

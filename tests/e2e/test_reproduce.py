"""``moekit reproduce``: one paper in its quick form; all of them; and kill -9 at any time."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from moekit.cli import main
from moekit.registry import current


def row(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "quick" / "ledger" / f"{name}.json").read_text())
    return found


def values(found: dict[str, Any]) -> tuple[Any, Any]:
    """What must be equal in two runs: everything but times."""
    return found["claims"], found["arms"]


def test_the_quick_form_of_1991_ends_in_a_ledger_with_pictures(tmp_path: Path) -> None:
    assert main(["reproduce", "jacobs1991", "--quick", "--out", str(tmp_path)]) == 0
    found = row(tmp_path, "jacobs1991")
    assert len(found["claims"]) == 7 and len(found["arms"]) == 6
    assert found["arms"][0]["values"]["total"] == [24.0, 24.0]
    assert found["pictures"] == ["images/ledger-jacobs1991.png", "images/jacobs1991-vowels.png"]
    for picture in found["pictures"]:
        assert (tmp_path / "quick" / picture).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_quick_form_of_every_paper_ends(tmp_path: Path) -> None:
    assert main(["reproduce", "--all", "--quick", "--out", str(tmp_path)]) == 0
    names = {claim.name for claim in current().components("claim") if claim.plugin == "reproduce"}
    page = (tmp_path / "quick" / "ledger.md").read_text()
    for name in names:
        found = row(tmp_path, name)
        assert found["title"] in page and found["seeds"] == 2
        for arm in found["arms"]:
            assert all(len(numbers) == 2 for numbers in (arm["values"]["work"], arm["values"]["executed"]))


@pytest.mark.slow
def test_a_command_that_is_killed_again_and_again_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moekit", "reproduce", "deepseek_moe", "--quick", "steps=30", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    killed, chance = 0, random.Random(0)
    out = tmp_path / "killed"
    while True:
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=chance.uniform(3, 9) + 2 * killed)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    assert process.returncode == 0 and killed >= 1
    assert values(row(out, "deepseek_moe")) == values(row(tmp_path / "whole", "deepseek_moe"))
    left = list((out / "quick" / "measurements" / "deepseek_moe").iterdir())
    assert len(left) == 6 and not any(path.name.startswith(".") for path in left)


@pytest.mark.slow
def test_ctrl_c_ends_a_run_at_once_and_keeps_nothing_half_trained(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moekit", "reproduce", "switch", "steps=100000", "tune=false"]
    process = subprocess.Popen([*command, "--out", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    time.sleep(25)  # importing torch, reading the text, some steps
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in said
    assert list((tmp_path / "measurements" / "switch").iterdir()) == []

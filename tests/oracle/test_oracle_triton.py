"""The triton dispatcher equals the loop: on a CPU in Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from devices import on_a_card

CASES = Path(__file__).with_name("triton_cases.py")


def run_cases(which: str, **environment: str) -> None:
    """Runs the cases of some marks in a process of their own, with ``triton`` imported anew."""
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-m", which, str(CASES)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, cwd=CASES.parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[100%]" in done.stdout


def test_triton_equals_the_loop_in_the_interpreter() -> None:
    run_cases("not slow", TRITON_INTERPRET="1", MOEKIT_TRITON_DEVICE="cpu")


@pytest.mark.slow
def test_triton_equals_the_loop_in_the_slower_cases() -> None:
    run_cases("slow", TRITON_INTERPRET="1", MOEKIT_TRITON_DEVICE="cpu")


@on_a_card
def test_triton_equals_the_loop_on_a_gpu(card: str) -> None:
    if card == "cpu":
        pytest.skip("a rehearsal has its interpreter, which the other suites run")
    assert torch.cuda.is_available(), "this test is for machines with a GPU"
    run_cases("", TRITON_INTERPRET="0", MOEKIT_TRITON_DEVICE=card)

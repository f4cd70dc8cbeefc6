"""Resuming bit for bit, and stopping all ranks together, on a machine with far more to do than it can.

Several pytest processes for every core repeat the tests of these promises. Every second one has more threads than
cores, and each fills new memory with other bytes, so that reading it before it is written would show. What a failure
leaves stays next to the log that it names: checkpoints, and the tensors that differ (``different.pt``).

``MOEKIT_ATTACK_ROUNDS`` multiplies the number of rounds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
RESUME = ("unit/training/test_module.py", "bit_for_bit", 4, 10)  # processes for every core, rounds
STOP = ("e2e/test_interrupted_ranks.py", "a_signal", 2, 1)
REPEAT = """\
import sys, pytest, torch
folder, rounds, threads, file, which = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
class Threads:
    def pytest_runtest_setup(self):
        torch.set_num_threads(threads)
for n in range(rounds):
    options = ["-n", "0", "-m", "slow or not slow", "-p", "no:cacheprovider", "--basetemp", f"{folder}/{n}"]
    if code := pytest.main([file, "-k", which, *options], plugins=[Threads()]):
        sys.exit(int(code))
"""


@pytest.mark.parametrize(("file", "which", "processes", "rounds"), [RESUME, STOP], ids=["resume", "stop"])
def test_a_promise_holds_on_a_busy_machine(file: str, which: str, processes: int, rounds: int, tmp_path: Path) -> None:
    cores = os.cpu_count() or 1
    rounds *= int(os.environ.get("MOEKIT_ATTACK_ROUNDS", "1"))
    logs = [tmp_path / f"{n}.log" for n in range(processes * cores)]
    started = []
    try:
        for n, log in enumerate(logs):
            (folder := tmp_path / str(n)).mkdir()
            threads = 1 if n % 2 else 2 * cores
            what = [str(folder), str(rounds), str(threads), str(TESTS / file), which]
            env = {**os.environ, "MALLOC_PERTURB_": str(n * 37 % 256), "PYTHONFAULTHANDLER": "1"}
            with log.open("w") as out:
                command = [sys.executable, "-c", REPEAT, *what]
                started.append(subprocess.Popen(command, cwd=TESTS.parent, env=env, stdout=out, stderr=out))
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.kill()
    failed = {str(log): (code, log.read_text()[-3000:]) for log, code in zip(logs, codes, strict=True) if code}
    assert failed == {}
    assert [log.read_text().count(" passed") for log in logs] == [rounds] * len(logs)  # each round ran its tests

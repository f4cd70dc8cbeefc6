"""The start-up time of commands, divided by the least time that they could take.

    python benchmarks/startup.py
    python benchmarks/startup.py --docs    # also writes the table of docs/measurements.md

Both are processor times of whole processes, measured alternately, the best of several runs, so that a busy machine
slows both alike. ``tests/e2e/test_startup.py`` limits what a command imports and does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence

import measured

PASS = (sys.executable, "-c", "pass")
FLOOR = (sys.executable, "-c", 'import pluggy, omegaconf, importlib.metadata as m; m.entry_points(group="moekit")')
SCRIPT = shutil.which("moekit", path=sysconfig.get_path("scripts")) or "moekit"


def seconds(command: Sequence[str], env: Mapping[str, str]) -> float:
    """Processor seconds of one process."""
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere, stderr=subprocess.PIPE, env=env)
        assert process.stderr is not None
        said = process.stderr.read()
        process.stderr.close()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said.decode()
    return usage.ru_utime + usage.ru_stime


def compiled(folder: str) -> dict[str, str]:
    """An environment in which all modules are compiled already, as in an installed package."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "COLUMNS")}
    env["PYTHONPYCACHEPREFIX"] = folder
    for command in (PASS, FLOOR, (SCRIPT, "config", "validate", "deepseek_v3"), (sys.executable, "-m", "moekit", "ls")):
        seconds(command, env)
    return env


def ratios(
    commands: Mapping[str, Sequence[str]], least: Sequence[str], env: Mapping[str, str], runs: int
) -> dict[str, float]:
    """Best time of each command over the best of ``least``."""
    floor: list[float] = []
    ours: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        floor.append(seconds(least, env))
        for name, command in commands.items():
            ours[name].append(seconds(command, env))
    return {name: min(times) / min(floor) for name, times in ours.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    measured.option(parser)
    args = parser.parse_args()
    least = {
        "`python -c pass`": (PASS, ("--help",)),
        "importing pluggy and omegaconf, and reading the entry points": (FLOOR, ("ls", "config validate deepseek_v3")),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        env = compiled(folder)
        for name, (command, ours) in least.items():
            commands = {f"moekit {words}": (SCRIPT, *words.split()) for words in ours}
            found = ratios(commands, command, env, args.runs)
            rows += [[words, ratio, name] for words, ratio in found.items()]
    columns = {"command": "`{}`", "ratio": "{:.2f}", "compared with": "{}"}
    measured.publish("startup", measured.table(columns, rows, device="one thread"), docs=args.docs)


if __name__ == "__main__":
    main()

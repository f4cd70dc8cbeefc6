"""Parameters of models at published sizes are counted without allocating them."""

from __future__ import annotations

import subprocess
import sys

COUNT = """
import resource, sys
from pathlib import Path
from moekit.params import count_parameters
from moekit.spec import load

def peak():  # bytes; on Linux ru_maxrss would start at the memory of the parent process
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

for name in sys.argv[1:]:
    print(count_parameters(load(name)).total, peak())
"""
AT_LEAST = {"switch-c": 1.5e12, "glam-64b": 1.1e12, "shazeer2017-65536h": 6e10}


def test_counting_huge_models_takes_less_than_two_gibibytes() -> None:
    """One after another in a fresh process, Python and torch included; the weights alone would take terabytes."""
    done = subprocess.run([sys.executable, "-c", COUNT, *AT_LEAST], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for line, (name, at_least) in zip(done.stdout.splitlines(), AT_LEAST.items(), strict=True):
        total, peak = map(int, line.split())
        assert total > at_least, name
        assert peak < 2 * 2**30, name

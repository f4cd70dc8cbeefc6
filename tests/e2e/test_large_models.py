"""Models at their papers' sizes are counted without their memory."""

from __future__ import annotations

import subprocess
import sys

COUNT = """
import resource, sys
from moekit.params import count_parameters
from moekit.spec import load
for name in sys.argv[1:]:
    print(count_parameters(load(name)).total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
AT_LEAST = {"switch-c": 1.5e12, "glam-64b": 1.1e12, "shazeer2017-65536h": 6e10}
UNIT = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere


def test_counting_huge_models_takes_less_than_two_gibibytes() -> None:
    """One after another in a process of their own, Python and torch included; weights alone would fill terabytes."""
    done = subprocess.run([sys.executable, "-c", COUNT, *AT_LEAST], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for line, (name, at_least) in zip(done.stdout.splitlines(), AT_LEAST.items(), strict=True):
        total, peak = map(int, line.split())
        assert total > at_least, name
        assert peak * UNIT < 2 * 2**30, name

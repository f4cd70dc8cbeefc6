"""Models at their papers' sizes are counted without their memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource
from moekit.params import count_parameters
from moekit.spec import load
print(count_parameters(load({name!r})).total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
UNIT = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere


@pytest.mark.parametrize(
    ("name", "at_least"), [("switch-c", 1.5e12), ("glam-64b", 1.1e12), ("shazeer2017-65536h", 6e10)]
)
def test_counting_a_huge_model_takes_less_than_two_gibibytes(name: str, at_least: float) -> None:
    """A process of its own, Python and torch included; its weights alone would fill terabytes."""
    done = subprocess.run([sys.executable, "-c", COUNT.format(name=name)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    total, peak = map(int, done.stdout.split())
    assert total > at_least
    assert peak * UNIT < 2 * 2**30

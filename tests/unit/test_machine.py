"""The processor has a name; with glibc, freed memory is kept, unless the user has set a variable of glibc."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

from moekit.machine import processor_name

PROGRAM = """
import resource, sys
import torch
from moekit.machine import keep_freed_memory

if sys.argv[1] == "keep":
    print(keep_freed_memory())
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)  # 64 MiB, above any threshold that glibc sets itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
GLIBC = platform.libc_ver()[0] == "glibc"


def run(how: str, **env: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, env={**os.environ, **env}
    )
    return done.stdout.split()


def test_freed_memory_is_reused_with_glibc() -> None:
    done, with_it = run("keep")
    (without,) = run("leave")
    assert done == str(GLIBC)
    assert (int(with_it) * 5 < int(without)) == GLIBC


def test_a_setting_of_the_user_is_respected() -> None:
    done, _ = run("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert done == "False"


def test_the_name_of_the_processor_is_one_line() -> None:
    assert processor_name().strip() == processor_name() != ""
    assert "\n" not in processor_name()

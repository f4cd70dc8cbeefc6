"""``moekit`` as a command of one rank whose gloo threads hardly run: ``starved_rank.py SECONDS train ...``.

From the second optimizer step on, each rank has one core, shares it with two busy processes for SECONDS, and gives
gloo's threads the lowest priority. So they are late to free the tensors of collectives, as on an overloaded machine.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from moekit.cli import main
from moekit.training.callbacks.interrupt import StopOnInterrupt

agree, SECONDS, starved = StopOnInterrupt.agree, float(sys.argv[1]), False


def starve() -> None:
    cores = sorted(os.sched_getaffinity(0))
    core = cores[int(os.environ["LOCAL_RANK"]) % len(cores)]
    for task in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})
        if "gloo_runl" in (task / "comm").read_text():
            os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))
    end = time.monotonic() + SECONDS
    for _ in range(2):
        if os.fork() == 0:
            while time.monotonic() < end:
                pass
            os._exit(0)


def agree_starved(callback: StopOnInterrupt) -> Any:
    global starved
    if not starved:
        starved = True
        starve()
    return agree(callback)


if __name__ == "__main__":
    torch.set_num_threads(1)
    StopOnInterrupt.agree = agree_starved  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))

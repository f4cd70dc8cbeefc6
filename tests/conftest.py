"""Shared by every test: one thread per worker, plots without a window, no GPU without ``-m gpu``, the same seed.

Dispatchers are chosen by a fixed rule.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator

from devices import EACH
from gpu_marker import wants_gpu

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("COLUMNS", "120")
os.environ.setdefault("MOEKIT_AUTO", "fixed")  # times would choose differently from one run to the next

if "MOEKIT_CACHE" not in os.environ:  # tokenised text; workers inherit the variable
    os.environ["MOEKIT_CACHE"] = tempfile.mkdtemp(prefix="moekit-cache-")
    atexit.register(shutil.rmtree, os.environ["MOEKIT_CACHE"], ignore_errors=True)

if "PYTEST_XDIST_WORKER" not in os.environ and not wants_gpu(sys.argv[1:]):  # workers inherit the variable
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else tests of whole runs would train on it, in another precision

import pytest
import torch

from moekit.seeds import seed_all

torch.set_num_threads(1)


def pytest_configure() -> None:
    """Hears signals that nohup and a shell's background ignore: the runs that tests start inherit it."""
    for number, default in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)


@pytest.fixture(params=EACH)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device of new tensors and modules: the CPU; with ``-m gpu`` a card."""
    with torch.device(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """No test starts from what another left: Lightning sets deterministic operators for the whole process."""
    seed_all(0)
    torch.use_deterministic_algorithms(False)

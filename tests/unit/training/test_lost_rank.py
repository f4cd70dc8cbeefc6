"""Another process of a run is gone: how that is known, and that what hangs is not left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from moekit.training.run.train import kill_started_ranks, lost_rank

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"


@pytest.mark.parametrize("several", [True, False])
def test_a_collective_that_failed_tells_of_it(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """gloo says so in words, NCCL by a class; in one process there is nobody to lose."""
    monkeypatch.setattr("moekit.training.run.train.is_distributed", lambda: several)
    assert lost_rank(RuntimeError(GLOO)) == lost_rank(dist.DistBackendError("NCCL timed out")) == several
    assert not lost_rank(RuntimeError("shape '[2]' is invalid for input of size 3")) and not lost_rank(KeyError("w"))


def test_what_lightning_has_started_ends_with_the_run_that_lost_it() -> None:
    """Stopped, it would not even hear SIGTERM; a run whose processes were started otherwise has none to end."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        child.send_signal(signal.SIGSTOP)
        launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
        launcher.procs = [child]
        kill_started_ranks(cast(Any, SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))))
        assert child.wait(timeout=60) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
    kill_started_ranks(cast(Any, SimpleNamespace(strategy=SimpleNamespace(launcher=None))))

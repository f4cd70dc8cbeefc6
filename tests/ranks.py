"""Runs a script in several processes that train together, as ``torchrun`` does on one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def run_ranks(script: Path, world: int, *args: str, timeout: float = 240, succeed: bool = True) -> str:
    """``script args`` in ``world`` processes of one thread each; what they printed.

    Args:
        script: makes its process group by ``init_process_group("gloo")``, or has Lightning make it.
        world: how many.
        args: of the script.
        timeout: seconds, after which all are killed and the test fails.
        succeed: whether all must end well.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    done = run([*command, str(script), *args], timeout=timeout)
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == succeed, f"{script.name} ended with {done.returncode}:\n{said[-6000:]}"
    return said


def run(command: list[str], *, timeout: float, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command in a process group of its own, which is killed whole when time is up."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
        raise AssertionError(f"{' '.join(command)} took more than {timeout} s:\n{(out + err)[-6000:]}") from None
    return subprocess.CompletedProcess(command, child.returncode, out, err)

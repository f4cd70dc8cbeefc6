"""Runs a script in several processes that train together: started as ``torchrun`` does on one machine, or forked."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from functools import cache
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


def run_forked(script: Path, world: int, *args: str, timeout: float = 240) -> str:
    """The same for quick tests, which are about what ranks compute and not about how they start.

    ``torchrun`` and each of its processes import torch and Lightning anew, which takes longer than such a test. Here
    one process imports them for all tests of this worker and is forked: see ``rank_zygote.py``.
    """
    zygote = _zygote()
    assert zygote.stdin is not None and zygote.stdout is not None
    with tempfile.NamedTemporaryFile("r") as log:
        order = {"script": str(script), "world": world, "args": args, "log": log.name}
        zygote.stdin.write(json.dumps(order) + "\n")
        zygote.stdin.flush()
        if not select.select([zygote.stdout], [], [], timeout)[0]:
            os.killpg(zygote.pid, signal.SIGKILL)
            _zygote.cache_clear()
            raise AssertionError(f"{script.name} took more than {timeout} s:\n{log.read()[-6000:]}")
        code, said = int(zygote.stdout.readline() or 1), log.read()
    assert code == 0, f"{script.name} ended with {code}:\n{said[-6000:]}"
    return said


@cache
def _zygote() -> subprocess.Popen[str]:
    """The process that is forked; it ends with this one."""
    command = [sys.executable, str(Path(__file__).with_name("rank_zygote.py"))]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    zygote = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    atexit.register(zygote.communicate)  # closes its stdin
    return zygote


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

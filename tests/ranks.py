"""Runs a script in several ranks: started by ``torchrun`` on one machine, or forked; and commands with a time limit."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any


def run_ranks(script: Path, world: int, *args: str, timeout: float = 240) -> str:
    """Runs ``script args`` by ``torchrun``, one thread a rank; returns what all ranks printed.

    The script makes its process group by ``init_process_group("gloo")``, or has Lightning make it. After ``timeout`` s
    all ranks are killed and the test fails.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    done = run([*command, str(script), *args], timeout=timeout)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{script.name} ended with {done.returncode}:\n{output[-6000:]}"
    return output


def run_forked(script: Path, world: int, *args: str, timeout: float = 240) -> str:
    """The same, forked: for quick tests of what ranks compute, not of how they start."""
    with tempfile.NamedTemporaryFile("r") as log:
        try:
            answer = fork(timeout, script=str(script), world=world, args=args, log=log.name)
        except TimeoutError:
            raise AssertionError(f"{script.name} took more than {timeout} s:\n{log.read()[-6000:]}") from None
        output = log.read()
    assert answer["code"] == 0, f"{script.name} ended with {answer['code']}:\n{output[-6000:]}"
    return output


def free_port() -> int:
    """A port of this machine that no program uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def fork(timeout: float, **order: Any) -> dict[str, Any]:
    """What the fork server answers to an order: see ``fork_server.py``.

    Raises:
        TimeoutError: no answer after ``timeout`` s; everything that was forked is killed.
    """
    server = _fork_server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    if not select.select([server.stdout], [], [], timeout)[0]:
        os.killpg(server.pid, signal.SIGKILL)
        _fork_server.cache_clear()
        raise TimeoutError
    answer: dict[str, Any] = json.loads(server.stdout.readline() or '{"code": 1}')
    return answer


@cache
def _fork_server() -> subprocess.Popen[str]:
    """One for each test worker; it ends with the worker."""
    command = [sys.executable, str(Path(__file__).with_name("fork_server.py"))]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    atexit.register(server.communicate)  # closes its stdin
    return server


def run(command: list[str], *, timeout: float, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process group of its own, which is killed as a whole when time is up."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}  # says where a process that dies was
    env = {**os.environ, **more}
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

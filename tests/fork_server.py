"""Forks ``moekit`` commands, and scripts of several ranks, from a process that has imported everything once.

Importing torch and Lightning takes longer than most tests that need a process of their own. ``ranks.fork`` starts this
server, and sends it an order at a time on stdin, a JSON object on one line:

- a script in several ranks: ``script``, ``args``, ``world``. Each rank has the variables that ``torchrun`` sets.
- a command: ``argv``, ``cwd``, and what is done to its process, all optional:
    file_limit: bytes that a file may have (RLIMIT_FSIZE)
    send: [[pattern, delay, signal], ...]: send each signal a delay in s after the log first holds its pattern
    kill_step: [n, delay]: SIGKILL a delay in s after the process begins its n-th micro-batch
    kill_at: [n, delay]: SIGKILL a delay in s after the n-th time that the process touches a checkpoint's file

``log`` names the file for all output. The answer is a JSON object too: ``code``, an exit code or minus the signal that
ended the process (of several ranks, the first that is not 0); for a command also ``seconds`` from the last signal sent
to the end, and ``touched``, the number of touches of checkpoint files, if ``kill_at`` is given.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

import moekit.training.run.train
from moekit.cli import main
from moekit.training import LitMoE

TIMEOUT = 500  # s of a command, from its start or the last signal sent to it
TOUCHES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "fsync")
Order = dict[str, Any]


def run_child(log: str, work: Callable[[], int]) -> NoReturn:
    """Runs ``work`` with output to the end of ``log``, then ends this forked process with its exit code."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)  # renews the thread pool in this thread: two that autograd starts would race to do it
    code = 1
    try:
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_rank(order: Order, rank: int, port_pipe: int) -> int:
    """Waits for the port of the store, then runs the script as from a shell."""
    port = os.read(port_pipe, 16).decode()
    world = str(order["world"])
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "forked",
        "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    sys.argv = [order["script"], *order["args"]]
    sys.path.insert(0, str(Path(order["script"]).parent))
    runpy.run_path(order["script"], run_name="__main__")
    return 0


def run_ranks(order: Order) -> int:
    """Forks the ranks, then serves the store at which they meet: its thread must not be in a process that is forked."""
    reading, writing = os.pipe()
    ranks = []
    for rank in range(order["world"]):
        if (pid := os.fork()) == 0:
            run_child(order["log"], partial(run_rank, order, rank, reading))
        ranks.append(pid)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(writing, f"{store.port:<16}".encode() * order["world"])
    while ranks:
        pid, status = os.wait()
        ranks.remove(pid)
        if code := os.waitstatus_to_exitcode(status):
            for other in ranks:  # one that waits for a rank that failed would wait for ever
                os.kill(other, signal.SIGKILL)
            return abs(code)
    return 0


def kill_me(delay: float) -> None:
    """SIGKILL to this process: now, or after a delay by another process, so that it can interrupt a write."""
    me = os.getpid()
    if not delay:
        os.kill(me, signal.SIGKILL)
    if os.fork() == 0:
        time.sleep(delay)
        os.kill(me, signal.SIGKILL)
        os._exit(0)


def kill_at_touch(number: int, delay: float, report: Path) -> None:
    """Kills this process after it has touched checkpoint files ``number`` times; 0: never.

    Args:
        number: which touch.
        delay: s after it.
        report: grows by one byte a touch, so that a kill cannot leave half a count.
    """
    count, fsync = 0, os.fsync

    def touch() -> None:
        nonlocal count
        count += 1
        with report.open("ab") as file:
            file.write(b".")
        if count == number:
            kill_me(delay)

    def counted_fsync(fd: int) -> None:
        if "checkpoints" in os.readlink(f"/proc/self/fd/{fd}"):
            touch()
        fsync(fd)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event not in TOUCHES or "checkpoints" not in str(args[0]):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        touch()

    os.fsync = counted_fsync
    sys.addaudithook(audit)


def kill_in_step(number: int, delay: float) -> None:
    """Kills this process after it has begun ``number`` micro-batches."""
    training_step, begun = LitMoE.training_step, iter(range(1, 2**30))

    def counted(module: LitMoE, *args: Any) -> Any:
        if next(begun) == number:
            kill_me(delay)
        return training_step(module, *args)

    LitMoE.training_step = counted  # type: ignore[method-assign]


def run_command(order: Order) -> int:
    """The command itself, in the forked process, limited or killed as the test orders."""
    os.setsid()
    os.chdir(order["cwd"])
    if limit := order.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if "kill_at" in order:
        kill_at_touch(*order["kill_at"], report=Path(order["log"] + ".touched"))
    if "kill_step" in order:
        kill_in_step(*order["kill_step"])
    return main(order["argv"])


def watch_command(order: Order) -> dict[str, Any]:
    """Forks a command, sends its process the signals that the test orders, and waits for its end."""
    log, touched, waiting = Path(order["log"]), Path(order["log"] + ".touched"), list(order.get("send", []))
    for file in (log, touched):
        file.unlink(missing_ok=True)
    if (pid := os.fork()) == 0:
        run_child(order["log"], partial(run_command, order))
    since = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            count = touched.stat().st_size if touched.is_file() else 0
            seconds = time.monotonic() - since
            return {"code": os.waitstatus_to_exitcode(status), "seconds": seconds, "touched": count}
        if time.monotonic() - since > TIMEOUT:
            os.killpg(pid, signal.SIGKILL)
        if waiting and log.is_file() and waiting[0][0] in log.read_text():
            _, delay, number = waiting.pop(0)
            time.sleep(delay)
            os.kill(pid, number)
            since = time.monotonic()
        time.sleep(0.003)


def watch_ranks(order: Order) -> dict[str, Any]:
    """Forks a process that forks the ranks, and waits for its end."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            code = run_ranks(order)
        finally:
            os._exit(code)
    return {"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


if __name__ == "__main__":
    assert moekit.training.run.train.train
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps((watch_command if "argv" in request else watch_ranks)(request)), flush=True)

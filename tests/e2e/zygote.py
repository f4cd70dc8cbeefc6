"""Starts ``moekit`` commands as processes of their own, quickly, and does to them what a test asks: run by ``Zygote``.

It imports everything once, and forks a process for each command that it is told on stdin, a JSON object a line::

    argv: of the command; log: file for what it prints; cwd: where it runs
    file_limit: bytes that a file may have (RLIMIT_FSIZE)
    send: [[pattern, delay, signal], ...]: each is sent a delay in s after the log first holds the pattern
    kill_step: [n, delay]: SIGKILL a delay in s after the process began its n-th micro-batch
    kill_at: [n, delay]: SIGKILL a delay in s after the n-th time that the process touches a checkpoint's file

It answers with one: ``code`` (an exit code, or minus the signal that ended it), ``seconds`` from the last signal to the
end, ``touched``: how often checkpoint files were touched, where that is asked for.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from forked import live

import moekit.training.run.train
from moekit.cli import main
from moekit.training import LitMoE

TOUCHES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "fsync")


class Touches:
    """Counts what a process does to the files of checkpoints, and has it killed at one of these times.

    Args:
        number: which time; 0 for never.
        delay: s after it; another process kills, so that it may strike in the middle of a write.
        report: a file that grows by a byte each time, so that a kill cannot leave half a count.
    """

    def __init__(self, number: int, delay: float, report: Path) -> None:
        self.number, self.delay, self.report = number, delay, report
        self.count = 0
        self.files: set[int] = set()
        fsync = os.fsync

        def counted(fd: int) -> None:
            if "checkpoints" in os.readlink(f"/proc/self/fd/{fd}"):
                self.touch()
            fsync(fd)

        os.fsync = counted
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in TOUCHES or "checkpoints" not in str(args[0]):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        self.touch()

    def touch(self) -> None:
        self.count += 1
        with self.report.open("ab") as file:
            file.write(b".")
        if self.count == self.number:
            kill_me(self.delay)


def kill_me(delay: float) -> None:
    """SIGKILL to this process, now or by another process after a delay."""
    me = os.getpid()
    if not delay:
        os.kill(me, signal.SIGKILL)
    if os.fork() == 0:
        time.sleep(delay)
        os.kill(me, signal.SIGKILL)
        os._exit(0)


def kill_in_step(number: int, delay: float) -> None:
    """Has the process killed once it has begun so many micro-batches."""
    training_step, begun = LitMoE.training_step, iter(range(1, 2**30))

    def counted(module: LitMoE, *args: Any) -> Any:
        if next(begun) == number:
            kill_me(delay)
        return training_step(module, *args)

    LitMoE.training_step = counted  # type: ignore[method-assign]


def command(order: dict[str, Any]) -> int:
    """What the fork does: the command, with what a test does to it."""
    os.setsid()
    os.chdir(order["cwd"])
    if limit := order.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if "kill_at" in order:
        Touches(*order["kill_at"], report=Path(order["log"] + ".touched"))
    if "kill_step" in order:
        kill_in_step(*order["kill_step"])
    return main(order["argv"])


def obey(order: dict[str, Any]) -> dict[str, Any]:
    log, waiting = Path(order["log"]), list(order.get("send", []))
    touched = Path(order["log"] + ".touched")
    for file in (log, touched):
        file.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        live(order["log"], partial(command, order))
    since = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            count = touched.stat().st_size if touched.is_file() else 0
            return {"code": code, "seconds": time.monotonic() - since, "touched": count}
        if time.monotonic() - since > order.get("patience", 120):
            os.killpg(pid, signal.SIGKILL)
        if waiting and log.is_file() and waiting[0][0] in log.read_text():
            _, delay, number = waiting.pop(0)
            time.sleep(delay)
            os.kill(pid, number)
            since = time.monotonic()
        time.sleep(0.003)


if __name__ == "__main__":
    assert moekit.training.run.train.train
    for line in sys.stdin:
        print(json.dumps(obey(json.loads(line))), flush=True)

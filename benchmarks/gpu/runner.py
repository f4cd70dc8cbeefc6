"""Starts parts one after another, each with a time limit, and keeps the output file complete at every moment."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.case import Where
from gpu.child import LOST

TAIL = 4000  # characters of a broken part's output that are kept
GRACE = 2.0  # seconds from asking a part to end until it is killed


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the run.

    Attributes:
        module: with ``cases(where)``.
        title: of its table.
        limit: seconds.
    """

    module: str
    title: str
    limit: float

    @property
    def name(self) -> str:
        """The last word of the module."""
        return self.module.rpartition(".")[2]


def run_parts(parts: Sequence[Part], where: Where, out: Path, *, seconds: float, say: Callable[[str], object]) -> bool:
    """Runs all parts and writes ``out`` after every case.

    Args:
        parts: in the order of their value; those for which no time is left are not started.
        where: where they run.
        out: the JSON file.
        seconds: for all of them.
        say: called with a line for each case.

    Returns:
        Whether every part ended by itself, and no case failed.
    """
    end = time.monotonic() + seconds
    found: list[dict[str, Any]] = []
    whole = {"rehearsal": where.rehearsal, "started": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "parts": found}

    def write() -> None:
        temporary = out.with_name(f"{out.name}.tmp")
        temporary.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, out)

    for part in parts:
        limit = min(part.limit, end - time.monotonic())
        found.append({"name": part.name, "title": part.title, "limit": part.limit, "ended": "not started", "cases": []})
        if limit > 1:
            say(f"== {part.name}: {part.title} (at most {limit:.0f} s)")
            found[-1]["ended"] = "running"
            _run_part(part, where, limit, found[-1], write, say)
        else:
            say(f"== {part.name}: no time left")
        write()
    return all(each["ended"] == "complete" and all(case["ok"] is not False for case in each["cases"]) for each in found)


def _run_part(
    part: Part,
    where: Where,
    limit: float,
    found: dict[str, Any],
    write: Callable[[], None],
    say: Callable[[str], object],
) -> None:
    """Runs one part, in another process for what is left after each loss of the card or crash."""
    start, begun = time.monotonic(), 0
    while True:
        code, begins, log = _run_process(part, where, start + limit, begun, found, write, say)
        begun += begins
        if code == 0:
            found["ended"] = "complete"
            break
        if code is None:
            found |= {"ended": "out of time", "log": log}
            break
        if not begins:
            found |= {"ended": f"ended with {code} before its first case", "log": log}
            break
        if code != LOST:
            found["log"] = log
    found["seconds"] = round(time.monotonic() - start, 1)
    say(f"== {part.name}: {found['ended']} after {found['seconds']:.0f} s")


def _run_process(
    part: Part,
    where: Where,
    end: float,
    skip: int,
    found: dict[str, Any],
    write: Callable[[], None],
    say: Callable[[str], object],
) -> tuple[int | None, int, str]:
    """One process of a part: its exit code (None: out of time), how many cases it began, the end of its output."""
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "gpu", "--part", part.module, "--device", where.device]
    command += ["--skip", str(skip), "--into", str(writer)]
    begins, current = 0, ""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=[writer], start_new_session=True)
        os.close(writer)
        try:
            for line in _lines(reader, child, end):
                report = json.loads(line)
                if "begins" in report:
                    begins, current = begins + 1, report["begins"]
                else:
                    current = ""
                    _keep(report, found, write, say)
            code = child.poll() if time.monotonic() < end else None
        finally:
            os.close(reader)
            _stop(child)  # also what it started
        if current:
            how = "took too long" if code is None else f"ended its process with {code}"
            _keep({"name": current, "ok": False, "note": how, "figures": {}}, found, write, say)
        log.seek(0)
        return code, begins, log.read()[-TAIL:]


def _lines(reader: int, child: subprocess.Popen[bytes], end: float) -> Iterator[str]:
    """The lines that a process writes, until it has ended or time is up."""
    rest, alive = b"", True
    while time.monotonic() < end:
        if select.select([reader], [], [], min(0.2, end - time.monotonic()) if alive else 0)[0]:
            if not (read := os.read(reader, 1 << 16)) and not alive:
                return
            *whole, rest = (rest + read).split(b"\n")
            yield from (line.decode() for line in whole)
            if not read:
                time.sleep(0.02)  # the pipe is closed; the process is about to end
        elif not alive:
            return
        alive = child.poll() is None


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ends the part and everything that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(GRACE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    child.wait()


def _keep(case: dict[str, Any], found: dict[str, Any], write: Callable[[], None], say: Callable[[str], object]) -> None:
    found["cases"].append(case)
    verdict = {True: "ok  ", False: "BAD ", None: "    "}[case["ok"]]
    figures = "  ".join(f"{name}={value}" for name, value in case["figures"].items() if not isinstance(value, list))
    say(f"{verdict} {case['name']}  {figures}  {case['note']}".rstrip()[:300])
    write()

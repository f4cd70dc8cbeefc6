"""Runs the cases of one part in this process, and writes each result as a line of JSON as soon as it is known."""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from dataclasses import asdict
from typing import IO, Any

from gpu.case import Result, Where

LOST = 3
"""The exit code of a process that can no longer use its card. Another process continues after the case."""


def run_cases(module: str, where: Where, skip: int, out: IO[str]) -> int:
    """Runs a part's cases but the first ``skip``.

    Args:
        module: the part's, with ``cases(where)``.
        where: where it runs.
        skip: cases that an earlier process has begun.
        out: gets a line for each case that begins and for each that ends.

    Returns:
        The exit code: 0, or ``LOST``.
    """

    def tell(**what: Any) -> None:
        print(json.dumps(what), file=out, flush=True)

    for number, case in enumerate(importlib.import_module(module).cases(where)):
        if number < skip:
            continue
        tell(begins=case.name)
        start = time.perf_counter()
        try:
            result = case.run()
        except Exception as error:
            traceback.print_exc()
            at = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{'/'.join(at.filename.split('/')[-2:])}:{at.lineno}"
            result = Result(ok=False, note=f"{type(error).__name__} at {place}: {str(error).strip()[:400]}")
        tell(name=case.name, **asdict(result), seconds=round(time.perf_counter() - start, 3))
        if result.ok is False and not where.rehearsal and not _usable():
            return LOST
    return 0


def _usable() -> bool:
    """Whether this process can still use its card: after an assertion on the device every call raises."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"the card is lost to this process: {error}", file=sys.stderr)
        return False
    return True

"""The card and its software; and what moekit takes for granted of them."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpu.case import Case, Result, Where

PACKAGES = ("torch", "triton", "lightning", "transformers", "scattermoe", "megablocks")


def cases(where: Where) -> Iterator[Case]:
    """The cases of this part."""
    yield Case(name="machine", run=lambda: Result(figures=about(where)))
    yield Case(name="tests without -m gpu see no card", run=hidden)
    yield Case(name="the default precision is one that the card computes in itself", run=lambda: precision(where))


def about(where: Where) -> dict[str, str | int | float]:
    """Names, versions and sizes."""
    import torch

    from moekit.machine import processor_name

    found: dict[str, str | int | float] = {
        "card": "none",
        "processor": processor_name(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "moekit": commit(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if where.rehearsal:
        return found
    card = torch.cuda.get_device_properties(0)
    return found | {
        "card": card.name,
        "capability": f"{card.major}.{card.minor}",
        "GiB": round(card.total_memory / 2**30, 1),
        "multiprocessors": card.multi_processor_count,
        "CUDA": str(torch.version.cuda),
        "driver": _driver(),
    }


def commit() -> str:
    """Of moekit."""
    return _first_line("git", "-C", str(Path(__file__).parent), "rev-parse", "--short=7", "HEAD")


def _driver() -> str:
    return _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def hidden() -> Result:
    """Whether the plain suite would train on the card, in another precision."""
    from gpu.marked_tests import TESTS, pytest

    done = pytest(str(TESTS / "unit" / "test_gpu_marker.py"))
    return Result(ok=done.returncode == 0, note="" if done.returncode == 0 else done.stdout[-400:])


def precision(where: Where) -> Result:
    """``bf16-mixed`` exactly where bf16 is not emulated: on Ampere cards and later."""
    import torch

    from moekit.training.run.prepare import default_precision

    chosen = default_precision("cpu" if where.rehearsal else "gpu")
    native = not where.rehearsal and torch.cuda.is_bf16_supported(including_emulation=False)
    return Result(ok=(chosen == "bf16-mixed") == native, figures={"chosen": chosen, "bf16 in hardware": native})

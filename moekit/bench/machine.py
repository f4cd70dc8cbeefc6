"""What figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine(device: str, dtype: torch.dtype) -> dict[str, str | int]:
    """Device, its name, cores, threads, torch, dtype."""
    found: dict[str, str | int] = {"device": device, "name": cpu_name(), "cores": os.cpu_count() or 0}
    if device == "cuda":
        found["name"] = torch.cuda.get_device_name()
    found |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}
    return found | {"dtype": str(dtype).removeprefix("torch.")}


def sentence(about: dict[str, str | int]) -> str:
    """The same in a line."""
    cores = f"{about['threads']} of {about['cores']} cores, " if about["device"] == "cpu" else ""
    return f"{about['name']}, {cores}torch {about['torch']}, Python {about['python']}, {about['dtype']}"


def cpu_name() -> str:
    """As the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""Devices, cores and threads, memory: what a training has, and what would make it slow."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch

from moekit.machine import processor_name
from moekit_doctor.finding import Finding

BUSY = 1.5
"""Load average for each core from which timings mean little."""

LOW_MEMORY = 2e9
"""Bytes below which a small recipe may not fit."""

SLOWER: Mapping[str, str] = {
    "CUDA_LAUNCH_BLOCKING": "every kernel is waited for",
    "TRITON_INTERPRET": "Triton's kernels run in its interpreter, on the CPU",
    "TORCH_COMPILE_DISABLE": "nothing is compiled",
    "TORCHDYNAMO_DISABLE": "nothing is compiled",
    "PYTHONDEVMODE": "Python checks everything",
    "PYTHONASYNCIODEBUG": "Python checks everything",
}
"""Variables that make training slower, with what they do."""


def machine(environment: Mapping[str, str], processes: int) -> Iterator[Finding]:
    """Everything about the machine.

    Args:
        environment: variables, as ``os.environ``.
        processes: ranks that are to train on this machine.
    """
    yield from devices()
    yield from threads(environment, processes)
    yield from memory()
    for name, effect in SLOWER.items():
        if environment.get(name, "0").lower() not in ("", "0", "false", "off"):
            yield Finding("machine", name, f"{environment[name]}: {effect}", "note", f"unset {name}")


def devices() -> Iterator[Finding]:
    """GPUs and the CPU, and which of them compute in bf16."""
    for index in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        words = f"{of.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, capability {of.major}.{of.minor}"
        has_bf16 = of.major >= 8
        advice = "" if has_bf16 else "trainer.precision=16-mixed or 32-true"
        yield Finding(
            "machine", f"cuda:{index}", words + ("" if has_bf16 else "; no bf16"), _note(not has_bf16), advice
        )
    if torch.backends.mps.is_available():
        yield Finding("machine", "mps", "Apple's GPU; moekit was not tested on it")
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        built = torch.version.cuda
        why = f"torch is built for CUDA {built}, which the driver may not know" if built else "torch has no CUDA"
        advice = "install the torch that fits the driver: pytorch.org/get-started"
        yield Finding("machine", "cuda", f"nvidia-smi is here, but torch sees no GPU: {why}", "note", advice)
    has_bf16 = cpu_has_bf16()
    words = f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"
    if has_bf16:
        yield Finding("machine", "cpu", f"{words}, bf16")
    else:
        yield Finding(
            "machine", "cpu", f"{words}; bf16 is emulated here", advice="on the CPU, trainer.precision=32-true"
        )
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        yield Finding("machine", "compiler", "no C++ compiler", "note", "torch.compile needs one on CPUs; install g++")


def cpu_has_bf16(cpuinfo: str | None = None) -> bool:
    """Whether the processor multiplies bf16 itself; False where the system does not say."""
    text = _text("/proc/cpuinfo") if cpuinfo is None else cpuinfo
    return bool(re.search(r"^(?:flags|Features)\s*:.*\b(?:avx512_bf16|amx_bf16|bf16)\b", text, re.MULTILINE))


def cores() -> tuple[int, str]:
    """The cores that this process may use, and what limits them; empty for nothing."""
    of_machine = os.cpu_count() or 1
    usable, why = of_machine, ""
    if hasattr(os, "sched_getaffinity") and (allowed := len(os.sched_getaffinity(0))) < usable:
        usable, why = allowed, f"of {of_machine}: this process may use no others"
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit() and (granted := max(1, int(quota) // int(period))) < usable:
        usable, why = granted, f"of {of_machine}: the container's quota"
    return usable, why


def threads(environment: Mapping[str, str], processes: int) -> Iterator[Finding]:
    """Cores, torch's threads and its linear algebra; too many threads are slower than too few."""
    usable, why = cores()
    yield Finding("machine", "cores", f"{usable} {why}".rstrip())
    number = torch.get_num_threads()
    words, per_rank = f"{number} of torch in each process", max(1, usable // processes)
    is_set = environment.get("OMP_NUM_THREADS")
    if processes > 1 and not is_set:
        advice = f"export OMP_NUM_THREADS={per_rank}"
        what = f"OMP_NUM_THREADS is not set, and {processes} processes share {usable} cores"
        yield Finding("machine", "threads", f"{words}; {what}", "note", advice)
    elif number * processes > usable:
        what = f"{processes} x {number} threads on {usable} cores wait for each other"
        few = f"export OMP_NUM_THREADS={per_rank}" if number > per_rank else "start fewer processes"
        yield Finding("machine", "threads", f"{words}; {what}", "note", few)
    else:
        yield Finding("machine", "threads", words + (f", OMP_NUM_THREADS={is_set}" if is_set else ""))
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    yield Finding("machine", "blas", blas[1] if blas else "unknown")
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > BUSY * usable:
        what = f"{load:.1f} processes want {usable} cores"
        yield Finding("machine", "load", what, "note", "timings mean little until they have ended")


def memory() -> Iterator[Finding]:
    """Main memory: what there is, what is free, and a container's limit."""
    kilobytes = dict(re.findall(r"^(MemTotal|MemAvailable):\s*(\d+) kB", _text("/proc/meminfo"), re.MULTILINE))
    if "MemAvailable" not in kilobytes:
        yield Finding("machine", "memory", "unknown on this system")
        return
    total, free = (int(kilobytes[name]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    words = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB available"
    if limit.isdigit() and int(limit) < total:
        words, free = f"{words}; the container's limit is {int(limit) / 1e9:.1f} GB", min(free, int(limit))
    low = free < LOW_MEMORY
    yield Finding("machine", "memory", words, _note(low), "moekit plan RECIPE says what a recipe needs" if low else "")


def _note(when: bool) -> Literal["note", "ok"]:
    return "note" if when else "ok"


def _text(path: str) -> str:
    """A file of the system; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

"""``moekit doctor``: faults are found, and the exit code says so; notes are about speed and what is omitted."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from fake_plugins import KINDS, plugin

from moekit.cli import main
from moekit.component import Component
from moekit.plugin import Plugin
from moekit.registry import Registry
from moekit_doctor import disk as disk_module
from moekit_doctor import machine as machine_module
from moekit_doctor import software as software_module
from moekit_doctor.cli.doctor import lines
from moekit_doctor.disk import disk
from moekit_doctor.finding import Finding
from moekit_doctor.machine import cores, cpu_has_bf16, machine, memory, threads
from moekit_doctor.software import plugins, requirements

Captured = pytest.CaptureFixture[str]


def of(found: Iterable[Finding], topic: str) -> Finding:
    (one,) = [each for each in found if each.topic == topic]
    return one


def test_it_says_everything_as_json_and_ends_with_0_where_nothing_is_wrong(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["faults"] == 0
    topics = {each["topic"]: each for each in said["findings"]}
    assert {"moekit", "python", "cpu", "cores", "threads", "blas", "memory", "routers", "write"} <= topics.keys()
    assert topics["threads"]["value"].startswith(f"{torch.get_num_threads()} of torch")
    assert list(tmp_path.iterdir()) == []


def test_the_text_groups_what_was_found_and_ends_with_what_to_do() -> None:
    found = [
        Finding("software", "torch", "3.0"),
        Finding("machine", "cuda:0", "old; no bf16", "note", "trainer.precision=16-mixed"),
        Finding("disk", "write", "refused", "fault", "--out DIR"),
    ]
    shown = "\n".join(lines(found))
    assert "software\n  torch   3.0\n" in shown
    assert shown.endswith(
        "faults\n  write: refused\n    --out DIR\n\nnotes\n  cuda:0: old; no bf16\n    trainer.precision=16-mixed\n"
    )
    assert lines(found[:1])[-1] == "nothing is wrong"


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--out", str(tmp_path / "file" / "runs")]) == 1
    assert "is not a folder" in capsys.readouterr().out


def test_a_write_that_the_system_refuses_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk_module, "replace_file", refuse)
    write = of(disk(tmp_path / "runs"), "write")
    assert (write.level, write.advice) == ("fault", "name another folder: --out DIR")
    assert "No space left on device" in write.value and list(tmp_path.iterdir()) == []


def test_a_slow_write_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "SLOW_WRITE", 0.0)
    assert of(disk(tmp_path), "write").level == "note"


def test_plugins_that_fail_or_have_a_broken_spec_are_faults_and_slow_ones_notes() -> None:
    broken = Component(kind="router", name="r", spec="no_such_module:Spec", target="no_such_module:R", summary="")
    slow = Plugin(name="slow", module="slow_moe", seconds=2.5)
    failed = Plugin(name="failed", module="failed_moe", error="ImportError: no")
    found = {each.topic: each for each in plugins(Registry([KINDS, plugin("acme", components=[broken]), slow, failed]))}
    assert found["acme"].level == "fault" and "no_such_module:Spec" in found["acme"].value
    assert (found["failed"].level, found["failed"].value) == ("fault", "ImportError: no")
    assert found["slow"].level == "note" and "2.5 s" in found["slow"].value
    assert found["slow"].advice == "MOEKIT_DISABLE_PLUGINS=slow omits it"
    assert found["moekit"].level == "ok"


def test_requirements_are_compared_with_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = [
        "torch>=2.12",
        "pluggy>=99",
        "no-such-package>=1",
        'matplotlib>=3; extra == "plots"',
        'no-such-extra>=1; extra == "wandb"',
        'pytest>=9; extra == "test"',
        'moekit[plots]; extra == "all"',
        'triton>=3; platform_system == "Nowhere" and extra == "triton"',
    ]
    monkeypatch.setattr(software_module, "requires", lambda _: needed)
    found = {each.topic: each for each in requirements()}
    assert found["torch"].level == "ok"
    assert found["pluggy"].level == "fault" and found["pluggy"].advice == "pip install 'pluggy>=99'"
    assert (found["no-such-package"].level, found["no-such-package"].value) == ("fault", "missing")
    assert found["wandb"].value == "without no-such-extra" and found["wandb"].advice == "pip install 'moekit[wandb]'"
    assert found["wandb"].level == "ok"
    assert found.keys() == {"torch", "pluggy", "no-such-package", "plots", "wandb"}


def test_moekit_that_is_only_on_the_path_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise PackageNotFoundError("moekit")

    monkeypatch.setattr(software_module, "requires", missing)
    (only,) = requirements()
    assert only.level == "note" and "not installed" in only.value


@pytest.mark.parametrize(
    ("variables", "processes", "level", "said"),
    [
        ({}, 1, "ok", ""),
        ({}, 2, "note", "OMP_NUM_THREADS is not set, and 2 processes share 4 cores"),
        ({"OMP_NUM_THREADS": "4"}, 2, "note", "2 x 4 threads on 4 cores wait for each other"),
        ({"OMP_NUM_THREADS": "4"}, 1, "ok", "OMP_NUM_THREADS=4"),
    ],
)
def test_too_many_threads_are_a_note_with_the_right_number(
    variables: dict[str, str], processes: int, level: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_module, "cores", lambda: (4, ""))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    found = of(threads(variables, processes), "threads")
    assert found.level == level and said in found.value
    assert found.advice == ("" if level == "ok" else "export OMP_NUM_THREADS=2")


def test_the_processes_of_a_launcher_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert main(["doctor", "--out", str(tmp_path)]) == 0
    assert "OMP_NUM_THREADS is not set, and 3 processes share" in " ".join(capsys.readouterr().out.split())
    assert main(["doctor", "--processes", "0"]) == 2
    assert "--processes 0: expected 1 or more" in capsys.readouterr().err


def test_containers_limit_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/sys/fs/cgroup/cpu.max": "200000 100000\n",
        "/sys/fs/cgroup/memory.max": "1000000000\n",
        "/proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n",
    }
    monkeypatch.setattr(machine_module, "_text", lambda path: files.get(path, ""))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert cores() == (2, "of 64: the container's quota")
    (found,) = memory()
    assert found.level == "note" and "the container's limit is 1.0 GB" in found.value
    files.clear()
    assert of(memory(), "memory").value == "unknown on this system"


def test_bf16_and_variables_that_make_training_slow() -> None:
    assert cpu_has_bf16("flags\t\t: fpu avx512_bf16 amx_tile") and cpu_has_bf16("Features : fp asimd bf16")
    assert not cpu_has_bf16("flags\t\t: fpu avx2\nbogomips : 1")
    found = list(machine({"CUDA_LAUNCH_BLOCKING": "1", "TORCHDYNAMO_DISABLE": "0"}, 1))
    assert of(found, "CUDA_LAUNCH_BLOCKING").advice == "unset CUDA_LAUNCH_BLOCKING"
    assert "TORCHDYNAMO_DISABLE" not in {each.topic for each in found}


def test_a_torch_that_does_not_import_is_a_fault_and_the_rest_is_still_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.delitem(sys.modules, "lightning")
    monkeypatch.setattr(software_module, "importlib", None)
    assert main(["doctor", "--out", str(tmp_path), "--json"]) == 1
    found = {each["topic"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert found["import lightning"]["level"] == "fault" and "AttributeError" in found["import lightning"]["value"]
    assert "a file is flushed and moved in" in found["write"]["value"]  # a note where the disk is busy

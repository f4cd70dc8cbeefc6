"""Other libraries: missing, broken, unknown; and no adapter imports its library before it runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from moekit.errors import MoekitError
from moekit_bench import peers
from moekit_bench.request import Shape
from moekit_bench.workload import make_workload


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which libraries are imported first."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in peers.LAYERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize("name", peers.LAYERS)
def test_a_missing_library_is_reported_with_its_pip_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MoekitError, match=f"--against {name}: it is not installed\n  pip install "):
        peers.load(name)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_kernels", "it is installed, but lacks 'no_such_kernels'"),
        ("raise RuntimeError('no GPU')", "it does not import: RuntimeError: no GPU"),
    ],
)
def test_a_library_that_fails_to_import_is_reported_with_the_cause(source: str, said: str, library: Path) -> None:
    (library / "megablocks.py").write_text(source)
    with pytest.raises(MoekitError, match=f"--against megablocks: {said}"):
        peers.load("megablocks")


def test_models_of_a_library_are_loaded_with_the_same_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MoekitError, match=r"--against megablocks: unknown library \(known: transformers\)"):
        peers.load_models("megablocks")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MoekitError, match="--against transformers: it is not installed\n  pip install transformers"):
        peers.load_models("transformers")


def test_an_unknown_library_is_rejected_with_the_nearest() -> None:
    with pytest.raises(MoekitError, match=r"unknown library.*\n  did you mean 'transformers'"):
        peers.load("tranformers")


@pytest.mark.parametrize("name", ["megablocks", "scattermoe"])
def test_libraries_for_gpus_are_rejected_on_a_cpu(name: str, library: Path) -> None:
    (library / f"{name}.py").write_text("")
    work = make_workload(Shape(8, 4, 8, 4, 2), "cpu", torch.float32)
    with pytest.raises(MoekitError, match=f"--against {name}: it runs on GPUs alone"):
        peers.load(name)(work, work.experts())


@pytest.mark.parametrize("adapter", [adapter for adapter, _ in [*peers.LAYERS.values(), *peers.MODELS.values()]])
def test_an_adapter_imports_its_library_only_when_it_runs(adapter: str) -> None:
    before = set(sys.modules)
    module, _, function = adapter.partition(".")
    assert callable(getattr(importlib.import_module(f"moekit_bench.peers.{module}"), function))
    assert not {name.partition(".")[0] for name in set(sys.modules) - before} & set(peers.LAYERS)

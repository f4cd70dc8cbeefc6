"""Other libraries: not there, broken, unknown; and that no adapter needs its library to be imported."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from moekit.bench import peers
from moekit.bench.shapes import Shape
from moekit.bench.work import build_in, make_work, sparse_spec
from moekit.errors import MoekitError


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place where libraries are found first."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in peers.PEERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize("name", peers.PEERS)
def test_one_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MoekitError, match=f"--against {name}: it is not installed\n  pip install "):
        peers.load(name)


def test_one_that_lacks_something_itself(library: Path) -> None:
    (library / "megablocks.py").write_text("import no_such_kernels\n")
    with pytest.raises(MoekitError, match="it is installed, but lacks 'no_such_kernels'"):
        peers.load("megablocks")


def test_one_whose_import_fails(library: Path) -> None:
    (library / "scattermoe.py").write_text("raise RuntimeError('no GPU')\n")
    with pytest.raises(MoekitError, match="it does not import: RuntimeError: no GPU"):
        peers.load("scattermoe")


def test_models_are_asked_for_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MoekitError, match=r"--against megablocks: no such peer \(peers: transformers\)"):
        peers.load_models("megablocks")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MoekitError, match="--against transformers: it is not installed\n  pip install transformers"):
        peers.load_models("transformers")


def test_an_unknown_one() -> None:
    with pytest.raises(MoekitError, match=r"no such peer.*\n  did you mean 'transformers'"):
        peers.load("tranformers")


@pytest.mark.parametrize("name", ["megablocks", "scattermoe"])
def test_those_for_gpus_say_so(name: str, library: Path) -> None:
    (library / f"{name}.py").write_text("")
    work = make_work(Shape(8, 4, 8, 4, 2), "cpu", torch.float32)
    experts = build_in(sparse_spec(work.shape), work.dims, "cpu", torch.float32)
    with pytest.raises(MoekitError, match=f"--against {name}: it runs on GPUs alone"):
        peers.load(name).variants(work, experts)


@pytest.mark.parametrize(
    ("file", "offers"),
    [(file, "variants") for file, _ in peers.PEERS.values()] + [(file, "models") for file, _ in peers.MODELS.values()],
)
def test_an_adapter_imports_its_library_only_when_it_is_run(file: str, offers: str) -> None:
    before = set(sys.modules)
    module = importlib.import_module(f"moekit.bench.peers.{file}")
    assert callable(getattr(module, offers))
    assert not {name.partition(".")[0] for name in set(sys.modules) - before} & set(peers.PEERS)

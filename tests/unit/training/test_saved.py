"""The checkpoints that ``LitMoE`` saves, and the ``.ckpt`` files that Lightning writes around it."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from training_helpers import trainer

from moekit import CheckpointError, build, load
from moekit.inference.generate import load_run
from moekit.training import LitMoE
from moekit.training.run.saved import ANY, check_form, read_any_checkpoint, read_checkpoint
from moekit_hf.one_file import OneFile
from moekit_hf.one_file.module import OneFileExporter

Make = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("quiet_lightning")


@pytest.fixture(scope="module")
def ckpt(recipe: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Lightning's own callback writes, with byte pairs that were learnt."""
    folder = tmp_path_factory.mktemp("ckpt")
    data = {**recipe()["data"], "tokenizer": {"use": "bpe", "vocab": 270}}
    model = {**recipe()["model"], "vocab": 270}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keep = ModelCheckpoint(folder, filename="own", monitor="val/loss", save_last=True)
        t = trainer(3, folder, callbacks=[keep], enable_checkpointing=True)
        t.fit(LitMoE(recipe(data=data, model=model)))
    return folder / "own.ckpt"


def test_a_file_of_lightnings_own_callback_is_loaded(ckpt: Path, tmp_path: Path) -> None:
    module = LitMoE.load_from_checkpoint(ckpt)
    saved = torch.load(ckpt, weights_only=True)
    assert all(torch.equal(tensor, saved["state_dict"][name]) for name, tensor in module.state_dict().items())
    tokenizer = module.data and module.data.tokenizer
    assert tokenizer is not None and tokenizer.decode(tokenizer.encode("abc")) == "abc"
    assert load_run(str(ckpt)).data is not None
    exporter = OneFileExporter(OneFile())
    exporter.export(ckpt, path := tmp_path / "w.safetensors")
    weights = load_file(path)
    build(load(json.loads(json.dumps(saved["hyper_parameters"]["spec"]))).model).load_state_dict(weights)
    assert exporter.usual_place(ckpt) == ckpt.with_name("weights-00000003.safetensors")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


def test_a_file_with_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"moekit": {}, "state_dict": Evil()}, "zip.ckpt")
    torch.save({"moekit": Evil()}, "legacy.ckpt", _use_new_zipfile_serialization=False)
    Path("raw.ckpt").write_bytes(pickle.dumps(Evil()))
    Path("junk.ckpt").write_bytes(b"junk")
    Path("empty.ckpt").touch()
    for name in ("zip", "legacy", "raw", "junk", "empty"):
        with pytest.raises(CheckpointError, match=f"{name}.ckpt is damaged, or holds more than tensors"):
            read_any_checkpoint(Path(f"{name}.ckpt"))
    assert not Path("unpickled").exists()


def test_a_file_of_another_module_a_fifo_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    os.mkfifo(tmp_path / "fifo.ckpt")
    for name, message in {
        "other": "is not a checkpoint of LitMoE: it has no key 'moekit'",
        "fifo": "fifo.ckpt: Not a regular file",
        "none": "none.ckpt: No such file or directory",
    }.items():
        with pytest.raises(CheckpointError, match=re.escape(message)):
            LitMoE.load_from_checkpoint(tmp_path / f"{name}.ckpt")


def test_a_run_is_not_a_checkpoint_but_says_which_it_has(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"is a run, not a checkpoint\n.* it has none yet"):
        LitMoE.load_from_checkpoint(tmp_path)
    for name in ("last", "best"):
        (tmp_path / "checkpoints" / name).write_text("step-00000001\n")
    with pytest.raises(CheckpointError, match=r"expected one of its checkpoints: .*checkpoints/best or .*/last$"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "it has no a"),
        ({"a": 1}, "a is 1, not a mapping"),
        ({"a": {"x": [1, True]}}, "a.x.1 is True, not an integer"),
        ({"a": {"x": [1], "y": 3}}, "a.y is 3, not a list"),
        ({"a": {"x": [-1]}}, "a.x.0 is -1, less than 0"),
    ],
)
def test_a_value_of_another_form_is_named(tree: Any, message: str) -> None:
    check_form(Path("c"), {"a": {"x": [0, 1], "z": []}}, {"a": {ANY: [int]}})
    with pytest.raises(CheckpointError, match=f"^c is not .*{re.escape(message)}"):
        check_form(Path("c"), tree, {"a": {ANY: [int]}})

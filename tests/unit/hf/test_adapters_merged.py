"""Adapters are trained over an imported mixture, alone, and leave it merged: exports compute what the run computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_folders import write_folder

import moekit
from moekit.checkpoints.reading import open_checkpoint
from moekit.contracts import Init, LayerDims
from moekit.params import count_parameters
from moekit.registry import build
from moekit.seeds import seed_torch
from moekit_experts.glu import Glu
from moekit_experts.lora import Lora
from moekit_hf.exporter import HuggingFace
from moekit_hf.importing import import_folder
from moekit_hf.one_file import OneFile

SHORT = [
    "data.use=local_text",
    "data.seq=16",
    "data.batch=2",
    "data.megabytes=0.05",
    "data.validation_windows=2",
    "trainer.accelerator=cpu",
]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base``, an imported run, and ``run``, four steps of adapters over it, interrupted after two."""
    out = tmp_path_factory.mktemp("tuned")
    write_folder(out / "theirs")
    import_folder(out / "theirs", out / "base")
    node = moekit.to_plain(moekit.load(out / "base" / "spec.yaml"))
    experts = node["model"]["moe"]["experts"]  # type: ignore[index,call-overload]
    base = {key: value for key, value in experts.items() if key != "count"}  # type: ignore[union-attr]
    lora = {"use": "lora", "count": experts["count"], "rank": 3, "alpha": 6.0, "base": base}  # type: ignore[index]
    model = {"moe": {"experts": lora}, "lora": {"rank": 2, "alpha": 4.0}}  # experts, and attention
    change = {"model": model, "start": {"train": ["adapters"]}, "schedule": {"use": "constant"}}
    lr = ["optimizer.lr=0.05", *SHORT]
    first = moekit.train(
        [out / "base" / "spec.yaml", change], [*lr, "trainer.max_steps=2"], out=out / "runs", quiet=True
    )
    moekit.train(resume=first.path, overrides=["trainer.max_steps=4"], quiet=True)
    first.path.rename(out / "run")
    return out


def test_only_adapters_are_trained_and_only_they_have_optimizer_state(tuned: Path) -> None:
    saved = open_checkpoint(tuned / "run" / "checkpoints" / "last").whole()
    before = moekit.open(tuned / "base").model.state_dict()
    trained = set()
    for name, tensor in moekit.open(tuned / "run").model.state_dict().items():
        if "adapters" in name:
            trained.add(name)
        else:
            assert torch.equal(tensor, before[name.replace(".base.", ".")]), name
    (state,) = saved["optimizer_states"]
    assert set(state["state"]) == trained and len(trained) == 8 + 2 * 8
    assert saved["global_step"] == 4


def test_the_start_of_a_run_says_what_is_trained(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = moekit.load(tuned / "run" / "spec.yaml")
    model = moekit.train(spec, ["trainer.max_steps=1"], out=tuned / "runs").model
    said = " ".join(capsys.readouterr().out.split())
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    trained = 0
    for part, word in (("attention", ".attention."), ("routed experts", ".experts.")):
        whole = sum(size for name, size in sizes.items() if word in name)
        adapters = sum(size for name, size in sizes.items() if word in name and "adapters" in name)
        assert f"{part} {adapters:,} of {whole:,}" in said
        assert count_parameters(spec).parts[part] == whole
        trained += adapters
    assert f"{trained:,} parameters are trained: embedding 0 of " in said


@torch.no_grad()
def test_both_exports_compute_what_the_adapted_run_computes(tuned: Path) -> None:
    run, ids_BS = moekit.open(tuned / "run"), torch.arange(32).reshape(2, 16)
    want = run.model.eval()(ids_BS).y
    assert not torch.allclose(want, moekit.open(tuned / "base").model.eval()(ids_BS).y, atol=1e-4)
    checkpoint, path = tuned / "run" / "checkpoints" / "last", tuned / "plain.safetensors"
    said = build(OneFile()).export(checkpoint, path)
    with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
        spec = json.loads(file.metadata()["spec"])
    plain = moekit.build(moekit.load(spec).model)
    plain.load_state_dict(load_file(path))
    assert said[0].startswith(f"{sum(t.numel() for t in plain.state_dict().values()):,} numbers, ")
    build(HuggingFace()).export(checkpoint, tuned / "folder")
    import_folder(tuned / "folder", tuned / "again")
    for model in (plain, moekit.open(tuned / "again").model):
        assert not any("adapters" in name for name in model.state_dict())
        assert float((model.eval()(ids_BS).y - want).abs().max()) <= 1e-6 * float(want.abs().max())


def test_new_adapters_change_nothing_and_leave_the_initial_weights_alone() -> None:
    dims = LayerDims(dim=6, num_experts=3)
    banks = [build(spec, dims) for spec in (Glu(count=3, hidden=5), Lora(count=3, base=Glu(hidden=5)))]
    for bank in banks:
        seed_torch(1)
        bank.init_weights(Init())
    for name, parameter in banks[0].named_parameters():
        assert torch.equal(banks[1].base.get_parameter(name), parameter)


def test_the_number_of_experts_is_said_once() -> None:
    with pytest.raises(moekit.SpecError, match=r"base\.count=4: remove it; count=4 is an option next to base"):
        moekit.layer(
            dim=6,
            router={"use": "topk", "top_k": 1},
            experts={"use": "lora", "base": {"use": "glu", "count": 4, "hidden": 5}},
        )

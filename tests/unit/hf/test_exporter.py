"""A run is exported in the one family that can express it, or refused with what differs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_folders import mixtral_tensors, write_folder

import moekit
from moekit import MoekitError, load
from moekit.errors import UnknownName
from moekit.registry import build
from moekit_hf.exporter import HuggingFace
from moekit_hf.fields import FormatError
from moekit_hf.folder import Folder
from moekit_hf.importing import import_folder
from moekit_hf.matching import format_for

EXTRA = {
    "generation_config.json": '{"temperature": 0.6}',
    "chat_template.jinja": "{{ messages }}",
    "special_tokens_map.json": '{"eos_token": "</s>"}',
    "modeling_evil.py": "raise SystemExit",
}


TRAINING: dict[str, Any] = {
    "objective": {"use": "causal_lm"},
    "optimizer": {"use": "adamw"},
    "trainer": {"max_steps": 1, "accelerator": "cpu"},
}
ATTENTION = {"use": "gqa", "heads": 2, "kv_heads": 2, "head_dim": 8, "qk_norm": True, "norm_over": "all"}
EXPERTS = {"use": "glu", "count": 2, "hidden": 8}
OLMOE: dict[str, Any] = {
    **TRAINING,
    "data": {"use": "local_text", "seq": 16, "batch": 2, "megabytes": 0.1, "tokenizer": {"use": "bpe", "vocab": 300}},
    "model": {
        "use": "decoder", "vocab": 300, "dim": 16, "depth": 1, "attention": ATTENTION,
        "ffn": {"use": "glu", "hidden": 8},
        "moe": {"at": {"first": 0}, "router": {"use": "topk", "top_k": 1}, "experts": EXPERTS},
    },
}  # fmt: skip
SWITCH: dict[str, Any] = {
    **TRAINING,
    "data": {
        "use": "span_corruption", "vocab": 272, "sentinels": 15,
        "text": {"use": "local_text", "seq": 16, "batch": 2, "megabytes": 0.1, "tokenizer": "bytes"},
    },
    "model": {
        "use": "encoder_decoder", "vocab": 272, "dim": 16, "depth": 2, "scaled_head": True, "tied": True,
        "attention": {"use": "relative", "heads": 2, "head_dim": 8, "scale": 1.0, "shared": True},
        "cross": {"heads": 2, "head_dim": 8, "scale": 1.0},
        "ffn": {"use": "ffn", "hidden": 8},
        "moe": {
            "at": {"every": 2},
            "router": {"use": "topk", "top_k": 1},
            "experts": {"use": "ffn", "count": 2, "hidden": 8},
            "dispatcher": {"use": "capacity", "slots": 16, "per": "sequence"},
        },
    },
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An imported run."""
    path = write_folder(tmp_path / "m")
    for name, text in EXTRA.items():
        (path / name).write_text(text)
    import_folder(path, tmp_path / "run")
    return tmp_path / "run"


def exported(run: Path, **options: Any) -> Path:
    out = run.parent / "out"
    build(HuggingFace(**options)).export(run / "checkpoints" / "step-00000000", out)
    return out


def test_an_untouched_run_is_exported_to_the_same_bits(run: Path) -> None:
    out = exported(run)
    found, expected = load_file(out / "model.safetensors"), mixtral_tensors()
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)
    config = json.loads((out / "config.json").read_text())
    assert not {"bos_token_id", "pad_token_id"} & set(config)  # as in the imported folder
    assert config["eos_token_id"] == 0 and config["dtype"] == "float32" and "torch_dtype" not in config
    assert config["architectures"] == ["MixtralForCausalLM"] and config["max_position_embeddings"] == 64


def test_a_model_that_was_trained_here_is_imported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the byte pairs that it learnt, which then spell the same text."""
    monkeypatch.chdir(tmp_path)
    small = ["model.dim=16", "model.depth=1", "model.ffn.hidden=16", "data.seq=16", "data.megabytes=0.1"]
    small += ["data.tokenizer={use: bpe, vocab: 300}", "data.validation_windows=2", "trainer.max_steps=1"]
    run = moekit.train("base/language_model", small, name="made", quiet=True)
    build(HuggingFace()).export(run.path / "checkpoints" / "last", Path("out"))
    config = json.loads(Path("out/config.json").read_text())
    assert config["model_type"] == "llama"
    assert run.tokenizer is not None and run.tokenizer.end is not None
    ids = {"bos_token_id": None, "eos_token_id": run.tokenizer.end, "pad_token_id": None}
    assert {name: value for name, value in config.items() if name.endswith("token_id")} == ids
    assert not Path("out/generation_config.json").exists()
    import_folder(Path("out"), Path("again"))
    again = moekit.open("again")
    assert all(torch.equal(t, again.model.state_dict()[name]) for name, t in run.model.state_dict().items())
    assert again.tokenizer is not None
    for text in ("def add(a, b):\n    return a + b", "naïve"):
        ids = run.tokenizer.encode(text)
        assert torch.equal(again.tokenizer.encode(text), ids) and again.tokenizer.decode(ids) == text


def test_transformers_takes_no_special_token_of_a_released_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OLMoE's padding is 1 there: its row of the embedding would get no gradient."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    run = moekit.train(OLMOE, name="made", quiet=True)
    build(HuggingFace(family="olmoe")).export(run.path / "checkpoints" / "last", Path("out"))
    model = transformers.AutoModelForCausalLM.from_pretrained("out")
    found = [model.generation_config, model.config]
    assert run.tokenizer is not None
    assert [each.eos_token_id for each in found] == [run.tokenizer.end] * 2
    assert [(each.bos_token_id, each.pad_token_id) for each in found] == [(None, None)] * 2
    model(torch.tensor([[1, 2, 3]])).logits.square().mean().backward()
    assert model.get_input_embeddings().weight.grad[1].abs().sum() > 0


def test_targets_of_pairs_start_and_end_with_the_token_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And do so after an import and another export."""
    monkeypatch.chdir(tmp_path)
    run = moekit.train(SWITCH, name="made", quiet=True)
    build(HuggingFace()).export(run.path / "checkpoints" / "last", Path("out"))
    config = json.loads(Path("out/config.json").read_text())
    assert run.tokenizer is not None and run.tokenizer.end == 256
    ids = dict.fromkeys(("decoder_start_token_id", "eos_token_id", "pad_token_id"), 256)
    assert {name: value for name, value in config.items() if name.endswith("token_id")} == {"bos_token_id": None, **ids}
    import_folder(Path("out"), Path("again"))
    build(HuggingFace()).export(Path("again/checkpoints/step-00000000"), Path("back"))
    assert json.loads(Path("back/config.json").read_text()) == config


def test_what_belongs_to_tokenizer_and_generation_is_kept_and_code_is_not(run: Path) -> None:
    out = exported(run)
    for name, text in EXTRA.items():
        assert (out / name).is_file() == (not name.endswith(".py"))
        assert name.endswith(".py") or (out / name).read_text() == text


def test_several_files_have_an_index_that_is_right(run: Path) -> None:
    out = exported(run, shard_gb=1e-5)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    expected = mixtral_tensors()
    assert index["metadata"]["total_size"] == sum(4 * t.numel() for t in expected.values())
    for file in files:
        tensors = load_file(out / file)
        assert len(tensors) == 1 or sum(4 * t.numel() for t in tensors.values()) <= 1e4
        assert all(index["weight_map"][name] == file and torch.equal(t, expected[name]) for name, t in tensors.items())
    assert Folder(out).shapes() == Folder(run.parent / "m").shapes()


def test_another_dtype(run: Path) -> None:
    out = exported(run, dtype="bfloat16")
    found = load_file(out / "model.safetensors")
    assert all(torch.equal(found[name], t.bfloat16()) for name, t in mixtral_tensors().items())
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_number_that_a_dtype_does_not_hold_is_refused(tmp_path: Path) -> None:
    """With the tensor's name, and nothing is left; bfloat16 holds it."""
    name, tensors = "model.layers.1.block_sparse_moe.experts.2.w2.weight", mixtral_tensors()
    tensors[name][3, 4] = -7e4
    run = tmp_path / "run"
    import_folder(write_folder(tmp_path / "m", tensors), run)
    message = (
        rf"{re.escape(name)} has the number 70000, but float16 holds numbers up to 65504\n  expected dtype=bfloat16"
    )
    with pytest.raises(FormatError, match=message):
        exported(run, dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "run"]
    assert torch.equal(load_file(exported(run, dtype="bfloat16") / "model.safetensors")[name], tensors[name].bfloat16())


def test_a_folder_that_exists_is_kept(run: Path) -> None:
    (run.parent / "out").mkdir()
    with pytest.raises(FormatError, match="out exists already"):
        exported(run)
    assert list((run.parent / "out").iterdir()) == []


def test_a_failed_export_leaves_nothing(run: Path) -> None:
    (file,) = run.glob("checkpoints/step-*/*.safetensors")
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(MoekitError, match="is damaged"):
        exported(run)
    assert sorted(path.name for path in run.parent.iterdir()) == ["m", "run"]


@pytest.mark.parametrize(
    ("recipe", "family"),
    [
        ("mixtral-8x22b", "mixtral"),
        ("olmoe-1b-7b", "olmoe"),
        ("qwen1.5-moe-a2.7b", "qwen2-moe"),
        ("qwen3-235b-a22b", "qwen3-moe"),
        ("kimi-k2", "deepseek-v3"),
        ("moonlight-16b-a3b", "deepseek-v3"),
        ("deepseek_v3-671b", "deepseek-v3"),
        ("glm-4.5-air", "glm4-moe"),
        ("glm-4.5", "glm4-moe"),
        ("minimax-m2", "minimax-m2"),
        ("gpt-oss-20b", "gpt-oss"),
        ("phi-3.5-moe", "phimoe"),
        ("llama-4-scout", "llama4"),
        ("llama-4-maverick", "llama4"),
        ("switch-base-8", "switch-transformers"),
        ("base/language_model", "llama"),
    ],
)
def test_a_model_finds_its_family(recipe: str, family: str) -> None:
    assert format_for(load(recipe).model)[0] == family


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.moe.router.scale=2.0"], r"'mixtral' differs in:\n  model\.moe\.router\.scale: 2\.0 here, 1\.0 there"),
        (["model.moe.shared={use: glu, hidden: 8}"], "model.moe.shared"),
        (["model.moe.balancers={b: {use: sign_bias}}"], r"balancers\.b: a selection bias here, None there"),
        (
            ["model.moe.dispatcher={use: capacity, factor: 1.0}"],
            r"model\.moe\.dispatcher\.use: capacity here, None there",
        ),
    ],
)
def test_a_model_of_no_family_is_refused_with_what_differs(overrides: list[str], message: str) -> None:
    model = load("mixtral-8x7b", overrides).model
    with pytest.raises(FormatError, match=f"(?s)no format of mixtral can express this model; .*{message}"):
        format_for(model, "mixtral")


def test_options_of_training_do_not_matter() -> None:
    more = ["model.init_std=0.01", "model.recompute=blocks", "model.moe.dispatcher={use: loop}"]
    more += ["model.moe.balancers={load: {use: load_balance, weight: 0.3}}", "model.moe.router.input_jitter=0.1"]
    assert format_for(load("mixtral-8x7b", more).model)[0] == "mixtral"


def test_a_format_that_there_is_not() -> None:
    with pytest.raises(UnknownName, match="did you mean 'mixtral'"):
        format_for(load("mixtral-8x7b").model, "mixtrall")

"""Damage to a folder is reported by name, before anything is written; no pickle is read, no path leaves the folder."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_folders import mixtral_tensors, write_folder

from moekit_hf import folder as folders
from moekit_hf.fields import FormatError
from moekit_hf.folder import BLOCK, FLOATS, Folder, is_finite, located
from moekit_hf.importing import import_folder

GATE = "model.layers.1.block_sparse_moe.gate.weight"
W1 = "model.layers.0.block_sparse_moe.experts.2.w1.weight"


def refused(path: Path, message: str) -> None:
    """The import fails with the message, and leaves no run."""
    run = path.parent / "run"
    with pytest.raises(FormatError, match=f"(?s){message}"):
        import_folder(path, run)
    assert not run.exists()


def test_a_missing_tensor(tmp_path: Path) -> None:
    tensors = mixtral_tensors()
    del tensors[GATE]
    refused(write_folder(tmp_path / "m", tensors), f"missing: {re.escape(GATE)}")


def test_a_tensor_too_many(tmp_path: Path) -> None:
    tensors = mixtral_tensors() | {"model.layers.7.norm.weight": torch.zeros(16)}
    refused(write_folder(tmp_path / "m", tensors), r"not of this family: model\.layers\.7\.norm\.weight")


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    tensors = mixtral_tensors() | {W1: torch.zeros(16, 12)}
    refused(
        write_folder(tmp_path / "m", tensors), rf"of another shape: {re.escape(W1)} is \[16, 12\], expected \[12, 16\]"
    )


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_a_value_that_is_not_finite(tmp_path: Path, value: float, word: str) -> None:
    tensors = mixtral_tensors()
    tensors[W1][3, 4] = value
    refused(write_folder(tmp_path / "m", tensors), rf"model\.safetensors: {re.escape(W1)} has a {word}")


def test_a_dtype_that_weights_do_not_have(tmp_path: Path) -> None:
    tensors = mixtral_tensors()
    tensors[GATE] = tensors[GATE].to(torch.int8)
    refused(
        write_folder(tmp_path / "m", tensors), f"{re.escape(GATE)} has dtype int8\n.*quantised weights are not read"
    )


def test_two_dtypes_in_one_tensor_of_ours(tmp_path: Path) -> None:
    tensors = mixtral_tensors()
    tensors[W1] = tensors[W1].half()
    refused(write_folder(tmp_path / "m", tensors), "one dtype is expected")


def test_a_truncated_file(tmp_path: Path) -> None:
    file = write_folder(tmp_path / "m") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(tmp_path / "m", r"model\.safetensors is not a valid safetensors file")


def test_an_index_over_several_files_is_read(tmp_path: Path) -> None:
    single, several = write_folder(tmp_path / "single"), write_folder(tmp_path / "several", shards=3)
    one, other = Folder(single), Folder(several)
    assert one.shapes() == other.shapes()
    shape = one.shapes()[W1]
    assert torch.equal(one.read(W1, (0, 0), shape), other.read(W1, (0, 0), shape))
    assert torch.equal(one.read(W1, (2, 0), (1, 16)), mixtral_tensors()[W1][2:3])


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../secret.safetensors", r"it names '\.\./secret\.safetensors' for .*expected the name of a .*in this folder"),
        ("/etc/secret.safetensors", "it names '/etc/secret"),
        ("model.bin", r"it names 'model\.bin'"),
        ("gone.safetensors", r"it names 'gone\.safetensors', which is not in the folder"),
        (FIRST, f"{FIRST}: it and the index .* differ: .* is in the index, but not in it"),
        (None, f"{SECOND}: it and the index .* differ: it holds .*, which is not"),
        (3, "it has no weight_map"),
    ],
)
def test_an_index_that_is_wrong(tmp_path: Path, file: str | None, message: str) -> None:
    path = write_folder(tmp_path / "m", shards=2)
    (tmp_path / "secret.safetensors").write_bytes((path / SECOND).read_bytes())
    index = json.loads((path / folders.INDEX).read_text())
    where = index["weight_map"]
    name = next(name for name in where if where[name] == SECOND)
    if file is None:
        del where[name]
    else:
        where[name] = file
    (path / folders.INDEX).write_text(json.dumps(index))
    refused(path, message)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path: Path, name: str) -> None:
    path = write_folder(tmp_path / "m")
    (path / "model.safetensors").rename(path / name)
    refused(
        path, rf"{re.escape(name)} is a pickle.*is not read\n  convert it, if you trust it: python -c .*save_pretrained"
    )


def test_an_encoder_decoder_is_converted_by_the_class_that_loads_it(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "m", is_encoder_decoder=True)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(FormatError, match="from transformers import AutoModelForSeq2SeqLM as A"):
        Folder(path).shapes()


def test_a_folder_without_weights_or_configuration(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "m")
    (path / "model.safetensors").unlink()
    refused(path, r"has no weights\n  expected model\.safetensors")
    (path / "config.json").unlink()
    refused(path, r"cannot read .*config\.json: No such file")
    refused(tmp_path / "nowhere", "is not a folder")


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "holds a list; expected a mapping")])
def test_a_configuration_that_is_damaged(tmp_path: Path, text: str, message: str) -> None:
    path = write_folder(tmp_path / "m")
    (path / "config.json").write_text(text)
    refused(path, rf"config\.json.* {message}")


def test_a_damaged_tokenizer(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "m")
    (path / "tokenizer.json").write_text("{}")
    refused(path, r"tokenizer\.json: not a tokenizer\.json")
    (path / "tokenizer.json").write_bytes(b"ab\xff")
    refused(path, r"tokenizer\.json is not UTF-8 text: byte 2")
    (path / "tokenizer.json").unlink()
    os.mkfifo(path / "tokenizer.json")
    refused(path, r"cannot read .*tokenizer\.json: Not a regular file")


def test_a_configuration_of_far_more_than_the_weights_is_refused_before_its_tensors_are_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "m", num_local_experts=10**12)
    refused(path, r"describes a model of 1,\d\d\d,.* numbers, but the files hold 1\d,\d\d\d\n")


def test_a_header_that_is_a_list(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "m")
    (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    refused(path, "the header is not a mapping")


def test_a_name_without_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(FormatError, match=r"owner/name is not a folder here\n  to fetch .*pip install 'moekit\[hf\]'"):
        located("owner/name")
    assert located("a/b/c") == Path("a/b/c")
    Path("owner/name").mkdir(parents=True)
    assert located("owner/name") == Path("owner/name")


def test_tensors_of_the_hubs_own_library_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6.0).view(2, 3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert torch.equal(Folder(tmp_path).read("a", (1, 0), (1, 3)), torch.tensor([[3.0, 4.0, 5.0]]))


def test_code_of_a_repository_is_named_by_its_configuration_and_never_run(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "configuration_mine.Config", "AutoModelForCausalLM": "modeling_mine.Model"}
    path = write_folder(tmp_path / "m", auto_map=auto_map)
    for name in ("configuration_mine", "modeling_mine"):
        (path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(9)\n")
    import_folder(path, tmp_path / "run")
    assert not (tmp_path / "ran").exists()
    assert list((tmp_path / "run").rglob("*.py")) == [], "nor is it copied"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_local_experts": None, "n_experts": 3}, r"this family knows no field n_experts=3\n.*nothing is imported"),
        ({"num_hidden_layers": None, "layer_types": ["full_attention"] * 2}, "field 'num_hidden_layers' is missing"),
        ({"num_local_experts": [3, 3]}, r"num_local_experts=\[3, 3\] is not a whole number above 0"),
    ],
)
def test_a_configuration_of_another_version_is_refused_by_the_field_that_it_renamed(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    refused(write_folder(tmp_path / "m", transformers_version="9.0.0", **fields), message)


def test_a_version_alone_changes_nothing(tmp_path: Path) -> None:
    import_folder(write_folder(tmp_path / "m", transformers_version="9.0.0"), tmp_path / "run")


def test_a_path_through_a_folder_above_is_not_followed_to_any_file(tmp_path: Path) -> None:
    """Neither upwards nor below, nor under a name that only looks like a file of weights."""
    for file in ("sub/model.safetensors", "..\\model.safetensors", ".hidden.safetensors", "a.safetensors/../x", ""):
        path = write_folder(tmp_path / f"m{abs(hash(file))}", shards=2)
        index = json.loads((path / folders.INDEX).read_text())
        index["weight_map"][GATE] = file
        (path / folders.INDEX).write_text(json.dumps(index))
        with pytest.raises(FormatError, match=rf"it names '{re.escape(file)}' for {re.escape(GATE)}"):
            Folder(path).shapes()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_number_that_is_not_finite_is_found_wherever_it_is(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    extremes = torch.tensor([info.max, info.min, info.tiny, -info.tiny, 0.0, -0.0], dtype=dtype)
    fine = torch.cat([extremes.repeat(BLOCK // 4), torch.full((7,), info.max, dtype=dtype)])
    assert is_finite(fine) and is_finite(fine[:0]) and len(fine) > BLOCK
    for bad in (math.nan, -math.nan, math.inf, -math.inf):
        for at in (0, BLOCK - 1, BLOCK, len(fine) - 1):
            changed = fine.clone()
            changed[at] = bad
            assert not is_finite(changed), (bad, at)

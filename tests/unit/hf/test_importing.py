"""An imported folder is a run: it opens, generates and trains; one tensor at a time is in memory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_folders import CONFIG, byte_level_tokenizer, framed, mixtral_tensors, write_folder

import moekit
from moekit import MoekitError
from moekit.checkpoints.safetensors_file import TensorFile
from moekit.cli import main
from moekit.errors import CheckpointError, SpecError
from moekit.inference.generate import sample
from moekit.spec import to_plain
from moekit_hf.cli.inspect_folder import lines_of
from moekit_hf.fields import FormatError
from moekit_hf.importing import context_of, import_folder, recipe_of
from moekit_hf.importing import inspect as inspect_folder


def with_tokenizer(path: Path, **fields: Any) -> Path:
    write_folder(path, **fields)
    (path / "tokenizer.json").write_text(byte_level_tokenizer())
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    return path


def test_every_weight_is_where_it_belongs(tmp_path: Path) -> None:
    import_folder(write_folder(tmp_path / "m"), tmp_path / "run")
    ours, theirs = moekit.open(tmp_path / "run").model.state_dict(), mixtral_tensors()
    experts = "model.layers.1.block_sparse_moe.experts"
    gate_up = ours["blocks.1.ffn.experts.w_gate_up_EHD"]
    for e in range(3):
        assert torch.equal(gate_up[e, :12], theirs[f"{experts}.{e}.w1.weight"])
        assert torch.equal(gate_up[e, 12:], theirs[f"{experts}.{e}.w3.weight"])
        assert torch.equal(ours["blocks.1.ffn.experts.w_down_EOH"][e], theirs[f"{experts}.{e}.w2.weight"])
    assert torch.equal(ours["blocks.0.attention.out.weight"], theirs["model.layers.0.self_attn.o_proj.weight"])
    assert sum(t.numel() for t in ours.values()) == sum(t.numel() for t in theirs.values())


def test_an_imported_run_generates_text_and_names_its_end(tmp_path: Path) -> None:
    import_folder(with_tokenizer(tmp_path / "m"), tmp_path / "run")
    run = moekit.open(tmp_path / "run")
    assert isinstance(run.generate("the cat", tokens=5), str)
    assert run.tokenizer is not None and run.tokenizer.end == 0
    assert run.tokenizer.decode(run.tokenizer.encode("the cat sat")) == "the cat sat"
    assert run.outcome == {} and run.metrics == {}


def read_by(run: moekit.Run, prompt: str, **options: Any) -> list[list[int]]:
    """The tokens that the model reads in each step of generating."""
    seen: list[list[int]] = []
    embedding = run.model.get_submodule("embedding")
    hook = embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].tolist()))
    "".join(run.stream(prompt, temperature=0, **options))
    hook.remove()
    return seen


def test_a_prompt_begins_as_the_tokenizer_says_and_is_read_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though training cuts text into windows of 256 tokens; beyond the model's own context, a line says so."""
    path = with_tokenizer(tmp_path / "m", max_position_embeddings=300, eos_token_id=299)
    (path / "tokenizer.json").write_text(framed(byte_level_tokenizer(), "<|end|>", "<|user|>"))
    import_folder(path, tmp_path / "run")
    run = moekit.open(tmp_path / "run")
    assert run.tokenizer is not None
    short, long = "cat " * 270, "cat " * 400
    ids, more = (run.tokenizer.encode(text).tolist() for text in (short, long))
    assert 256 < len(ids) < 298 and 300 < len(more) and 0 not in more
    assert [len(step) for step in read_by(run, short, tokens=3)] == [1 + len(ids), 1, 1]  # by a cache
    assert read_by(run, short, tokens=1) == [[0, *ids]] and capsys.readouterr().err == ""
    assert read_by(run, long, tokens=1) == [more[-300:]]
    assert f"of the prompt's {len(more) + 1} tokens the model reads the last 300; for more" in capsys.readouterr().err
    assert read_by(run, long, tokens=1, context=7) == [more[-7:]] and "the last 7;" in capsys.readouterr().err
    assert read_by(run, long, tokens=1, context=0) == [[0, *more]] and capsys.readouterr().err == ""
    assert main(["generate", str(run.path), "a", "--context", "-1"]) == 2
    assert "--context -1 is out of range" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "context"),
    [
        ({}, 64),
        ({"max_position_embeddings": None}, 0),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 256),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}, 64),
        ({"rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}}, 256),
    ],
)
def test_the_context_is_that_of_the_configuration(fields: dict[str, Any], context: int) -> None:
    assert context_of({**CONFIG, **fields}) == context


def test_a_text_ends_where_the_configuration_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after training on; what the tokens of a training set are does not change."""
    monkeypatch.chdir(tmp_path)
    path = with_tokenizer(tmp_path / "m", eos_token_id=7)
    import_folder(path, tmp_path / "one")
    one = moekit.open("one")
    (first, *_) = sample(one.model, one.tokenizer.encode("the cat"), tokens=5, temperature=0)  # type: ignore[union-attr]
    assert first != 7 and one.generate("the cat", tokens=5, temperature=0) != ""
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, first]}))
    import_folder(path, tmp_path / "two")
    two = moekit.open("two")
    assert two.generate("the cat", tokens=5, temperature=0) == ""
    assert two.tokenizer is not None and two.tokenizer.stream([b"the cat"]).tolist()[-1] == 0 == two.tokenizer.end
    tuned = moekit.train("two", SMALL, name="tuned", quiet=True)
    assert tuned.tokenizer is not None and list(tuned.tokenizer.stops) == [7, first]
    assert getattr(tuned.recipe.model, "context") == 64  # noqa: B009
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": "</s>"}))
    with pytest.raises(FormatError, match="eos_token_id='</s>' is not a token's number"):
        import_folder(path, tmp_path / "three")


def test_without_a_tokenizer_there_is_a_model_and_no_text(tmp_path: Path) -> None:
    import_folder(write_folder(tmp_path / "m"), tmp_path / "run")
    run = moekit.open(tmp_path / "run")
    assert run.model(torch.tensor([[1, 2]])).y.shape == (1, 2, 300)
    with pytest.raises(MoekitError, match="it cannot generate text"):
        run.generate("a")


def test_training_starts_from_the_imported_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with another balancer, by an override; and the run that it makes needs the imported one no more."""
    monkeypatch.chdir(tmp_path)
    import_folder(with_tokenizer(tmp_path / "m"), tmp_path / "imported")
    small = ["data.seq=16", "data.megabytes=0.1", "data.validation_windows=2", "trainer.max_steps=1"]
    frozen = ["optimizer.lr=1e-30", "optimizer.weight_decay=0"]
    load = "model.moe.balancers={load: {use: load_balance, weight: 0.01}}"
    run = moekit.train("imported", [*small, *frozen, load], name="tuned", quiet=True)
    before, after = moekit.open("imported").model.state_dict(), run.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run.recipe.model.moe.balancers["load"].weight == 0.01  # type: ignore[attr-defined]
    assert run.tokenizer is not None and run.tokenizer.end == 0
    assert isinstance(run.generate("the", tokens=2), str)


SMALL = ["data.seq=16", "data.megabytes=0.1", "data.validation_windows=2", "trainer.max_steps=1", "optimizer.lr=1e-30",
         "optimizer.weight_decay=0"]  # fmt: skip


def test_a_balancer_may_have_a_state_that_the_imported_run_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other way round, if ``fresh`` names it: a selection bias is not lost in silence."""
    monkeypatch.chdir(tmp_path)
    import_folder(with_tokenizer(tmp_path / "m"), tmp_path / "imported")
    bias = "model.moe.balancers={bias: {use: sign_bias, rate: 0.5}}"
    run = moekit.train("imported", [*SMALL, bias], name="biased", quiet=True)
    assert float(run.model.state_dict()["blocks.0.ffn.balancers.bias.bias_E"].abs().max()) == 0.5
    start = ["model.moe.balancers={bias: null}", f"start.run={run.path}"]
    with pytest.raises(CheckpointError, match=r"not in the model: blocks\.0\.ffn\.balancers\.bias\.bias_E"):
        moekit.train(run.path / "spec.yaml", [*SMALL, *start], quiet=True)
    start += ["start.fresh=[balancers]"]
    again = moekit.train(run.path / "spec.yaml", [*SMALL, *start], name="plain", quiet=True)
    assert not any("balancers" in name for name in again.model.state_dict())
    before = moekit.open("imported").model.state_dict()
    assert all(torch.equal(t, before[name]) for name, t in again.model.state_dict().items())


def test_another_router_begins_with_initial_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    import_folder(with_tokenizer(tmp_path / "m"), tmp_path / "imported")
    router = [*SMALL, "model.moe.router={use: noisy_topk, top_k: 2}"]
    with pytest.raises(CheckpointError, match="its weights are not those of this model"):
        moekit.train("imported", router, quiet=True)
    with pytest.raises(SpecError, match=r"(?s)no tensor has 'routers' in its name.*router"):
        moekit.train("imported", [*router, "start.fresh=[routers]"], quiet=True)
    run = moekit.train("imported", [*router, "start.fresh=[router]"], quiet=True)
    before, after = moekit.open("imported").model.state_dict(), run.model.state_dict()
    assert all(torch.equal(t, before[name]) for name, t in after.items() if ".router." not in name)


def test_other_data_keeps_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In training and in eval, though this data has bytes by default; another is refused, and the right one named."""
    monkeypatch.chdir(tmp_path)
    import_folder(with_tokenizer(tmp_path / "m"), tmp_path / "imported")
    Path("mine").mkdir()
    for i in range(4):
        Path(f"mine/{i}.txt").write_text(f"the cat sat, so much text of my own, {i}\n" * 40)
    mine = ["data.use=text_files", "data.path=mine", "data.seq=16", "data.cache=cache", "data.validation=0.4"]
    run = moekit.train("imported", [*mine, "trainer.max_steps=1"], name="tuned", quiet=True)
    tokenizer = getattr(moekit.open("imported").recipe.data, "tokenizer")  # noqa: B009
    assert getattr(run.recipe.data, "tokenizer") == tokenizer and run.tokenizer is not None  # noqa: B009
    assert run.tokenizer.decode(run.tokenizer.encode("the cat sat")) == "the cat sat"
    assert main(["eval", "imported", *mine]) == 0
    assert "bits per byte" in capsys.readouterr().out
    for verb in ("train", "eval"):
        assert main([verb, "imported", *mine, "data.tokenizer=bytes"]) == 2
        assert """data.tokenizer='{"use": "hf/tokenizer_json", "vocab": 300""" in capsys.readouterr().err


def test_an_imported_run_cannot_be_resumed(tmp_path: Path) -> None:
    import_folder(with_tokenizer(tmp_path / "m"), tmp_path / "run")
    with pytest.raises(CheckpointError, match="not a whole checkpoint of a run"):
        moekit.train(resume=tmp_path / "run", quiet=True)


def test_no_more_than_one_tensor_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight experts, one at a time is read and written, though ours is one tensor of all."""
    path = write_folder(tmp_path / "m", shards=2)
    largest = max(t.numel() for t in mixtral_tensors().values())
    read, pieces = TensorFile.read, []

    def watched(self: TensorFile, name: str, offset: tuple[int, ...], sizes: tuple[int, ...]) -> torch.Tensor:
        pieces.append(math.prod(sizes))
        return read(self, name, offset, sizes)

    monkeypatch.setattr(TensorFile, "read", watched)
    import_folder(path, tmp_path / "run")
    assert max(pieces) == largest and sum(pieces) == sum(t.numel() for t in mixtral_tensors().values())
    found = inspect_folder(path)
    sizes = [p.numel() for p in found.table.pieces("blocks.0.ffn.experts.w_gate_up_EHD", found.folder.read)]
    assert sizes == [12 * 16] * 2 * 3


def test_bfloat16_stays_bfloat16_in_the_checkpoint(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in mixtral_tensors().items()}
    import_folder(write_folder(tmp_path / "m", tensors), tmp_path / "run")
    (file,) = (tmp_path / "run").glob("checkpoints/step-*/*.safetensors")
    assert {t.dtype for t in load_file(file).values()} == {torch.bfloat16}
    norm = moekit.open(tmp_path / "run").model.state_dict()["norm.weight"]
    assert torch.equal(norm, tensors["model.norm.weight"].float())


def test_an_existing_run_is_kept(tmp_path: Path) -> None:
    path, run = write_folder(tmp_path / "m"), tmp_path / "run"
    import_folder(path, run)
    with pytest.raises(MoekitError, match="run exists already"):
        import_folder(path, run)
    assert moekit.open(run).model is not None


def test_inspect_reads_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorFile, "read", None)
    found = inspect_folder(write_folder(tmp_path / "m"))
    assert found.name == "mixtral" and len(found.table.theirs) == 3 + 2 * (2 + 4 + 1 + 9)


@pytest.mark.parametrize(
    ("fields", "weight", "said"),
    [
        ({"output_router_logits": True, "router_aux_loss_coef": 0.02}, 0.02, "of all layers together, weight 0.02"),
        ({"output_router_logits": True}, 0.001, "of all layers together, weight 0.001"),
        ({"router_aux_loss_coef": 0.02}, 0.0, "router_aux_loss_coef=0.02 is not used"),
        ({}, 0.0, ""),
    ],
)
def test_the_balance_loss_is_that_of_transformers_and_is_said(
    tmp_path: Path, fields: dict[str, Any], weight: float, said: str
) -> None:
    found = inspect_folder(write_folder(tmp_path / "m", **fields))
    assert found.balance_weight == weight
    lines = "\n".join(lines_of(found))
    assert said in lines and ("balance loss" in lines) == bool(said)
    recipe = recipe_of(found, tmp_path / "run")
    assert to_plain(recipe)["objective"]["pooled_balance"] == weight


def test_a_weight_of_the_balance_loss_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", output_router_logits=True, router_aux_loss_coef="high")
    with pytest.raises(FormatError, match="router_aux_loss_coef='high' is not a number of at least 0"):
        inspect_folder(folder)

"""The commands, as a person types them: train, go on, generate; and what bad input comes to."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

import moekit
from moekit.checkpoints.reading import open_checkpoint
from moekit.cli import main
from moekit.contracts import Batch
from moekit.spec import load
from moekit.training.module import LitMoE
from moekit.training.run.metrics_log import read_metrics

TINY = [
    "model.dim=16", "model.depth=2", "model.ffn.hidden=16", "model.mtp=null", "model.moe.experts.count=8",
    "model.moe.experts.hidden=8", "model.moe.shared.hidden=8", "model.moe.router.top_k=2", "model.moe.router.groups=2",
    "model.moe.router.top_groups=1", "model.attention={use: gqa, heads: 2, kv_heads: 1, head_dim: 8}",
    "data.seq=16", "data.batch=2", "data.validation_windows=2", "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs go; with a folder of text beside it."""
    root = tmp_path_factory.mktemp("e2e")
    for i in range(4):
        (root / f"{i}.txt").write_text(f"the quick brown fox {i} jumps over the lazy dog. " * 20)
    return root


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    """A finished run of deepseek_v3, very small, with its comparison."""
    code = main(["train", "deepseek_v3", *text(root), *TINY, "trainer.max_steps=4", "--out", str(root / "runs")])
    assert code == 0
    (folder,) = (root / "runs" / "deepseek_v3").iterdir()
    return folder


def text(root: Path) -> list[str]:
    return ["data.use=text_files", f"data.path={root}", "data.validation=0.3"]


def last_step(run: Path) -> int:
    return int(open_checkpoint(run / "checkpoints" / "last").plain["global_step"])


def test_a_run_folder_holds_everything(run: Path) -> None:
    names = {p.relative_to(run).as_posix() for p in run.rglob("*")}
    assert {
        "spec.yaml", "metrics.csv", "load.npz", "summary.json", "loss.png", "load.png", "tensorboard",
        "checkpoints/last", "checkpoints/best", "checkpoints/step-00000004/manifest.json", "dense/metrics.csv",
        "dense/spec.yaml",
    } <= names  # fmt: skip
    assert not [name for name in names if "tmp" in name]
    assert len([name for name in names if name.startswith("checkpoints/") and name.count("/") == 1]) in (4, 5)
    rows = read_metrics(run / "metrics.csv")
    assert list(rows) == [1, 2, 3, 4]
    names = {"train/loss", "train/max_violation", "train/dropped", "lr", "val/bits_per_byte", "val/max_violation"}
    assert names <= set(rows[4])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["validation"]["max_violation"] == rows[4]["val/max_violation"] > 0
    saved = load(run / "spec.yaml")
    assert saved.model.dim == 16  # type: ignore[attr-defined]
    assert open_checkpoint(run / "checkpoints" / "last").plain["hyper_parameters"]["spec"]["name"] == saved.name


def test_the_summary_compares_on_the_same_tokens(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    comparison = summary["comparison"]
    dense = read_metrics(run / "dense" / "metrics.csv")
    assert comparison["metric"] == "bits_per_byte"
    assert comparison["moe"] == summary["validation"]["bits_per_byte"]
    assert comparison["dense"] == dense[4]["val/bits_per_byte"]
    assert dense[4]["tokens"] == summary["tokens"] == 4 * 2 * 16
    assert load(run / "dense" / "spec.yaml").model.moe is None  # type: ignore[attr-defined]
    assert load(run / "dense" / "spec.yaml").optimizer.lr == load(run / "spec.yaml").compare.lr  # type: ignore[union-attr]


def test_resume_goes_on_in_the_same_folder(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_metrics(run / "metrics.csv")
    code = main(["train", "--resume", str(run), "trainer.max_steps=6", "--no-compare", "--out", str(root / "runs")])
    assert code == 0
    assert last_step(run) == 6
    after = read_metrics(run / "metrics.csv")
    assert list(after) == [1, 2, 3, 4, 5, 6]
    assert all(after[step]["train/loss"] == before[step]["train/loss"] for step in before)
    assert "going on" in capsys.readouterr().out


def test_a_resumed_run_equals_an_uninterrupted_one(root: Path) -> None:
    """Bit for bit, through the command line: 2 steps and 2 more against 4."""
    common = [
        *TINY,
        *text(root),
        "schedule=null",
        "model.moe.router.input_jitter=0.1",
        "model.init_std=0.3",
        "model.init_scale=null",
        "--no-compare",
    ]
    whole, parts = root / "whole", root / "parts"
    assert main(["train", "deepseek_v3", *common, "trainer.max_steps=4", "--out", str(whole)]) == 0
    assert main(["train", "deepseek_v3", *common, "trainer.max_steps=2", "--out", str(parts)]) == 0
    argv = ["train", "--resume", "deepseek_v3", "trainer.max_steps=4", "--no-compare", "--out", str(parts)]
    assert main(argv) == 0
    a, b = (open_checkpoint(next(folder.glob("*/*/checkpoints/last"))).whole() for folder in (whole, parts))
    assert a["global_step"] == b["global_step"] == 4
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])


def test_what_to_try_next_can_be_pasted(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path with a space is quoted, one with brackets is printed as it is, and the commands are the right ones."""
    monkeypatch.setattr("moekit.training.run.train.Console", lambda **_: Console(width=40))
    out = root / "my runs"
    options = [*text(root), *TINY, "trainer.max_steps=2", "--no-compare"]
    assert main(["train", "deepseek_v3", *options, "--name", "a [bold] run", "--out", str(out)]) == 0
    (folder,) = (out / "a [bold] run").iterdir()
    further = f"moekit train --resume '{folder}' trainer.max_steps=4"
    *_, first, second = capsys.readouterr().out.splitlines()  # each in one line, however narrow the terminal
    assert (first, second) == (f"try next  moekit generate '{folder}' \"The \"", f"          {further}")
    assert main(["train", *shlex.split(further)[2:-1], "--no-compare"]) == 0
    assert "after step 2: nothing is left to do" in " ".join(capsys.readouterr().out.split())


def test_interrupted_a_run_ends_its_step_and_goes_on_from_there(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    training_step = LitMoE.training_step

    def interrupted(module: LitMoE, batch: Batch, batch_idx: int) -> torch.Tensor:
        if batch_idx == 4:  # the first micro-batch of the third step
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(module, batch, batch_idx)

    monkeypatch.setattr(LitMoE, "training_step", interrupted)
    options = [*text(root), *TINY, "trainer.max_steps=40", "trainer.accumulate_grad_batches=2", "--no-compare"]
    assert main(["train", "deepseek_v3", *options, "--out", str(root / "interrupted")]) == 130
    (folder,) = (root / "interrupted" / "deepseek_v3").iterdir()
    out = capsys.readouterr().out
    assert "stopping after this step (Ctrl-C again: at once)" in out
    assert f"stopped at step 3; go on: moekit train --resume {folder}\n" in out
    assert last_step(folder) == 3
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert main(["train", "--resume", str(folder), "trainer.max_steps=4", "--no-compare"]) == 0
    assert last_step(folder) == 4


def test_stopped_in_the_dense_run_the_whole_run_goes_on(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = L.Trainer.fit

    def stopped_in_dense(trainer: L.Trainer, *args: Any, **options: Any) -> None:
        if Path(trainer.default_root_dir).name == "dense":
            raise KeyboardInterrupt
        fit(trainer, *args, **options)

    monkeypatch.setattr(L.Trainer, "fit", stopped_in_dense)
    options = [*text(root), *TINY, "trainer.max_steps=2", "--out", str(root / "stopped")]
    assert main(["train", "deepseek_v3", *options]) == 130
    (folder,) = (root / "stopped" / "deepseek_v3").iterdir()
    assert f"stopped at step 0; go on: moekit train --resume {folder}\n" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["train", "--resume", str(folder)]) == 0
    assert last_step(folder / "dense") == 2 and json.loads((folder / "summary.json").read_text())["comparison"]


def test_generate_speaks_and_repeats_itself(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for target in (str(run), "deepseek_v3", str(run / "checkpoints" / "last")):
        assert main(["generate", target, "the ", "--tokens", "12", "--out", str(root / "runs")]) == 0
        said.append(capsys.readouterr().out)
    assert said[0].startswith("the ") and len(said[0]) > 6
    assert said[0] == said[1] == said[2]
    for flag in ("--cache", "--no-cache"):
        assert main(["generate", str(run), "the ", "--tokens", "12", flag]) == 0
        assert capsys.readouterr().out == said[0]
    assert main(["generate", str(run), "the ", "--tokens", "12", "--seed", "1"]) == 0
    assert capsys.readouterr().out != said[0]


def test_1991_draws_its_regions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "jacobs1991", "trainer.accelerator=cpu", "stop.below=0.24", "--out", str(tmp_path)]) == 0
    (folder,) = (tmp_path / "jacobs1991").iterdir()
    assert (folder / "vowels.png").is_file() and (folder / "loss.png").is_file()
    assert not (folder / "load.npz").exists()  # under soft routing every expert sees every case
    summary = json.loads((folder / "summary.json").read_text())
    assert 0 < summary["stopped_after"] < 6000
    out = capsys.readouterr().out
    assert "reached" in out and "blend mse <= 0.24" in out and "vowels.png" in out


@pytest.mark.parametrize("options", [["trainer.limit_val_batches=0"], ["trainer.fast_dev_run=true"]])
def test_a_run_without_validation_ends_well(root: Path, tmp_path: Path, options: list[str]) -> None:
    argv = ["train", "deepseek_v3", *text(root), *TINY, "trainer.max_steps=2", *options, "--out", str(tmp_path)]
    assert main(argv) == 0
    (folder,) = (tmp_path / "deepseek_v3").iterdir()
    assert json.loads((folder / "summary.json").read_text())["comparison"] is None
    if "limit" in options[0]:
        assert last_step(folder) == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "deepseek_v4"], "unknown recipe 'deepseek_v4'"),
        (["train"], "name a recipe or a file"),
        (["train", "deepseek_v3", "trainer.max_step=3"], "the Trainer has no option 'max_step'"),
        (["train", "deepseek_v3", "trainer.precision=12"], "precision: 12 is none of its choices"),
        (["train", "deepseek_v3", "trainer.accelerator=abacus"], "the Trainer refuses its options"),
        (["train", "deepseek_v3", "data.use=text_files", "data.path=/nowhere"], "/nowhere"),
        (["train", "jacobs1991", "stop.metric=train/blend"], "did you mean 'train/blend_mse'?"),
        (["train", "jacobs1991", "--name", "../x"], "a run cannot be called '../x': that is no folder inside"),
        (["train", "jacobs1991", "--name", ""], "a run cannot be called '': that is no folder inside"),
        (["train", "--resume", "nothing"], "no run at 'nothing'"),
        (["train", "--resume", "nothing", "deepseek_v3"], "is no option=value"),
        (["generate", "nothing", "x"], "no run at 'nothing'"),
        (["export", "nothing"], "no run at 'nothing'"),
        (["generate", "nothing", ""], "the prompt is empty"),
        (["generate", "nothing", "x", "--top-p", "0"], "0 < --top-p <= 1"),
    ],
)
def test_bad_input_is_a_message_and_writes_nothing(
    argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not list(tmp_path.rglob("*"))


def test_where_nothing_can_be_written_is_told_before_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").write_text("a file is in the way")
    monkeypatch.setattr(LitMoE, "prepare", lambda module: pytest.fail("the data were asked for"))
    assert main(["train", "jacobs1991", "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr()
    assert f"cannot write a run to {tmp_path / 'runs' / 'jacobs1991'}: " in said.err and said.out == ""


def test_a_reader_that_leaves_a_run_hears_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under ``moekit train ... | head``; a line of the first step is the one that nobody reads."""

    class Head(StringIO):
        def write(self, text: str, /) -> int:
            if "step 1" in text:
                raise BrokenPipeError
            return super().write(text)

    monkeypatch.setattr("sys.stdout", head := Head())
    options = ["trainer.max_steps=3", "trainer.log_every_n_steps=1", "--no-compare", "--out", str(tmp_path)]
    assert main(["train", "jacobs1991", *options]) == 141
    assert "folder" in head.getvalue() and capsys.readouterr().err == ""


def test_a_damaged_checkpoint_is_named_and_so_are_whole_ones(
    run: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None is taken without being asked for; the one that is named is gone on from."""
    copy = root / "damaged" / "deepseek_v3" / run.name
    shutil.copytree(run, copy)
    *older, last = sorted(path for path in (copy / "checkpoints").glob("step-*"))
    tensors = last / "tensors-00001-of-00001.safetensors"
    whole = tensors.read_bytes()
    for damaged in (whole[:1000], whole[:-1] + bytes([whole[-1] ^ 1])):
        tensors.write_bytes(damaged)
        for argv in (["train", "--resume", str(copy)], ["generate", str(copy), "x"]):
            assert main(argv) == 2
            said = capsys.readouterr().err
            assert f"{tensors} is damaged: " in said
            assert f"intact checkpoints in this folder (pass one instead of the run):\n    {older[-1]}\n" in said
    assert last_step(copy) == int(last.name[5:])  # nothing was changed
    assert main(["train", "--resume", str(copy), "model.dim=32", "--no-compare"]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert main(["generate", str(older[-1]), "x", "--tokens", "2"]) == 0
    assert main(["train", "--resume", str(older[-1]), "--no-compare"]) == 0
    assert f"{older[-1].name}, after step {older[-1].name[-1]}" in " ".join(capsys.readouterr().out.split())
    assert read_metrics(copy / "metrics.csv").keys() == read_metrics(run / "metrics.csv").keys()
    a, b = (open_checkpoint(folder / "checkpoints" / "last").whole()["state_dict"] for folder in (copy, run))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_another_model_is_not_gone_on_with(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(run), "model.dim=32", "--out", str(root / "runs")]) == 2
    assert "model.dim: 16 in the checkpoint, 32 now" in capsys.readouterr().err


def test_weights_are_exported_for_others(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file, as the format's own package reads it; the spec in it makes the model that the weights fit."""
    out = tmp_path / "weights.safetensors"
    assert main(["export", str(run), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["moekit"] == moekit.__version__ and int(metadata["step"]) == last_step(run)
    model = moekit.build(load(json.loads(metadata["spec"])).model)
    model.load_state_dict(load_file(out))
    saved = open_checkpoint(run / "checkpoints" / "last").whole()["state_dict"]
    assert all(torch.equal(tensor, saved[f"model.{name}"]) for name, tensor in model.state_dict().items())
    before = out.read_bytes()
    assert main(["export", str(run), "--out", str(out)]) == 2
    assert f"{out} is there already" in capsys.readouterr().err and out.read_bytes() == before
    assert main(["export", str(run / "checkpoints" / "best")]) == 0
    beside = Path(capsys.readouterr().out.split()[-1])
    assert beside.parent == run and load_file(beside).keys() == load_file(out).keys()
    beside.unlink()


def test_a_model_of_cases_has_nothing_to_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "jacobs1991", "trainer.max_steps=2", "trainer.accelerator=cpu", "--out", str(tmp_path)]
    assert main(argv) == 0
    assert main(["generate", "jacobs1991", "x", "--out", str(tmp_path)]) == 2
    assert "is no language model" in capsys.readouterr().err

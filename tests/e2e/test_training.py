"""The commands as a user types them: train, resume, generate, export; and the errors for bad input."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_runs import TINY_V3

import moekit
from moekit.checkpoints.reading import open_checkpoint
from moekit.cli import main
from moekit.contracts import Batch
from moekit.spec import load
from moekit.training.module import LitMoE
from moekit.training.run.metrics_log import read_metrics
from moekit.training.run.outcome import steps_in_same_time

TINY = [*TINY_V3, "data.validation_windows=2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for runs, which also holds text."""
    root = tmp_path_factory.mktemp("e2e")
    for i in range(4):
        (root / f"{i}.txt").write_text(f"the quick brown fox {i} jumps over the lazy dog. " * 20)
    return root


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    """A finished run of deepseek_v3, very small, with its comparison."""
    assert train(root, root / "runs", "trainer.max_steps=4") == 0
    return only(root / "runs" / "deepseek_v3")


def train(root: Path, out: Path, *options: str) -> int:
    """``moekit train`` of a tiny deepseek_v3 on the text in ``root``."""
    text = ["data.use=text_files", f"data.path={root}", "data.validation=0.3"]
    return main(["train", "deepseek_v3", *text, *TINY, *options, "--out", str(out)])


def resume(run: str | Path, *options: str) -> int:
    return main(["train", "--resume", str(run), *options])


def only(folder: Path) -> Path:
    """The only run in a folder."""
    (run,) = folder.iterdir()
    return run


def contents(run: Path) -> dict[str, Any]:
    """The newest checkpoint of a run."""
    found: dict[str, Any] = open_checkpoint(run / "checkpoints" / "last").whole()
    return found


def last_step(run: Path) -> int:
    return int(open_checkpoint(run / "checkpoints" / "last").plain["global_step"])


def test_a_run_folder_holds_spec_metrics_plots_checkpoints_and_the_dense_baseline(run: Path) -> None:
    names = {p.relative_to(run).as_posix() for p in run.rglob("*")}
    assert {
        "spec.yaml", "metrics.csv", "summary.json", "loss.png", "load.png", "tensorboard", "routing/step-00000004.npz",
        "checkpoints/last", "checkpoints/best", "checkpoints/step-00000004/manifest.json", "dense/metrics.csv",
        "dense/spec.yaml",
    } <= names  # fmt: skip
    assert not [name for name in names if "tmp" in name]
    assert len([name for name in names if name.startswith("checkpoints/") and name.count("/") == 1]) in (4, 5)
    rows = read_metrics(run / "metrics.csv")
    assert list(rows) == [1, 2, 3, 4]
    names = {
        "train/loss",
        "train/max_violation",
        "train/dropped",
        "train/dropped_tokens",
        "lr",
        "val/bits_per_byte",
        "val/max_violation",
    }
    assert names <= set(rows[4])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["validation"]["max_violation"] == rows[4]["val/max_violation"] > 0
    saved = load(run / "spec.yaml")
    assert saved.model.dim == 16  # type: ignore[attr-defined]
    assert open_checkpoint(run / "checkpoints" / "last").plain["hyper_parameters"]["spec"]["name"] == saved.name


def test_the_summary_compares_with_the_dense_baseline_on_the_same_tokens(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    comparison = summary["comparison"]
    dense = read_metrics(run / "dense" / "metrics.csv")
    assert comparison["metric"] == "bits_per_byte"
    assert comparison["moe"] == summary["validation"]["bits_per_byte"]
    assert comparison["dense"] == dense[4]["val/bits_per_byte"]
    assert dense[4]["tokens"] == summary["tokens"] == 4 * 2 * 16
    assert load(run / "dense" / "spec.yaml").model.moe is None  # type: ignore[attr-defined]
    assert load(run / "dense" / "spec.yaml").optimizer.lr == load(run / "spec.yaml").compare.lr  # type: ignore[union-attr]


def test_the_dense_baseline_does_the_work_that_the_mixture_did_within_a_percent(root: Path, tmp_path: Path) -> None:
    """Not what its router chose: this one drops pairs, and sends few second choices."""
    options = ["compare={}", "model.dim=16", "model.attention.head_dim=4", "data.batch=2", "data.seq=16"]
    text = ["data.use=text_files", f"data.path={root}", "data.validation=0.3", "data.validation_windows=2"]
    model = ["model.ffn.hidden=200", "trainer.max_steps=4"]
    assert main(["train", "lineage/st_moe", *text, *options, *model, "--out", str(tmp_path)]) == 0
    (spec,) = tmp_path.glob("*/*/spec.yaml")
    summary = json.loads((spec.parent / "summary.json").read_text())
    rows, comparison = read_metrics(spec.parent / "metrics.csv"), summary["comparison"]
    computed = [row["train/experts_per_token"] for row in rows.values() if "train/experts_per_token" in row]
    assert len(computed) == 4 and summary["experts_per_token"] == pytest.approx(sum(computed) / 4)
    assert 0.9 < summary["experts_per_token"] < 1.9
    mixture, dense = load(spec).model, load(spec.parent / "dense" / "spec.yaml").model
    assert comparison["moe_work"] == summary["work"] == mixture.feed_forward_work(summary["experts_per_token"])
    assert comparison["dense_work"] == dense.feed_forward_work()
    assert comparison["dense_work"] == pytest.approx(comparison["moe_work"], rel=0.01)
    assert abs(comparison["dense_work"] / (mixture.feed_forward_work() or 1) - 1) > 0.02


def test_the_dense_model_trains_for_as_long_as_the_mixture_with_a_schedule_of_its_own(run: Path) -> None:
    comparison = json.loads((run / "summary.json").read_text())["comparison"]
    folder = run / "dense_as_long"
    steps = steps_in_same_time(read_metrics(run / "metrics.csv"), read_metrics(run / "dense" / "metrics.csv"))
    if not steps:  # this machine took as long for both
        assert comparison["dense_as_long"] is None and not folder.exists()
        return
    recipe, rows = load(folder / "spec.yaml"), read_metrics(folder / "metrics.csv")
    assert (recipe.trainer.max_steps, comparison["as_long_steps"], max(rows)) == (steps, steps, steps)
    assert replace(recipe, trainer=load(run / "dense" / "spec.yaml").trainer) == load(run / "dense" / "spec.yaml")
    assert comparison["dense_as_long"] == rows[steps]["val/bits_per_byte"]


def test_resume_continues_in_the_same_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_metrics(run / "metrics.csv")
    assert resume(run, "trainer.max_steps=6", "--no-compare", "--out", str(run.parents[1])) == 0
    assert last_step(run) == 6
    after = read_metrics(run / "metrics.csv")
    assert list(after) == [1, 2, 3, 4, 5, 6]
    assert all(after[step]["train/loss"] == before[step]["train/loss"] for step in before)
    assert "after step 4" in " ".join(capsys.readouterr().out.split())


def test_a_resumed_run_equals_an_uninterrupted_one(root: Path) -> None:
    """Bit for bit, through the command line: 2 steps and 2 more against 4."""
    noise = ["schedule=null", "model.moe.router.input_jitter=0.1", "model.init_std=0.3", "model.init_scale=null"]
    whole, parts = root / "whole", root / "parts"
    assert train(root, whole, *noise, "trainer.max_steps=4", "--no-compare") == 0
    assert train(root, parts, *noise, "trainer.max_steps=2", "--no-compare") == 0
    assert resume("deepseek_v3", "trainer.max_steps=4", "--no-compare", "--out", str(parts)) == 0
    a, b = (contents(only(out / "deepseek_v3")) for out in (whole, parts))
    assert a["global_step"] == b["global_step"] == 4
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])


def test_an_optimizer_option_given_on_resume_is_applied(root: Path) -> None:
    """The schedule of the longer run counts from the first resumed step, and ``spec.yaml`` says what was trained."""
    out = root / "options"
    assert train(root, out, "trainer.max_steps=2", "trainer.log_every_n_steps=1", "--no-compare") == 0
    folders = [only(out / "deepseek_v3"), out / "other" / "copy"]
    shutil.copytree(folders[0], folders[1])
    for folder, options in zip(folders, ([], ["optimizer.lr=1.0", "optimizer.weight_decay=9.0"]), strict=True):
        assert resume(folder, "trainer.max_steps=4", "--no-compare", *options) == 0
    rates = [[read_metrics(folder / "metrics.csv")[step]["lr"] for step in (3, 4)] for folder in folders]
    scale = 1.0 / load(folders[0] / "spec.yaml").optimizer.lr  # type: ignore[union-attr]
    assert rates[1] == pytest.approx([scale * rate for rate in rates[0]])
    a, b = (contents(folder) for folder in folders)
    assert load(folders[1] / "spec.yaml").optimizer.lr == 1.0  # type: ignore[union-attr]
    assert not all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
    assert {g["weight_decay"] for g in b["optimizer_states"][0]["param_groups"]} == {0.0, 9.0}


def test_the_commands_to_try_next_can_be_pasted(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path with a space is quoted, one with brackets is printed as it is, and the commands are the right ones."""
    monkeypatch.setattr("moekit.training.run.train.Console", lambda **_: Console(width=40))
    out = root / "my runs"
    assert train(root, out, "trainer.max_steps=2", "--no-compare", "--name", "a [bold] run") == 0
    folder = only(out / "a [bold] run")
    further = f"moekit train --resume '{folder}' trainer.max_steps=4"
    *_, first, second = capsys.readouterr().out.splitlines()  # each in one line, however narrow the terminal
    assert (first, second) == (f"try next  moekit generate '{folder}' \"The \"", f"          {further}")
    assert main(["train", *shlex.split(further)[2:-1], "--no-compare"]) == 0
    assert "after step 2: nothing is left to do" in " ".join(capsys.readouterr().out.split())


def test_an_interrupted_run_finishes_its_step_and_resumes_there(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    training_step = LitMoE.training_step

    def interrupted(module: LitMoE, batch: Batch, batch_idx: int) -> torch.Tensor:
        if batch_idx == 4:  # the first micro-batch of the third step
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(module, batch, batch_idx)

    monkeypatch.setattr(LitMoE, "training_step", interrupted)
    options = ["trainer.max_steps=40", "trainer.accumulate_grad_batches=2", "--no-compare"]
    assert train(root, root / "interrupted", *options) == 130
    folder = only(root / "interrupted" / "deepseek_v3")
    out = capsys.readouterr().out
    assert "stopping after this step (Ctrl-C again: " in out
    assert "stopped at step 3; " in out and f": moekit train --resume {folder}\n" in out
    assert last_step(folder) == 3
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert resume(folder, "trainer.max_steps=4", "--no-compare") == 0
    assert last_step(folder) == 4


def test_a_run_stopped_in_its_dense_baseline_resumes_there(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = L.Trainer.fit

    def stopped_in_dense(trainer: L.Trainer, *args: Any, **options: Any) -> None:
        if Path(trainer.default_root_dir).name == "dense":
            raise KeyboardInterrupt
        fit(trainer, *args, **options)

    monkeypatch.setattr(L.Trainer, "fit", stopped_in_dense)
    assert train(root, root / "stopped", "trainer.max_steps=2") == 130
    folder = only(root / "stopped" / "deepseek_v3")
    out = capsys.readouterr().out
    assert "stopped at step 0; " in out and f": moekit train --resume {folder}\n" in out
    monkeypatch.undo()
    assert resume(folder) == 0
    assert last_step(folder / "dense") == 2 and json.loads((folder / "summary.json").read_text())["comparison"]


def test_generate_repeats_itself_with_any_name_of_a_run_and_with_or_without_a_cache(
    run: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for target in (str(run), "deepseek_v3", str(run / "checkpoints" / "last")):
        assert main(["generate", target, "the ", "--tokens", "12", "--out", str(root / "runs")]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith("the ") and len(texts[0]) > 6
    assert texts[0] == texts[1] == texts[2]
    for flag in ("--cache", "--no-cache"):
        assert main(["generate", str(run), "the ", "--tokens", "12", flag]) == 0
        assert capsys.readouterr().out == texts[0]
    assert main(["generate", str(run), "the ", "--tokens", "12", "--seed", "1"]) == 0
    assert capsys.readouterr().out != texts[0]


def test_jacobs1991_stops_at_its_criterion_plots_decision_regions_and_cannot_generate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "jacobs1991", "trainer.accelerator=cpu", "stop.below=0.24", "--out", str(tmp_path)]) == 0
    folder = only(tmp_path / "jacobs1991")
    assert (folder / "vowels.png").is_file() and (folder / "loss.png").is_file()
    assert not (folder / "load.png").exists()  # under soft routing every expert sees every case
    summary = json.loads((folder / "summary.json").read_text())
    assert 0 < summary["stopped_after"] < 6000
    out = capsys.readouterr().out
    assert "reached" in out and "squared error of the blend <= 0.24" in out and "vowels.png" in out
    assert main(["generate", "jacobs1991", "x", "--out", str(tmp_path)]) == 2
    assert "language model" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["trainer.limit_val_batches=0"], ["trainer.fast_dev_run=true"]])
def test_a_run_without_validation_ends_without_a_comparison(
    root: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(root, tmp_path, "trainer.max_steps=2", *options) == 0
    folder = only(tmp_path / "deepseek_v3")
    said = capsys.readouterr().out
    listed = said[said.index("\nfiles  ") :].partition("\ntry next")[0].replace("\nfiles", "").replace("\npictures", "")
    assert "loss.png" in listed and [name for name in listed.split() if not (folder / name).exists()] == []
    assert (folder / "tensorboard").exists() == ("limit" in options[0])
    whole = f"moekit train {folder}/spec.yaml trainer.fast_dev_run=false"
    expected = f"moekit train --resume {folder} trainer.max_steps=4" if "limit" in options[0] else whole
    assert said.splitlines()[-1].strip() == expected
    assert json.loads((folder / "summary.json").read_text())["comparison"] is None
    if "limit" in options[0]:
        assert last_step(folder) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "deepseek_v4"], "unknown recipe 'deepseek_v4'"),
        (["train"], "list them: moekit ls recipes"),
        (["train", "deepseek_v3", "trainer.max_step=3"], "'trainer' has no option 'max_step'"),
        (["train", "deepseek_v3", "trainer.precision=12"], "precision: 12 is none of its choices"),
        (["train", "deepseek_v3", "trainer.accelerator=abacus"], " its options: "),
        (["train", "deepseek_v3", "data.use=text_files", "data.path=/nowhere"], "/nowhere"),
        (["train", "jacobs1991", "stop.metric=train/blend"], "did you mean 'train/blend_mse'?"),
        (["train", "jacobs1991", "--name", "../x"], "invalid run name '../x': "),
        (["train", "jacobs1991", "--name", ""], "invalid run name '': "),
        (["train", "--resume", "nothing"], "no run at 'nothing'"),
        (["train", "--resume", "nothing", "deepseek_v3"], "expected only path.to.option=value"),
        (["train", "--resume", "nothing", "--name", "x"], "--resume keeps the run's folder: it takes no --name x"),
        (["generate", "nothing", "x"], "no run at 'nothing'"),
        (["generate", "nothing", ""], "prompt is empty"),
        (["generate", "nothing", "caf\udce9"], "the prompt 'caf\\udce9' has bytes that are not UTF-8"),
    ],
)
def test_bad_input_is_an_error_message_and_writes_nothing(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(tmp_path.rglob("*"))


def test_a_run_to_export_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "nothing", str(tmp_path / "weights")]) == 2
    assert "no run at 'nothing'" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error_before_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").write_text("a file is in the way")
    monkeypatch.setattr(LitMoE, "prepare", lambda module: pytest.fail("the data were read"))
    assert main(["train", "jacobs1991", "--out", str(tmp_path / "runs")]) == 2
    printed = capsys.readouterr()
    assert f"cannot write a run to {tmp_path / 'runs' / 'jacobs1991'}: " in printed.err and printed.out == ""


def test_a_closed_pipe_ends_a_run_without_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under ``moekit train ... | head``; the pipe is closed when step 1 is printed."""

    class Head(StringIO):
        def write(self, text: str, /) -> int:
            if "step 1" in text:
                raise BrokenPipeError
            return super().write(text)

    monkeypatch.setattr("sys.stdout", head := Head())
    options = ["trainer.max_steps=3", "trainer.log_every_n_steps=1", "--no-compare", "--out", str(tmp_path)]
    assert main(["train", "jacobs1991", *options]) == 141
    assert "folder" in head.getvalue() and capsys.readouterr().err == ""


def test_a_damaged_checkpoint_is_an_error_that_lists_the_undamaged_ones(
    run: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """moekit never falls back to another checkpoint by itself; it resumes the one that is named."""
    copy = root / "damaged" / "deepseek_v3" / run.name
    shutil.copytree(run, copy)
    *older, last = sorted(path for path in (copy / "checkpoints").glob("step-*"))
    tensors = last / "tensors-00001-of-00001.safetensors"
    whole = tensors.read_bytes()
    for damaged in (whole[:1000], whole[:-1] + bytes([whole[-1] ^ 1])):
        tensors.write_bytes(damaged)
        for argv in (["train", "--resume", str(copy)], ["generate", str(copy), "x"]):
            assert main(argv) == 2
            error = capsys.readouterr().err
            assert f"{tensors} is damaged: " in error
            assert f":\n    {older[-1]}\n" in error
    assert last_step(copy) == int(last.name[5:])  # nothing was changed
    assert resume(copy, "model.dim=32", "--no-compare") == 2
    assert "is damaged" in capsys.readouterr().err
    assert main(["generate", str(older[-1]), "x", "--tokens", "2"]) == 0
    assert resume(older[-1], "--no-compare") == 0
    assert f"{older[-1].name}, after step {older[-1].name[-1]}" in " ".join(capsys.readouterr().out.split())
    assert read_metrics(copy / "metrics.csv").keys() == read_metrics(run / "metrics.csv").keys()
    a, b = (contents(folder)["state_dict"] for folder in (copy, run))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_run_of_another_model_cannot_be_resumed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume(run, "model.dim=32") == 2
    assert "model.dim: 16 in the checkpoint, 32 now" in capsys.readouterr().err


def test_export_writes_weights_and_a_spec_that_fits_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file, which the safetensors package reads."""
    out = tmp_path / "weights.safetensors"
    assert main(["export", str(run), str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["moekit"] == moekit.__version__ and int(metadata["step"]) == last_step(run)
    model = moekit.build(load(json.loads(metadata["spec"])).model)
    model.load_state_dict(load_file(out))
    saved = contents(run)["state_dict"]
    assert all(torch.equal(tensor, saved[f"model.{name}"]) for name, tensor in model.state_dict().items())
    before = out.read_bytes()
    assert main(["export", str(run), str(out)]) == 2
    error = capsys.readouterr().err
    assert str(out) in error and " already" in error and out.read_bytes() == before
    assert main(["export", str(run / "checkpoints" / "best")]) == 0
    default = Path(capsys.readouterr().out.split()[-1])
    assert default.parent == run and load_file(default).keys() == load_file(out).keys()
    default.unlink()

"""The parts of a run, each alone: meters, pace, files, folders, logs, options, words."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from moekit import CheckpointError, MoekitError, SpecError, load
from moekit.checkpoints.files import replace_file, step_name, write_pointer
from moekit.checkpoints.writing import save_tree
from moekit.inference.generate import draw, stream
from moekit.training.callbacks.load_history import LoadHistory
from moekit.training.callbacks.progress import metrics_line, validation_line
from moekit.training.metrics import Meter, Pace, ratios
from moekit.training.run.console import comparison_lines
from moekit.training.run.folder import RunFolder, check_writable, checkpoint_of
from moekit.training.run.metrics_log import RunLog, curve, read_metrics
from moekit.training.run.outcome import Outcome, compare, value_at
from moekit.training.run.prepare import make_trainer, quiet, trainer_options
from moekit.training.run.resume import check_same_model, differences, read_checkpoint
from moekit_optimizers.adafactor import Adafactor


def test_a_meter_weighs_by_the_denominators() -> None:
    meter = Meter()
    meter.add({"loss": (torch.tensor(6.0), torch.tensor(2))})
    meter.add({"loss": (torch.tensor(1.0), torch.tensor(5)), "bytes": (torch.tensor(3.0), torch.tensor(4))})
    assert ratios(meter.take(), "train/") == {"train/loss": 1.0, "train/bytes": 0.75}
    assert meter.take() == {} and ratios({}, "train/") == {}


def test_pace_leaves_pauses_out() -> None:
    now = [10.0]
    pace = Pace(clock=lambda: now[0])
    pace.start(seconds=100.0, tokens=50.0)
    now[0] = 12.0
    assert pace.lap(40.0) == pytest.approx(20.0)
    pace.pause()
    now[0] = 30.0
    assert pace.seconds == pytest.approx(102.0)
    pace.resume()
    now[0] = 31.0
    assert pace.seconds == pytest.approx(103.0)
    assert pace.lap(5.0) == pytest.approx(5.0)
    assert pace.tokens == 95.0


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    replace_file(path, lambda p: p.write_text("old"))

    def fail(p: Path) -> None:
        p.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    code = f"""
import os, signal
from pathlib import Path
from moekit.checkpoints.files import replace_file
replace_file(Path({str(path)!r}), lambda p: p.write_text("old"))
def die(p):
    p.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
replace_file(Path({str(path)!r}), die)
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    replace_file(path, lambda p: p.write_text("new"))  # the next process is not in the way of what was left
    assert path.read_text() == "new"


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    good, other = tmp_path / "step-00000001", tmp_path / "step-00000002"
    save_tree({"moekit": {}, "hyper_parameters": {"spec": {"model": {"use": "decoder"}}}}, good)
    assert "moekit" in read_checkpoint(good).plain
    for tree in ({"state_dict": {}}, {"moekit": {}}, [1]):
        save_tree(tree, other)
        with pytest.raises(CheckpointError, match=r"step-00000002 is no checkpoint of a moekit run"):
            read_checkpoint(other)
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*step-00000003"):
        read_checkpoint(tmp_path / "step-00000003")


def test_another_model_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    saved = {"model": {"dim": 16, "moe": {"top_k": 2}}, "optimizer": {"use": "adamw", "lr": 1}}
    check_same_model(tmp_path / "a.ckpt", saved, {**saved, "optimizer": {"use": "adamw", "lr": 2}})
    with pytest.raises(CheckpointError) as caught:
        check_same_model(tmp_path / "a.ckpt", saved, {**saved, "model": {"dim": 32, "moe": None}})
    assert str(caught.value).splitlines()[1:] == [
        "  model.dim: 16 in the checkpoint, 32 now",
        "  model.moe: {'top_k': 2} in the checkpoint, None now",
    ]
    with pytest.raises(CheckpointError, match=r"optimizer\.use: 'adamw' in the checkpoint, 'sgd' now"):
        check_same_model(tmp_path / "a.ckpt", saved, {**saved, "optimizer": {"use": "sgd"}})


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.integers(0, 3), lambda t: st.dictionaries(st.sampled_from("abc"), t, max_size=3), max_leaves=8))
def test_a_tree_differs_from_itself_nowhere(tree: Any) -> None:
    assert differences(tree, tree) == []
    assert differences({"x": tree}, {"x": tree, "y": 1}) == [("y", None, 1)]


def run_at(path: Path) -> Path:
    folder = RunFolder(path)
    folder.create()
    folder.spec.write_text("schema: 1\n")
    return path


def test_a_run_is_found_by_folder_file_and_name(tmp_path: Path) -> None:
    older, newer = run_at(tmp_path / "tiny" / "2026-01-01_00-00-00"), run_at(tmp_path / "tiny" / "2026-01-02_00-00-00")
    os.utime(older / "spec.yaml", (1, 1))
    stopped_early = run_at(tmp_path / "tiny" / "2026-01-03_00-00-00")
    for run in (older, newer):
        for step in (1, 2):
            save_tree({}, run / "checkpoints" / step_name(step))
        write_pointer(run / "checkpoints", "last", step_name(2))
        write_pointer(run / "checkpoints", "best", step_name(1))
    run_at(newer / "dense")
    assert RunFolder.find(str(older), tmp_path).path == older
    for name, step in (("last", 2), ("best", 1), (step_name(1), 1)):
        found = RunFolder.find(str(older / "checkpoints" / name), tmp_path)
        assert (found.path, found.checkpoint()) == (older, older / "checkpoints" / step_name(step))
        assert checkpoint_of(str(older / "checkpoints" / name)) == older / "checkpoints" / step_name(step)
    assert RunFolder.find(str(older / "spec.yaml")).checkpoint() == older / "checkpoints" / step_name(2)
    assert checkpoint_of("tiny", tmp_path) == newer / "checkpoints" / step_name(2)
    assert RunFolder(older).best == older / "checkpoints" / step_name(1)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*\n  a run writes its first after its first") as none:
        RunFolder(stopped_early).checkpoint()
    assert f"begin anew: moekit train {stopped_early / 'spec.yaml'}" in str(none.value)
    (stopped_early / "checkpoints" / "last.ckpt").write_text("as it was once")
    with pytest.raises(CheckpointError, match=r"\n  last.ckpt: pickled, as moekit wrote them once; they are not read"):
        RunFolder(stopped_early).checkpoint()
    (older / "checkpoints" / "last").unlink()
    with pytest.raises(CheckpointError, match=r"'last' names none; there are:\n.*step-00000001\n.*step-00000002"):
        RunFolder(older).checkpoint()
    assert RunFolder.find("tiny", tmp_path).path == newer
    assert RunFolder.find(str(tmp_path / "tiny")).path == newer
    assert RunFolder.find(str(stopped_early)).path == stopped_early
    with pytest.raises(CheckpointError, match=r"no run at 'tony'") as caught:
        RunFolder.find("tony", tmp_path)
    assert "runs there: tiny" in str(caught.value) and "train" not in str(caught.value)


def test_a_recipe_that_was_not_trained_yet_says_how_to(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run at 'gshard'") as caught:
        RunFolder.find("gshard", tmp_path)
    assert str(caught.value).endswith("\n  runs there: none\n  train one first: moekit train gshard")
    with pytest.raises(CheckpointError) as caught:  # there to be counted, not trained
        RunFolder.find("gshard-600b", tmp_path)
    assert str(caught.value).endswith("\n  runs there: none")


def test_a_name_without_any_checkpoint_means_its_latest_run(tmp_path: Path) -> None:
    run_at(tmp_path / "tiny" / "2026-01-01_00-00-00")
    later = run_at(tmp_path / "tiny" / "2026-01-02_00-00-00")
    os.utime(later / "spec.yaml", (4e9, 4e9))
    assert RunFolder.find("tiny", tmp_path).path == later


def test_a_dense_run_belongs_to_the_run_it_lies_in(tmp_path: Path) -> None:
    run = RunFolder(run_at(tmp_path / "tiny" / "2026-01-01_00-00-00"))
    assert run.dense.whole == run and run.whole == run
    alone = RunFolder(run_at(tmp_path / "dense"))
    assert alone.whole == alone


def test_two_runs_in_a_second_get_two_folders(tmp_path: Path) -> None:
    paths = set()
    for _ in range(3):
        folder = RunFolder.new(tmp_path, "tiny")
        assert not folder.path.exists()
        folder.create()
        paths.add(folder.path)
    assert len(paths) == 3


def test_the_log_is_one_tidy_file_and_goes_on_after_a_resume(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.csv")
    for step in (2, 4, 6):
        log.log_metrics({"train/loss": step / 10}, step)
    log.log_metrics({"val/loss": 0.25}, 4)
    assert not log.csv_file.exists()  # training does not wait for a disk
    log.finalize("success")
    assert log.csv_file.read_text() == "step,train/loss,val/loss\n2,0.2,\n4,0.4,0.25\n6,0.6,\n"
    again = RunLog(tmp_path / "metrics.csv", upto=4)
    again.log_metrics({"train/loss": 0.55}, 6)
    again.write()
    rows = read_metrics(again.csv_file)
    assert curve(rows, "train/loss") == ([2.0, 4.0, 6.0], [0.2, 0.4, 0.55])
    assert curve(rows, "val/loss", x="train/loss") == ([0.4], [0.25])


def test_tensorboard_gets_the_same_values(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path / "metrics.csv", tmp_path / "tensorboard")
    log.log_metrics({"train/loss": 0.5}, 7)
    log.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (point,) = events.Scalars("train/loss")
    assert (point.step, point.value) == (7, 0.5)


def test_load_history_drops_steps_to_be_trained_again(tmp_path: Path) -> None:
    with (tmp_path / "load.npz").open("wb") as file:
        np.savez(file, step=np.array([2, 4, 6]), **{"blocks.1.ffn": np.arange(12).reshape(3, 4)})  # type: ignore[arg-type]
    history = LoadHistory(tmp_path / "load.npz", upto=4)
    assert history.steps == [2, 4]
    assert history.arrays()["blocks.1.ffn"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_trainer_options_fill_in_what_a_recipe_leaves_out() -> None:
    recipe = load(
        "jacobs1991",
        ["trainer.max_steps=400", "trainer.accumulate_grad_batches=4", "trainer.precision=16-mixed", "stop=null"],
    )
    options = trainer_options(recipe)
    assert options["val_check_interval"] == 160 and options["check_val_every_n_epoch"] is None
    assert options["log_every_n_steps"] == 4
    assert options["precision"] == "16-mixed"
    assert options["devices"] == 1
    with pytest.raises(SpecError, match="0 is no number of steps"):
        trainer_options(replace(load("jacobs1991"), trainer={"max_steps": 0}))


def test_validations_and_so_checkpoints_fall_between_steps() -> None:
    """Lightning counts micro-batches; a checkpoint within a step would resume without its first gradients."""
    options = ["trainer.accumulate_grad_batches=4", "trainer.check_val_every_n_epoch=null"]
    assert trainer_options(load("jacobs1991", [*options, "trainer.val_check_interval=8"]))["val_check_interval"] == 8
    with pytest.raises(SpecError, match="a multiple of accumulate_grad_batches=4"):
        trainer_options(load("jacobs1991", [*options, "trainer.val_check_interval=6"]))


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize(
    "bad",
    ["trainer.accelerator=abacus", "trainer.strategy=shardedd", "trainer.devices=0", "trainer.devices=-3"],
)
def test_what_the_trainer_refuses_is_a_spec_error(bad: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="the Trainer refuses its options") as caught:
        make_trainer(load("jacobs1991", [bad, "trainer.accelerator=cpu"][::-1]), RunFolder(tmp_path / "run"))
    said = str(caught.value)
    assert f"\n  at {bad.partition('=')[0]}" in said
    assert ("did you mean 'sharded'?" in said) is ("sharded" in bad)
    assert not (tmp_path / "run").exists()


def test_what_says_nothing_to_a_person_is_kept_quiet() -> None:
    with warnings.catch_warnings(record=True) as heard, quiet():
        warnings.warn("Grad strides do not match bucket view strides. This may", UserWarning, stacklevel=1)
    assert heard == []
    with pytest.warns(UserWarning, match="Grad strides"):
        warnings.warn("Grad strides do not match bucket view strides. This may", UserWarning, stacklevel=1)


def test_a_place_where_no_run_can_be_written(tmp_path: Path) -> None:
    """A file is in the way: of that, and of less visible things, a trial tells."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "runs" / "name"):
        with pytest.raises(
            MoekitError, match=f"cannot write a run to {path}: .*file: Not a directory\n  expected --out"
        ):
            check_writable(path)
    check_writable(tmp_path / "new" / "runs")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize(
    ("name", "devices", "ep", "said"),
    [
        ("deepseek_v3", 4, 3, "ep=3 does not divide the 4 ranks"),
        ("deepseek_v3", 3, 3, "ep=3 does not divide the 64 experts of a layer"),
        ("jacobs1991", 2, 2, "ranks exchange token-expert pairs"),
    ],
)
def test_ranks_that_cannot_share_the_experts_are_refused(
    tmp_path: Path, name: str, devices: int, ep: int, said: str
) -> None:
    options = [f"trainer.devices={devices}", "trainer.accelerator=cpu", f"trainer.strategy={{use: sharded, ep: {ep}}}"]
    with pytest.raises(SpecError, match=said):
        make_trainer(load(name, options), RunFolder(tmp_path / "run"))


@pytest.mark.usefixtures("calm")
def test_an_optimizer_that_looks_at_whole_tensors_is_refused_where_they_lie_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["optimizer=null", "optimizer={use: adafactor}", "trainer.devices=2", "trainer.accelerator=cpu"]
    make_trainer(load("deepseek_v3", [*options, "trainer.strategy=sharded"]), RunFolder(tmp_path / "run"))
    monkeypatch.setattr(Adafactor, "takes_shards", False)
    with pytest.raises(SpecError, match="Adafactor needs unsharded tensors"):
        make_trainer(load("deepseek_v3", [*options, "trainer.strategy=sharded"]), RunFolder(tmp_path / "run"))
    make_trainer(load("deepseek_v3", [*options, "trainer.strategy=ddp"]), RunFolder(tmp_path / "run"))


def test_lines_of_progress() -> None:
    values = {
        "train/loss": 2.5, "tokens_per_second": 12345.6, "lr": 0.003, "train/max_violation": 0.5, "train/dropped": 0.01
    }  # fmt: skip
    assert metrics_line(values) == "loss 2.500  12,346 tokens/s  lr 0.003  MaxVio 0.50  dropped 1.0%"
    assert metrics_line({"train/loss": 0.1, "train/blend_mse": 0.2}, "cases") == "loss 0.100  blend mse 0.200"
    assert validation_line({"val/loss": 1.5, "val/bits_per_byte": 2.0}) == "bits per byte 2.000, loss 1.500"


def outcome(seconds: float, values: list[float]) -> Outcome:
    return Outcome(
        label="m", folder=Path("runs/m/1"), steps=10, tokens=1000.0, seconds=seconds, train={}, max_violation=None,
        validation={"bits_per_byte": values[-1]}, dropped=None, stopped_after=None, total=9, active=3,
        curve=([seconds * (i + 1) / len(values) for i in range(len(values))], values),
    )  # fmt: skip


def test_the_comparison_says_who_wins_per_token_and_per_second() -> None:
    found = compare(outcome(20.0, [4.0, 3.0, 2.5, 2.0]), outcome(10.0, [3.5, 2.8, 2.4, 2.2]))
    assert (found.seconds, found.moe_then, found.dense_then) == (10.0, 3.0, 2.2)
    lines = comparison_lines(found, outcome(20.0, [2.0]))
    assert "2.000, dense 2.200, after the same 1,000 tokens: the mixture is better by 0.200 (9.1%)" in lines[2]
    assert "3.000, dense 2.200, after the same 10 s: the dense model is better by 0.800 (26.7%)" in lines[3]
    assert "the mixture takes 2.0 times as long a step" in lines[4]
    early = compare(outcome(40.0, [4.0, 3.0]), outcome(10.0, [3.5, 2.8]))
    assert math.isnan(early.moe_then)
    assert "nothing to compare" in comparison_lines(early, outcome(40.0, [3.0]))[3]


def test_a_curve_is_read_between_its_points() -> None:
    points = ([1.0, 3.0], [10.0, 20.0])
    assert [value_at(points, x) for x in (1.0, 2.0, 3.0, 9.0)] == [10.0, 15.0, 20.0, 20.0]
    assert math.isnan(value_at(points, 0.5)) and math.isnan(value_at(([], []), 1.0))


def test_drawing_takes_the_fewest_tokens_that_hold_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    g = torch.Generator().manual_seed(0)

    def seen(top_p: float) -> set[int]:
        return {int(draw(logits, temperature=1.0, top_p=top_p, generator=g)) for _ in range(300)}

    assert seen(0.4) == {0}
    assert seen(0.6) == {0, 1}
    assert seen(0.9) == {0, 1, 2}
    assert seen(1.0) == {0, 1, 2, 3}
    assert int(draw(logits, temperature=0.0, top_p=1.0)) == 0


class Bytes:
    def decode(self, ids: torch.Tensor) -> str:
        return bytes(ids.tolist()).decode("utf-8", errors="replace")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12))
def test_streamed_text_is_the_text_in_whole_characters(text: str) -> None:
    parts = list(stream(Bytes(), text.encode()))  # type: ignore[arg-type]
    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts) or "\ufffd" in text


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=12))
def test_streamed_bytes_come_out_as_decoded_at_once(data: bytes) -> None:
    assert "".join(stream(Bytes(), data)) == data.decode("utf-8", errors="replace")  # type: ignore[arg-type]


def test_plain_progress_stays_short() -> None:
    from moekit.training.callbacks.progress import TrainingProgress

    class Run:
        global_step, max_steps = 0, 1000
        sanity_checking = False

    class Module:
        logged, logged_step = {"train/loss": 1.0}, 0

    out = StringIO()
    bar = TrainingProgress(Console(file=out, width=120), "tiny")
    run, module = Run(), Module()
    bar.on_train_start(run, module)  # type: ignore[arg-type]
    for step in range(1, 1001):
        run.global_step = step
        module.logged_step = step // 10 * 10
        bar.on_train_batch_end(run, module)  # type: ignore[arg-type]
    assert len(out.getvalue().splitlines()) == 10

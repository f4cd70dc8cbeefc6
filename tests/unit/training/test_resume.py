"""Resuming a run: checksums, checkpoints that do not fit, other numbers of micro-batches."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from moekit import CheckpointError, load
from moekit.checkpoints import format as checkpoint_format
from moekit.checkpoints.files import step_name
from moekit.checkpoints.format import map_leaves
from moekit.checkpoints.reading import Handle, open_checkpoint
from moekit.checkpoints.writing import save_tree
from moekit.parallel import launch
from moekit.tables import read_tables, table_files
from moekit.training.callbacks.checkpoint import AtomicCheckpointIO
from moekit.training.module import TRAINED, TRAINED_IN_LIGHTNING
from moekit.training.run.folder import LOCK, RunFolder
from moekit.training.run.metrics_log import read_metrics
from moekit.training.run.outcome import read_summary
from moekit.training.run.saved import check_same_model, differences, read_checkpoint, recount, verify_checkpoints
from moekit.training.run.train import train
from moekit_lightning.sharded import Sharded
from moekit_lightning.sharded.module import ShardedStrategy

Make = Callable[..., dict[str, Any]]
STATE, TENSORS = "state.json", "tensors-00001-of-00001.safetensors"


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file's checksum was computed."""
    seen, real = Counter[str](), checkpoint_format.digest_of

    def digest_of(file: Path) -> Any:
        seen[f"{file.parent.name}/{file.name}"] += 1
        return real(file)

    monkeypatch.setattr(checkpoint_format, "digest_of", digest_of)
    return seen


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a run."""
    path = tmp_path / step_name(1)
    tree = {
        "moekit": {"version": "0", "data": {}},
        "hyper_parameters": {"spec": {}},
        "state_dict": {"w": torch.arange(6.0)},
        "global_step": 1,
    }
    save_tree(tree, path)
    return path


def damage(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


def test_resuming_verifies_every_file_once_before_anything_changes(
    recipe: Make, tmp_path: Path, verified: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a file is damaged, also of the dense baseline, nothing is built or changed."""
    monkeypatch.setattr("moekit_lightning.plots.draw_plots", lambda *_: [])
    options = {"accelerator": "cpu", "limit_val_batches": 1, "enable_progress_bar": False}

    def run(steps: int, resume: RunFolder | None = None, compare: dict[str, float] | None = None) -> None:
        spec = load(recipe(compare=compare, trainer={**options, "max_steps": steps}))
        train(spec, root=tmp_path, resume=resume, console=Console(quiet=True))

    run(1)
    assert not verified
    (path,) = (tmp_path / "tiny").iterdir()
    folder = RunFolder(path)
    run(2, folder)
    assert verified == {f"{step_name(1)}/{name}": 1 for name in (STATE, TENSORS)}
    shutil.copytree(folder.checkpoints, folder.dense.checkpoints)
    damage(folder.dense.checkpoints / step_name(2) / TENSORS)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.name != LOCK}
    monkeypatch.setattr("moekit.training.run.train.prepare", lambda *_, **__: pytest.fail("it was prepared"))
    with pytest.raises(CheckpointError, match=f"dense/checkpoints/{step_name(2)}/{TENSORS} is damaged: its sha256"):
        run(3, folder, compare={"lr": 1e-2})
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.name != LOCK} == before


def test_other_ranks_verify_only_the_files_that_they_read(
    saved: Path, verified: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process plays a rank that Lightning started, which gets rank 0's result in the environment."""
    checkpoint = read_checkpoint(saved)
    with monkeypatch.context() as patch:
        patch.setattr(launch, "is_rank_zero", lambda: False)
        patch.setenv("MOEKIT_CHECKPOINT", "intact")
        verify_checkpoints([checkpoint])
    assert verified == {f"{saved.name}/{STATE}": 1}
    damage(saved / TENSORS)
    with pytest.raises(CheckpointError, match=f"{TENSORS} is damaged: its sha256"):
        checkpoint.plain["state_dict"]["w"].whole()


def test_other_ranks_wait_longer_for_larger_checkpoints(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []
    monkeypatch.setattr("moekit.training.run.saved.decide_on_rank_zero", lambda *_, timeout: waits.append(timeout))
    monkeypatch.setattr("moekit.training.run.saved.MIN_READ_RATE", 1.0)
    checkpoint = read_checkpoint(saved)
    size = sum((saved / name).stat().st_size for name in (STATE, TENSORS))
    verify_checkpoints([checkpoint])
    verify_checkpoints([checkpoint, checkpoint])
    assert [(wait - launch.RANK_ZERO_TIMEOUT).total_seconds() for wait in waits] == [size, 2 * size]


@pytest.mark.parametrize("sharded", [False, True])
def test_an_open_checkpoint_is_reused_until_the_next_save(
    saved: Path, verified: Counter[str], sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a relative path; another checkpoint is opened anew."""
    opened = read_checkpoint(saved)
    verify_checkpoints([opened])
    io = AtomicCheckpointIO(opened=opened)
    strategy = ShardedStrategy(Sharded())
    strategy.checkpoint_io = io
    reader = strategy if sharded else io

    def weights(path: Path) -> list[float]:
        found: list[float] = map_leaves(reader.load_checkpoint(path), Handle.whole, Handle)["state_dict"]["w"].tolist()
        return found

    once = {f"{saved.name}/{name}": 1 for name in (STATE, TENSORS)}
    monkeypatch.chdir(saved.parent)
    assert weights(saved) == weights(Path(saved.name)) == list(range(6)) and verified == once
    other = saved.with_name(step_name(2))
    save_tree({"state_dict": {"w": torch.ones(1)}}, other)
    assert weights(other) == [1.0]
    io.save_checkpoint({"state_dict": {"w": torch.zeros(1)}}, saved)
    assert weights(saved) == [0.0]


def test_the_strategy_names_the_plugin_that_it_needs(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"TorchCheckpointIO cannot read .*\n  expected .*AtomicCheckpointIO\(\)"):
        ShardedStrategy(Sharded()).load_checkpoint(saved)


@pytest.mark.parametrize("key", [TRAINED, TRAINED_IN_LIGHTNING])
def test_a_sharded_strategy_reads_trained_weights_by_slices(tmp_path: Path, key: str) -> None:
    """A resumed run loads them in the place of the averages."""
    save_tree({"state_dict": {"w": torch.zeros(6)}, key: {"w": torch.arange(6.0)}}, tmp_path / "saved")
    strategy = ShardedStrategy(Sharded())
    strategy.checkpoint_io = AtomicCheckpointIO()
    assert strategy.load_checkpoint(tmp_path / "saved")[key]["w"].read((2,), (2,)).tolist() == [2, 3]


def test_a_checkpoint_that_is_not_of_a_run_is_rejected(tmp_path: Path) -> None:
    good, other = tmp_path / "step-00000001", tmp_path / "step-00000002"
    moekit, spec = {"version": "0", "data": {}}, {"model": {"use": "decoder"}}
    save_tree({"moekit": moekit, "hyper_parameters": {"spec": spec}, "state_dict": {}, "global_step": 1}, good)
    assert "moekit" in read_checkpoint(good).plain
    for tree in ({"state_dict": {}}, {"moekit": {}}, [1]):
        save_tree(tree, other)
        with pytest.raises(CheckpointError, match=r"step-00000002 is not a checkpoint of a moekit run"):
            read_checkpoint(other)
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*step-00000003"):
        read_checkpoint(tmp_path / "step-00000003")


def test_another_model_is_rejected_with_the_keys_that_differ(tmp_path: Path) -> None:
    saved = {"model": {"dim": 16, "moe": {"top_k": 2}}, "optimizer": {"use": "adamw", "lr": 1}}
    check_same_model(tmp_path / "a.ckpt", saved, {**saved, "optimizer": {"use": "adamw", "lr": 2}})
    with pytest.raises(CheckpointError, match=r"a\.ckpt cannot be resumed, for this has changed:") as caught:
        check_same_model(tmp_path / "a.ckpt", saved, {**saved, "model": {"dim": 32, "moe": None}})
    assert str(caught.value).splitlines()[1:] == [
        "  model.dim: 16 in the checkpoint, 32 now",
        "  model.moe: {'top_k': 2} in the checkpoint, None now",
        f"  train a new run from its weights instead: start.run={tmp_path / 'a.ckpt'}",
    ]
    with pytest.raises(CheckpointError, match=r"optimizer\.use: 'adamw' in the checkpoint, 'sgd' now"):
        check_same_model(tmp_path / "a.ckpt", saved, {**saved, "optimizer": {"use": "sgd"}})


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.integers(0, 3), lambda t: st.dictionaries(st.sampled_from("abc"), t, max_size=3), max_leaves=8))
def test_a_tree_does_not_differ_from_itself(tree: Any) -> None:
    assert differences(tree, tree) == []
    assert differences({"x": tree}, {"x": tree, "y": 1}) == [("y", None, 1)]


def checkpoint(counts: dict[str, int], accumulate: int) -> dict[str, Any]:
    progress = {part: dict(counts) for part in ("total", "current")}
    return {
        "moekit": {"accumulate": accumulate},
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {**progress, "is_last_batch": False}}},
    }


@pytest.mark.parametrize("now", [1, 2, 3, 8])
def test_recounting_keeps_steps_and_converts_micro_batches(now: int) -> None:
    """Five steps of four micro-batches, in every counter."""
    saved = checkpoint({"ready": 20, "started": 20, "processed": 20, "completed": 20}, accumulate=4)
    recount(saved, now)
    assert (
        saved["loops"] == checkpoint(dict.fromkeys(("ready", "started", "processed", "completed"), 5 * now), 4)["loops"]
    )


def test_within_a_step_another_accumulation_is_rejected() -> None:
    saved = checkpoint({"ready": 20, "completed": 19}, accumulate=4)
    before = deepcopy(saved)
    recount(saved, 4)
    assert saved == before
    with pytest.raises(CheckpointError, match=r"a step of 4 micro-batches[\s\S]*expected .*accumulate_grad_batches=4"):
        recount(saved, 2)


# ---- what must not change between a kill and resuming ----------------------------------------------------------------


class Run:
    """A run of two steps without a dense baseline, and what it prints; ``resume`` continues it for two steps more."""

    def __init__(self, root: Path, recipe: Make | None, **changes: Any) -> None:
        """``recipe`` is None for a run that is there already."""
        self.root = root
        if recipe is not None:
            options = {"max_steps": 2, "accelerator": "cpu", "limit_val_batches": 1, "enable_progress_bar": False}
            self.train(load(recipe(trainer=options, **changes)))
        (path,) = (root / "tiny").iterdir()
        self.folder = RunFolder(path)

    def train(self, spec: Any, **options: Any) -> str:
        with redirect_stdout(StringIO()) as out:
            train(spec, root=self.root, console=Console(file=out, width=500), **options)
        return out.getvalue()

    def resume(self, *overrides: str, **options: Any) -> str:
        spec = load(self.folder.spec, ["trainer.max_steps=4", *overrides])
        return self.train(spec, resume=self.folder, **options)


@pytest.fixture(scope="module")
def trained(recipe: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Run(tmp_path_factory.mktemp("trained"), recipe).root


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of one run."""
    monkeypatch.setattr("moekit_lightning.plots.draw_plots", lambda *_: [])
    return Run(Path(shutil.copytree(trained, tmp_path / "runs")), None)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.seq=16", "data.seq: 8 in the checkpoint, 16 now"),
        ("data.batch=3", "data.batch: 2 in the checkpoint, 3 now"),
        ("seed=7", "seed: 0 in the checkpoint, 7 now"),
        ("trainer.precision=64-true", "trainer.precision: '32-true' in the checkpoint, '64-true' now"),
    ],
)
def test_a_change_that_ends_exactness_is_refused_unless_allowed(run: Run, override: str, line: str) -> None:
    before = run.folder.spec.read_bytes()
    with pytest.raises(CheckpointError, match="cannot be resumed exactly, for this has changed:\n") as caught:
        run.resume(override)
    assert f"\n  {line}\n" in str(caught.value) and str(caught.value).endswith("with the changes: --allow-changes")
    assert run.folder.spec.read_bytes() == before
    assert f"resumed with changes (--allow-changes):\n  {line}\n" in run.resume(override, allow_changes=True)
    assert "resumed with changes" not in run.resume(override, "trainer.max_steps=5")  # it is the new state of things


def test_texts_that_have_changed_are_refused_unless_allowed(
    recipe: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size, so that every batch has the same shape; or at another path, which may be another text."""
    monkeypatch.setattr("moekit_lightning.plots.draw_plots", lambda *_: [])
    own = Path(shutil.copytree(text, tmp_path / "text"))
    run = Run(tmp_path, recipe, data={**recipe()["data"], "path": str(own)})
    with pytest.raises(CheckpointError, match=r"data.path: '.*' in the checkpoint, '.*' now"):
        run.resume(f"data.path={text}")
    (own / "low" / "3.txt").write_text((own / "low" / "3.txt").read_text()[::-1])
    with pytest.raises(CheckpointError, match="the contents of the data are not those that the run was trained on"):
        run.resume()
    assert "the contents of the data are not" in run.resume(allow_changes=True)


def test_tokens_cannot_change_on_resume_even_if_changes_are_allowed(run: Run) -> None:
    with pytest.raises(
        CheckpointError, match=r"other tokens:\n  data\.tokenizer\.use: .* in the checkpoint, 'hf/tokenizer_json' now"
    ):
        run.resume("data.tokenizer={use: tokenizer_json, file: t.json}", allow_changes=True)


def test_weights_to_start_from_cannot_change_on_resume(run: Run) -> None:
    with pytest.raises(CheckpointError, match=r"start: None in the checkpoint, \{'run': 'runs/x', "):
        run.resume("start={run: runs/x}")


class Limit(Callback):
    """Has its arguments in its state, as Lightning's ``EarlyStopping`` has; stops at the limit, and counts up."""

    def __init__(self, limit: int, count: int = 0) -> None:
        self.limit, self.count = limit, count

    def state_dict(self) -> dict[str, Any]:
        return {"limit": self.limit, "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.count += 1
        trainer.should_stop = self.count >= self.limit


def test_a_changed_argument_of_a_callback_is_not_overwritten_by_its_state(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it counted is restored nevertheless: the argument for that is the same as before."""
    monkeypatch.setattr("moekit_lightning.plots.draw_plots", lambda *_: [])
    options = {"max_steps": 2, "accelerator": "cpu", "limit_val_batches": 1, "enable_progress_bar": False}
    limit = {"class": "test_resume.Limit", "limit": 9, "count": 0}
    with redirect_stdout(StringIO()):
        train(load(recipe(trainer={**options, "callbacks": {"mine": limit}})), root=tmp_path)
    run = Run(tmp_path, None)
    run.resume("trainer.max_steps=9", "trainer.val_check_interval=1", "trainer.callbacks.mine.limit=3")
    saved = open_checkpoint(run.folder.checkpoint()).plain
    assert saved["global_step"] == 3 and saved["callbacks"]["Limit"] == {"limit": 3, "count": 3}


def test_a_run_that_early_stopping_ended_trains_on_when_its_limit_grows(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moekit_lightning.plots.draw_plots", lambda *_: [])
    stop = {"class": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss", "min_delta": 9.0}
    options = {"max_steps": 8, "val_check_interval": 1, "accelerator": "cpu", "limit_val_batches": 1}
    options |= {"enable_progress_bar": False, "callbacks": {"stop": {**stop, "patience": 2}}}
    with redirect_stdout(StringIO()):
        train(load(recipe(trainer=options)), root=tmp_path)
    run = Run(tmp_path, None)
    assert open_checkpoint(run.folder.checkpoint()).plain["global_step"] == 3
    said = run.resume("trainer.max_steps=8", "trainer.callbacks.stop.patience=4")
    assert "EarlyStopping has ended it" not in said
    assert open_checkpoint(run.folder.checkpoint()).plain["global_step"] == 5


@pytest.mark.parametrize("before", [None, {"use": "cosine", "warmup": 2}])
def test_a_schedule_added_or_removed_on_resume_sets_the_rates(
    recipe: Make, tmp_path: Path, before: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moekit_lightning.plots.draw_plots", lambda *_: [])
    run, other = Run(tmp_path, recipe, schedule=before), "null" if before else "{use: cosine, warmup: 4}"
    run.resume(f"schedule={other}", "trainer.log_every_n_steps=1")
    rates = [read_metrics(run.folder.metrics)[step]["lr"] for step in (3, 4)]
    assert rates == ([0.01, 0.01] if before else pytest.approx([0.0075, 0.01]))


# ---- going back to an older checkpoint -------------------------------------------------------------------------------


class Fails(Callback):
    """Fails before training begins."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        raise RuntimeError("a mistake of the callback")


def contents(folder: RunFolder) -> dict[str, bytes]:
    """Every file of a run, but for TensorBoard's and the lock."""
    files = [path for path in folder.path.rglob("*") if path.is_file() and path.name != LOCK]
    return {path.relative_to(folder.path).as_posix(): path.read_bytes() for path in files}


def test_a_resume_from_an_older_checkpoint_that_trains_nothing_changes_nothing(run: Run) -> None:
    run.resume("checkpoints.keep=9")
    before = contents(run.folder)
    run.folder.chosen = run.folder.checkpoints / step_name(2)
    with pytest.raises(
        CheckpointError, match=r"nothing is left to train: .* is at step 2, and the run at step 4 already"
    ):
        run.resume("trainer.max_steps=2")
    with pytest.raises(CheckpointError, match="a mistake of the callback"):
        run.resume(callbacks=[Fails()])
    assert contents(run.folder) == before and list(read_metrics(run.folder.metrics)) == [1, 2, 3, 4]
    run.resume("trainer.max_steps=3")
    assert list(read_metrics(run.folder.metrics)) == [1, 2, 3]


def test_a_dense_baseline_that_was_trained_otherwise_is_not_compared_with(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had more steps than the mixture that went back, or another learning rate."""
    monkeypatch.setattr("moekit_lightning.plots.draw_plots", lambda *_: [])
    monkeypatch.setattr("moekit.training.run.train.steps_in_same_time", lambda *_: 0)
    run = Run(tmp_path, recipe, compare={})
    assert "no comparison" not in run.resume("checkpoints.keep=9") and read_summary(run.folder.summary)["comparison"]
    dense = contents(run.folder.dense)
    run.folder.chosen = run.folder.checkpoints / step_name(2)
    said = run.resume("trainer.max_steps=3")
    assert (
        f"no comparison with {run.folder.dense.name}, which was trained otherwise:\n  it has 4 steps, more than 3\n"
        in said
    )
    run.folder.chosen = None
    assert "\n  optimizer.lr: 0.01 in the checkpoint, 0.02 now\n  to compare, " in run.resume("optimizer.lr=0.02")
    assert read_summary(run.folder.summary)["comparison"] is None and contents(run.folder.dense) == dense
    shutil.rmtree(run.folder.dense.path)
    assert "no comparison" not in run.resume() and read_summary(run.folder.summary)["comparison"]


# ---- logs ------------------------------------------------------------------------------------------------------------


def test_a_run_with_damaged_logs_is_resumed_and_says_what_is_lost(run: Run) -> None:
    *_, recorded = table_files(run.folder.routing)
    recorded.write_bytes(b"junk")
    run.folder.metrics.write_bytes(run.folder.metrics.read_bytes()[:-3])
    said = run.resume()
    assert f"{run.folder.metrics} has 1 damaged line of 2, and lacks steps after 1, up to 2: training does not" in said
    assert f"{run.folder.routing} is damaged: {recorded} cannot be read: " in said
    assert ", and lacks steps after 1, up to 2: training does not" in said
    assert list(read_metrics(run.folder.metrics)) == [1, 3, 4]
    found = read_tables(run.folder.routing, damaged=lambda error: None)["experts"]["step"]
    assert sorted(set(found.tolist())) == [1, 3, 4] and (run.folder.path / "load.png").is_file()


def test_training_continues_without_logs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        for module in ("moekit.training.run.metrics_log", "moekit_report.routing.writing"):
            patch.setattr(f"{module}.replace_file", full)
        patch.setattr("moekit_lightning.event_file.make_directory", full)
        said = run.resume()
    assert said.count("cannot write") == 1 and "training continues" in said
    for file in (run.folder.metrics, run.folder.routing / "step-00000004.npz"):
        assert f"{file} is incomplete: No space left on device" in said
    assert run.folder.last == run.folder.checkpoints / step_name(4)
    assert "lacks steps after 2, up to 4" in run.resume("trainer.max_steps=5")


# ---- forged states ---------------------------------------------------------------------------------------------------

FORGED: dict[str, tuple[Any, str]] = {
    "global_step": ("x", "global_step is 'x', not an integer"),
    "moekit.seconds": ("x", "moekit.seconds is 'x', not a number"),
    "moekit.accumulate": (0, "it has not one optimizer"),
    "optimizer_states": ([], "it has not one optimizer"),
    "optimizer_states.0.state": (3, "optimizer_states.0.state is 3, not a mapping"),
    "lr_schedulers": ([{"step": -1}], "lr_schedulers.0.step is -1, less than 0"),
    "callbacks": ("junk", "callbacks is 'junk', not a mapping"),
    "callbacks.RoutingRecorder": ({"step": "x"}, "the state of RoutingRecorder has no step"),
    "callbacks.StopOnInterrupt": (None, "callbacks.StopOnInterrupt is None, not a mapping"),
    "loops": ({}, "it has no loops.fit_loop"),
    "state_dict": ({"model.norm.weight": "x"}, "state_dict.model.norm.weight is 'x', not a tensor"),
    "moekit": ({}, "it has no moekit.version"),
}


@pytest.mark.parametrize("key", FORGED)
def test_a_forged_state_is_refused_by_name(run: Run, key: str) -> None:
    value, message = FORGED[key]
    tree = open_checkpoint(run.folder.checkpoint()).whole()
    *path, last = key.split(".")
    node: Any = tree
    for name in path:
        node = node[int(name) if name.isdigit() else name]
    assert last in node or key.endswith("StopOnInterrupt")
    node[last] = value
    save_tree(tree, run.folder.checkpoint(), step=2)
    before = run.folder.spec.read_bytes()
    with pytest.raises(CheckpointError, match=re.escape(message)):
        run.resume()
    assert run.folder.spec.read_bytes() == before


@pytest.mark.parametrize("part", ["state_dict", "optimizer_states"])
def test_a_tensor_of_another_rank_is_refused_by_name(run: Run, part: str) -> None:
    tree = open_checkpoint(run.folder.checkpoint()).whole()
    name = "norm.weight"
    if part == "state_dict":
        tree[part][f"model.{name}"] = torch.zeros(1, 2, 3)
    else:
        tree[part][0]["state"][name]["exp_avg"] = torch.zeros(1, 2, 3)
    save_tree(tree, run.folder.checkpoint(), step=2)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}.*\[") as caught:
        run.resume()
    assert "1, 2, 3" in str(caught.value)

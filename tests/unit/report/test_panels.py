"""What loggers get of a run's routing: numbers, histograms, pictures, the recipe and the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import moekit
from moekit.run import Run
from moekit_report.reading import layer_logs
from moekit_report.routing.panels import bars_of, picture_of, pixels

Make = Callable[..., dict[str, Any]]
LAYERS = ("blocks.1.ffn", "blocks.2.ffn")


def check_tensorboard(folder: Path, run: Run) -> EventAccumulator:
    """Scalars at logged steps; histograms and pictures of validations; the recipe and the findings as text."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    log = layer_logs(run.routing, "train")["blocks.1.ffn"]
    points = events.Scalars("routing/train/blocks.1.ffn/max_violation")
    assert [point.step for point in points] == [2, 4, 6, 8]
    np.testing.assert_allclose([point.value for point in points], log.max_violation_X, rtol=1e-5)
    held = layer_logs(run.routing, "val")["blocks.1.ffn"]
    histograms = events.Histograms("routing/load/blocks.1.ffn")
    assert [each.step for each in histograms] == [4, 8]
    assert [each.histogram_value.bucket for each in histograms] == held.load_XE.tolist()
    pictures = events.Images("routing/load")
    assert [each.step for each in pictures] == [4, 8] and pictures[0].encoded_image_string[1:4] == b"PNG"
    (report,) = events.Tensors("report/text_summary")
    assert b"- **" in report.tensor_proto.string_val[0]
    return events


def test_tensorboard_of_every_run_has_them(run: Run) -> None:
    (recipe,) = check_tensorboard(run.path / "tensorboard", run).Tensors("recipe/text_summary")
    assert b"use: topk" in recipe.tensor_proto.string_val[0]


def test_lightnings_own_tensorboard_and_csv_loggers_have_them(tiny: Make, tmp_path: Path) -> None:
    loggers = {
        "board": {"class": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": str(tmp_path / "board")},
        "csv": {"class": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path / "csv")},
    }
    run = moekit.train(tiny(trainer={"logger": loggers}), out=tmp_path / "runs", quiet=True)
    events = check_tensorboard(next((tmp_path / "board").rglob("events.*")).parent, run)
    assert b"topk" in events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content  # the tab HPARAMS
    with next((tmp_path / "csv").rglob("metrics.csv")).open() as file:
        rows: dict[int, dict[str, str]] = {}
        for row in csv.DictReader(file):
            rows.setdefault(int(row["step"]), {}).update({name: text for name, text in row.items() if text})
    for part in ("train", "val"):
        for name, log in layer_logs(run.routing, part).items():
            for i, step in enumerate(log.step_X.tolist()):
                found = {key: float(rows[step][f"routing/{part}/{name}/{key}"]) for key in ("entropy", "dead_experts")}
                assert found == {"entropy": pytest.approx(log.values["entropy"][i]), "dead_experts": log.dead_X[i]}
    assert "topk" in next((tmp_path / "csv").rglob("hparams.yaml")).read_text()
    assert not any(name.startswith("routing/") for name in run.metrics)  # ``routing/`` in the folder has them


def test_panels_can_be_switched_off(tiny: Make, tmp_path: Path) -> None:
    off = {"callbacks": {"routing": {"use": "routing", "panels": False}}}
    run = moekit.train(tiny(trainer=off), out=tmp_path, quiet=True)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert run.routing and not [tag for tag in events.Tags()["scalars"] if tag.startswith("routing/")]


def test_weights_and_biases_offline_gets_them(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged: list[dict[str, Any]] = []
    log = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run,
        "log",
        lambda self, data, *a, **k: (logged.append(dict(data)), log(self, data, *a, **k))[1],
    )
    logger = {"mine": {"use": "wandb", "offline": True}}
    run = moekit.train(tiny(trainer={"logger": logger}), out=tmp_path, quiet=True)
    at = {key: [each["trainer/global_step"] for each in logged if key in each] for key in ("routing/load", "lr")}
    assert at == {"routing/load": [4, 8], "lr": [2, 4, 6, 8]}
    held = layer_logs(run.routing, "val")["blocks.2.ffn"]
    found = [each["routing/load/blocks.2.ffn"] for each in logged if "routing/load/blocks.2.ffn" in each]
    assert [each.histogram for each in found] == held.load_XE.tolist()
    assert [type(each[key]).__name__ for each in logged for key in ("report",) if key in each] == ["Html"]
    (media,) = (run.path / "wandb").glob("offline-run-*/files/media")
    assert len(list((media / "images" / "routing").glob("*.png"))) == 2
    (page,) = (media / "html").glob("*.html")
    assert "blocks.2.ffn" in page.read_text() and "Content-Security-Policy" in page.read_text()


def test_mlflow_gets_them(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client_of = pytest.importorskip("mlflow.tracking").MlflowClient
    monkeypatch.chdir(tmp_path)
    run = moekit.train(tiny(trainer={"logger": {"mine": {"use": "mlflow"}}}), out=tmp_path / "runs", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    client = client_of(f"sqlite:///{run.path.absolute()}/mlflow.db")
    (found,) = client.search_runs(["1"])
    history = client.get_metric_history(found.info.run_id, "routing/val/blocks.1.ffn/entropy")
    assert [metric.step for metric in history] == [4, 8] and found.data.params["seed"] == "0"
    kept = Path(client.download_artifacts(found.info.run_id, "", str(tmp_path)))
    load = json.loads((kept / "routing/load/blocks.1.ffn/step-00000008.json").read_text())["load"]
    assert load == layer_logs(run.routing, "val")["blocks.1.ffn"].load_XE[-1].tolist()
    assert imread(kept / "routing/load/step-00000004.png").shape[2] == 4
    assert "blocks.2.ffn" in (kept / "report.html").read_text()


def test_a_bar_holds_neighbours_if_there_are_too_many_experts() -> None:
    heights, edges = bars_of(np.arange(1000))
    assert len(heights) == 500 and heights[:2].tolist() == [1, 5] and edges[:2].tolist() == [-0.5, 1.5]
    heights, edges = bars_of(np.array([3, 0, 7]))
    assert heights.tolist() == [3, 0, 7] and edges.tolist() == [-0.5, 0.5, 1.5, 2.5]


def test_a_picture_has_a_row_for_each_layer() -> None:
    figure = picture_of({"a": np.array([1, 1, 1, 9]), "b": np.array([1, 1])}, step=3)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert pixels(figure).shape[2] == 3

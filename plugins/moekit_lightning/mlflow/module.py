"""Lightning's ``MLFlowLogger``, whose run is found again when training is resumed."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger

from moekit.extras import require
from moekit.training.run.hooks import RunInfo
from moekit_lightning.mlflow import MLflow

TAG = "moekit_folder"


def mlflow_logger(spec: MLflow, run: RunInfo) -> MLFlowLogger:
    """The logger. The run there has its folder as a tag, by which it is found when training is resumed.

    Raises:
        MissingPackage: mlflow is not installed.
    """
    require("mlflow", "the logger 'mlflow'", "mlflow")
    folder = str(run.folder.absolute())
    given = spec.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    uri = given or f"sqlite:///{folder}/mlflow.db"
    more: dict[str, Any] = {"run_id": earlier(spec.experiment, uri, folder)} if run.upto else {}
    if not given:  # else MLflow would keep files in the working directory
        more["artifact_location"] = (run.folder.absolute() / "mlflow").as_uri()
    return MLFlowLogger(
        experiment_name=spec.experiment,
        run_name=f"{run.name}/{run.label}" if run.label != run.name else run.name,
        tracking_uri=uri,
        tags={TAG: folder},
        **more,
    )


def earlier(experiment: str, uri: str, folder: str) -> str | None:
    """The id of the run that logged from this folder; None if there is none."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    runs = [] if found is None else client.search_runs([found.experiment_id], f"tags.{TAG} = '{folder}'")
    return str(runs[0].info.run_id) if runs else None

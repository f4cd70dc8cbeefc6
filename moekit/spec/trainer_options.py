"""The options of ``lightning.Trainer``, listed here because importing it takes seconds. A test compares the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moekit.errors import nearest
from moekit.spec.places import Report, found, one_of
from moekit.spec.sharding import check_loss_scale, check_sharded

TRAINER_OPTIONS: tuple[str, ...] = (
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "precision",
    "logger",
    "callbacks",
    "fast_dev_run",
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "max_time",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "overfit_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "log_every_n_steps",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "deterministic",
    "benchmark",
    "inference_mode",
    "use_distributed_sampler",
    "profiler",
    "detect_anomaly",
    "barebones",
    "plugins",
    "sync_batchnorm",
    "reload_dataloaders_every_n_epochs",
    "default_root_dir",
    "enable_autolog_hparams",
    "model_registry",
)
"""Every keyword of ``lightning.Trainer``."""

SET_BY_MOEKIT: Mapping[str, str] = {
    "logger": "moekit writes metrics.csv and TensorBoard files to the run's folder",
    "callbacks": "moekit adds its own; in Python, give yours to a Trainer around LitMoE",
    "default_root_dir": "every file of a run goes to the run's folder",
    "plugins": "it takes Python objects; in Python, give them to a Trainer around LitMoE",
    "use_distributed_sampler": "moekit samples by seed, step and rank itself, so that a run resumes exactly",
    "barebones": "it turns off the logs and checkpoints that a run is made of",
    "model_registry": "moekit uploads nothing",
    "max_epochs": "training samples its data and has no epochs; set trainer.max_steps",
    "min_epochs": "training samples its data and has no epochs; set trainer.min_steps",
}
"""Options that a spec may not set, and why."""


PRECISIONS: tuple[str, ...] = (
    "transformer-engine",
    "transformer-engine-float16",
    "16-true",
    "16-mixed",
    "bf16-true",
    "bf16-mixed",
    "32-true",
    "64-true",
    "64",
    "32",
    "16",
    "bf16",
)
"""Values of ``precision``: full names, and Lightning's short ones."""

LEAST: Mapping[str, tuple[type, int]] = {
    "max_steps": (int, 1),
    "num_nodes": (int, 1),
    "accumulate_grad_batches": (int, 1),
    "gradient_clip_val": (float, 0),
}
"""The type and minimum of numeric options. Lightning accepts some smaller values, and fails in training."""


def check_trainer(options: Mapping[str, Any], report: Report) -> None:
    """Reports options of a recipe's ``trainer`` that are unknown or that moekit sets itself, and invalid values."""
    check_sharded(options.get("strategy"), report)
    check_loss_scale(options, report)
    allowed = [name for name in TRAINER_OPTIONS if name not in SET_BY_MOEKIT]
    for name in options:
        if name in SET_BY_MOEKIT:
            report.add(("trainer", name), f"trainer option '{name}' is not for a spec: {SET_BY_MOEKIT[name]}")
        elif name not in TRAINER_OPTIONS:
            report.add(
                ("trainer", name),
                f"the Trainer has no option '{name}'",
                expected="an option of lightning.Trainer",
                nearest=nearest(name, allowed),
            )
        elif options[name] is not None:
            _check_value(name, options[name], report)


def _check_value(name: str, value: Any, report: Report) -> None:
    at = ("trainer", name)
    if name == "precision" and str(value) not in PRECISIONS:
        near = nearest(str(value), PRECISIONS)
        report.add(at, f"precision: {found(value)} is none of its choices", expected=one_of(PRECISIONS), nearest=near)
    elif name == "val_check_interval" and isinstance(value, int | float) and value <= 0:
        report.add(at, f"{name}: {found(value)} is out of range", expected="micro-batches, or a share of an epoch: > 0")
    elif name in LEAST:
        kind, least = LEAST[name]
        what, taken = ("an integer", int) if kind is int else ("a number", int | float)
        if isinstance(value, bool) or not isinstance(value, taken):
            report.add(at, f"{name}: {found(value)} is not {what}", expected=f"{what} >= {least}")
        elif not value >= least:
            report.add(at, f"{name}: {found(value)} is out of range", expected=f"{what} >= {least}")

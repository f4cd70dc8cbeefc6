"""Helpers of the training tests: a Trainer for a few steps, a layer's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from moekit import LayerReport, LossTerm, TokenChoice


def trainer(steps: int, folder: Path | None = None, **options: Any) -> L.Trainer:
    """A Trainer on the CPU that logs every step, validates every third, and writes nothing."""
    return L.Trainer(
        **{  # type: ignore[arg-type]
            "max_steps": steps,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "default_root_dir": folder,
            **options,
        }
    )


def report(experts: list[int], E: int = 4, dropped: int = 0, losses: dict[str, LossTerm] | None = None) -> LayerReport:
    """The report of a layer of E experts in which each token chose one."""
    expert_TK, scores = torch.tensor(experts, dtype=torch.int64)[:, None], torch.rand(len(experts), E)
    routing = TokenChoice(logits_TE=scores, scores_TE=scores, expert_TK=expert_TK, gate_TK=torch.ones(expert_TK.shape))
    return LayerReport(routing=routing, dropped=torch.tensor(dropped), losses={} if losses is None else losses)

"""Figures of a trained model that are no mean over tokens: what its data measures at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from torch.distributed.fsdp import FSDPModule

from moekit.contracts import Data, Model
from moekit.shards.shard import gather, state_dict_shards
from moekit.training.build import build_model
from moekit.training.module import LitMoE

WORDS = {"bleu": "BLEU", "chrf": "chrF"}


def evaluate(data: Data | None, model: Model | None, label: str, console: Console) -> dict[str, float]:
    """The data's scores of a model; empty where the data has none. Says that it is at work."""
    if data is None or model is None or type(data).scores is Data.scores:
        return {}
    doing = f"{label}: scoring the trained model"
    if not console.is_terminal:
        console.print(doing, highlight=False, markup=False)
    with console.status(doing):
        return dict(data.scores(model))


def score_rows(scores: Mapping[str, float], dense: Mapping[str, float] | None = None) -> list[tuple[str, str]]:
    """Each score's name and value in words, the dense model's beside it where that differs."""
    rows = []
    for name, value in scores.items():
        words = WORDS.get(name, name.replace("_", " "))
        told, other = _number(value), _number(dense[name]) if dense and name in dense else ""
        rows.append((words, f"{told}   (dense {other})" if other not in ("", told) else told))
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


def gather_model(module: LitMoE) -> Model | None:
    """The trained model, whole, for whoever measures or draws: on rank 0; None elsewhere, and where nobody does.

    A model in shards is put together on the CPU of rank 0, tensor by tensor. Collective.
    """
    if not isinstance(module.model, FSDPModule):
        return module.model
    data = module.data
    if data is None or (type(data).scores is Data.scores and type(data).picture is Data.picture):
        return None
    tensors = gather(state_dict_shards(module.model))
    if tensors is None:
        return None
    model = build_model(module.recipe)
    model.load_state_dict(tensors, assign=True)
    return model.train(module.model.training)

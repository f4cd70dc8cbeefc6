"""Saves every decision of a run, and counts them again in loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from moekit.contracts import Batch, ModelOutput
from moekit.routing import ExpertChoice, TokenChoice
from moekit.training.module import LitMoE
from moekit_report.routing.classes import CLASSES, class_of
from moekit_report.routing.naive import Decision

Key = tuple[str, int]  # part and optimizer step


class SaveDecisions(Callback):
    """Keeps the decisions of every token, by part and step, then by layer; and the drops that layers reported."""

    def __init__(self) -> None:
        self.decisions: dict[Key, dict[str, list[Decision]]] = {}
        self.dropped: dict[Key, dict[str, list[int]]] = {}
        self.passes: dict[Key, dict[str, list[int]]] = {}  # the tokens of each
        self._trainer: L.Trainer
        self._module: LitMoE

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._trainer, self._module = trainer, pl_module
        pl_module.observers.append(self._save)

    def _save(self, output: ModelOutput, batch: Batch) -> None:
        validating = self._trainer.validating or self._trainer.sanity_checking
        key = ("val", self._trainer.global_step) if validating else ("train", self._trainer.global_step + 1)
        for name, report in output.reports.items():
            found = decisions_of(report.routing, batch, self._module, name)
            self.decisions.setdefault(key, {}).setdefault(name, []).extend(found)
            self.passes.setdefault(key, {}).setdefault(name, []).append(len(found))
            lost = 0 if report.dropped_tokens is None else int(report.dropped_tokens)
            self.dropped.setdefault(key, {}).setdefault(name, []).append(int(report.dropped))
            self.dropped[key].setdefault(f"{name} tokens", []).append(lost)


def decisions_of(routing: Any, batch: Batch, module: LitMoE, name: str) -> list[Decision]:
    bias_E = module.balance.layers[name].selection_bias()
    bias = [] if bias_E is None else bias_E.tolist()
    T = len(routing.scores_TE)
    valid = [True] * T if routing.valid_T is None else routing.valid_T.tolist()
    chosen, options = chosen_of(routing, valid)
    scores, logits, shares = (x.detach().tolist() for x in (routing.scores_TE, routing.logits_TE, routing.share_TE()))
    domains: Sequence[int] = [-1] * T
    if batch.domain is not None:
        domains = [d for d in batch.domain.tolist() for _ in range(T // len(batch.domain))]
    classes = [-1] * T
    tokenizer = None if module.data is None else module.data.tokenizer
    if tokenizer is not None and batch.inputs.numel() == T:
        classes = [CLASSES.index(class_of(tokenizer.spelling[i])) for i in batch.inputs.flatten().tolist()]
    return [
        Decision(
            scores=scores[t], logits=logits[t], shares=shares[t], chosen=chosen[t], options=options, valid=valid[t],
            bias=bias, domain=domains[t], token_class=classes[t],
        )
        for t in range(T)
    ]  # fmt: skip


def chosen_of(routing: Any, valid: Sequence[bool]) -> tuple[list[Mapping[int, float]], int]:
    """The experts and gates of each token, in loops; and how many each chose."""
    chosen: list[dict[int, float]] = [{} for _ in valid]
    if isinstance(routing, TokenChoice):
        T, K = routing.expert_TK.shape
        expert_TK, gate_TK = routing.expert_TK.tolist(), routing.gate_TK.tolist()
        for t in range(T):
            for k in range(K):
                if valid[t] and (routing.sent_TK is None or bool(routing.sent_TK[t, k])):
                    chosen[t][expert_TK[t][k]] = gate_TK[t][k]
        return list(chosen), K
    assert isinstance(routing, ExpertChoice)
    E, C = routing.token_EC.shape
    gate_EC = routing.gate_EC.tolist()
    for e in range(E):
        for c in range(C):
            t = int(routing.token_EC[e, c])
            if valid[t]:
                chosen[t][e] = gate_EC[e][c]
    return list(chosen), 0


def close(x: Any, y: Any) -> bool:
    """Equal up to the rounding of sums in another order."""
    return bool(torch.allclose(as_tensor(x), as_tensor(y), rtol=1e-6, atol=1e-6, equal_nan=True))


def as_tensor(x: Any) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)

"""Where three training steps wait for the device: each read with its source line.

On a card by ``torch.cuda.set_sync_debug_mode``. A rehearsal counts the operators that read a value, which on a card
would wait.
"""

from __future__ import annotations

import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import moekit
from gpu.case import Case, Result, Where
from gpu.training import small
from moekit.routing import TokenChoice
from moekit_plan.traffic import rows_of

STEPS = 3
WARM = 4  # steps before: `auto` times its candidates, buffers are made
LAYER = ("moe_layer.py", "moekit_dispatchers/", "moekit_routers/", "moekit_experts/", "moekit_balancers/")


def cases(where: Where) -> Iterator[Case]:
    """First that a read is seen; then the recipe's own dispatcher, and the two that a card can use."""
    yield Case(name="a read is found with its line", run=lambda: known(where))
    for dispatcher in ("auto", "grouped", "triton"):
        yield Case(name=f"deepseek_v3 with {dispatcher}", run=lambda d=dispatcher: audit(where, d))  # type: ignore[misc]


def audit(where: Where, dispatcher: str) -> Result:
    """Reads in ``STEPS`` steps that do not log. No layer may read anything, and a step may wait once."""
    watch = _Watch(where)
    options = [*small(where), f"trainer.max_steps={WARM + STEPS + 1}", f"model.moe.dispatcher={{use: {dispatcher}}}"]
    options += ["trainer.log_every_n_steps=1000", "trainer.limit_val_batches=0", "trainer.enable_checkpointing=false"]
    with tempfile.TemporaryDirectory() as folder:
        moekit.train("deepseek_v3", options, out=folder, compare=False, quiet=True, callbacks=[watch])
    total, lines = sum(watch.seen.values()), watch.lines()
    in_layers = [place for place in watch.seen if any(part in place for part in LAYER)]
    ok = watch.steps == STEPS and not in_layers and total <= STEPS
    return Result(ok=ok, note="" if ok else "; ".join(lines[:3]), figures={"reads": total, "lines": lines})


def known(where: Where) -> Result:
    """A function that reads one number."""
    zeros_TE, chosen_TK = torch.zeros(4, 2, device=where.device), torch.zeros(4, 1, device=where.device)
    routing = TokenChoice(logits_TE=zeros_TE, scores_TE=zeros_TE, expert_TK=chosen_TK.long(), gate_TK=chosen_TK)
    watch = _Watch(where)
    watch.switch(True)
    rows_of(routing, 2, 1)
    watch.switch(False)
    ok = any("moekit/parallel/traffic.py" in place for place in watch.seen)
    return Result(ok=ok, figures={"lines": watch.lines()})


class _Watch(L.Callback):
    """Records reads from the start of a batch to the start of the next one."""

    def __init__(self, where: Where) -> None:
        self.where, self.seen, self.steps = where, Counter[str](), 0
        self._mode = _CountReads(self.seen)
        self._shown = warnings.showwarning
        self._on = False

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Switches on at step ``WARM``, and off after ``STEPS`` more."""
        if trainer.global_step == WARM:
            self.switch(True)
        elif trainer.global_step == WARM + STEPS:
            self.switch(False)
        self.steps = min(max(trainer.global_step - WARM, 0), STEPS)

    def on_exception(self, *args: Any) -> None:
        """Leaves nothing switched on."""
        self.switch(False)

    def lines(self) -> list[str]:
        """Each place with its number of reads, the most frequent first."""
        return [f"{count} x {place}" for place, count in self.seen.most_common()]

    def switch(self, on: bool) -> None:
        """Begins or ends to record."""
        if on == self._on:
            return
        self._on = on
        if self.where.rehearsal:
            self._mode.__enter__() if on else self._mode.__exit__(None, None, None)
            return
        warnings.simplefilter("always" if on else "default")
        warnings.showwarning = self._show if on else self._shown
        torch.cuda.set_sync_debug_mode("warn" if on else "default")

    def _show(self, message: Any, *args: Any, **kwargs: Any) -> None:
        if "synchroniz" in str(message):
            self.seen[place()] += 1


class _CountReads(TorchDispatchMode):
    """Counts operators that read a value."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.seen[place()] += 1
        return func(*args, **(kwargs or {}))


def place() -> str:
    """The innermost line of moekit or of Lightning that is running, with its text."""
    for frame in reversed(traceback.extract_stack()):
        *folders, name = Path(frame.filename).parts
        at = max((i for i, each in enumerate(folders) if each.startswith("moekit") or each == "lightning"), default=-1)
        if at >= 0 and frame.filename != __file__ and "site-packages" not in folders[at:]:
            return f"{'/'.join([*folders[at:], name])}:{frame.lineno} {frame.line}"
    return "a thread of torch, without Python: backward"

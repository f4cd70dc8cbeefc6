"""Short runs by precision, and compiled; where a trained model is evaluated."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

import moekit
from gpu.case import Case, Result, Where

NEAR = 0.05  # of the loss in fp32
PAIRS = ("save", "open", "close", "print", "find", "undo", "cut", "copy", "paste", "help")


def small(where: Where) -> list[str]:
    """Options of ``deepseek_v3``, which is small enough for a card, and tiny in a rehearsal."""
    rehearsed = ["model.depth=2", "data.seq=32", "data.batch=2", "data.megabytes=0.1"]
    return [f"trainer.accelerator={where.size('gpu', 'cpu')}", "trainer.devices=1", *where.size([], rehearsed)]


def cases(where: Where) -> Iterator[Case]:
    """In fp32 first: the others must come near its loss."""
    seen: dict[str, float] = {}
    precisions = ["32-true", "bf16-mixed", *where.size(["16-mixed", "bf16-true"], [])]
    for name, options in [
        *((precision, [f"trainer.precision={precision}"]) for precision in precisions),
        ("bf16-mixed, compiled", ["trainer.precision=bf16-mixed", "compile=true"]),
    ]:
        yield Case(name=name, run=lambda n=name, o=options: trained(where, n, o, seen))  # type: ignore[misc]
    if where.rehearsal:  # Lightning has no loss scale on a CPU
        yield Case(name="16-mixed", run=lambda: Result(note="skipped: a CPU has no loss scale"))
    yield Case(name="a translation model is evaluated on the device that trained it", run=lambda: evaluated(where))


def trained(where: Where, name: str, options: Sequence[str], seen: dict[str, float]) -> Result:
    """The loss of the last steps, the speed, the peak of memory."""
    steps = where.size(60, 8)
    if not where.rehearsal:
        torch.cuda.reset_peak_memory_stats()
    more = [f"trainer.max_steps={steps}", "trainer.log_every_n_steps=2", "trainer.enable_checkpointing=false"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*small(where), *options, *more, "trainer.limit_val_batches=1"]
        run = moekit.train("deepseek_v3", arguments, out=folder, compare=False, quiet=True)
        losses = [loss for loss in run.metrics["train/loss"] if loss is not None]
        speeds = [speed for speed in run.metrics["tokens_per_second"] if speed is not None]
    loss = statistics.mean(losses[-3:])
    exact = seen.setdefault("32-true", loss)
    problems = [
        *(["a loss is not finite"] if not all(map(math.isfinite, losses)) else []),
        *(["the loss did not fall"] if not loss < losses[0] else []),
        *([f"fp32 has {exact:.4f}"] if not abs(loss - exact) <= NEAR * exact else []),
    ]
    figures: dict[str, Any] = {"loss": round(loss, 4), "tokens per s": round(statistics.median(speeds))}
    if not where.rehearsal:
        figures["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return Result(ok=not problems, note="; ".join(problems), figures=figures)


def evaluated(where: Where) -> Result:
    """BLEU is decoded with the model's modules on the device that trained it."""
    watch = _Devices()
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.tsv"
        pairs.write_text("\n".join(f"{word} {n}\t{word.upper()} {n}\tloud" for word in PAIRS for n in range(3)))
        options = [
            f"data={{use: translations, path: {pairs}, languages: [loud], tokenizer: bytes, vocab: 258,"
            " batch_tokens: 128, validation_pairs: 4}",
            "model.dim=16", "model.attention={use: relative, heads: 2, head_dim: 8}",
            "model.cross={heads: 2, head_dim: 8}", "model.ffn.hidden=16", "model.moe.experts.count=4",
            "model.moe.experts.hidden=16", "trainer.max_steps=2", f"trainer.accelerator={where.size('gpu', 'cpu')}",
            "trainer.devices=1",
        ]  # fmt: skip
        moekit.train("gshard", options, out=Path(folder) / "runs", compare=False, quiet=True, callbacks=[watch])
    return Result(ok=watch.seen == {where.device}, figures={"devices": sorted(watch.seen)})


class _Devices(L.Callback):
    """The devices of the modules that run after training."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on every forward pass is an evaluator's."""

        def record(module: torch.nn.Module, args: object) -> None:
            self.seen.update(p.device.type for p in module.parameters(recurse=False))

        for module in pl_module.modules():
            module.register_forward_pre_hook(record)

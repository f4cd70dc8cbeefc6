"""Run by ``test_large_corpus``: trains on a corpus, notes each batch, and says how much memory the process had at most.

python tests/e2e/large_corpus_run.py corpus 2000            # writes 2,000 MB
python tests/e2e/large_corpus_run.py train FOLDER --steps 40 --out runs --batches batches.txt [--kill 20]
python tests/e2e/large_corpus_run.py resume RUN --steps 40 --batches batches.txt
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

WORDS = (
    "the of and to a in is that it was for on are as with his they at be this from have or by one had not but".split()
)


def write(folder: Path, megabytes: int) -> None:
    """A long text file and JSON lines, a half each, by repeating a paragraph under other numbers."""
    folder.mkdir(parents=True)
    some = random.Random(0)
    paragraphs = [" ".join(some.choice(WORDS) for _ in range(400)) for _ in range(64)]
    half, size = megabytes * 500_000, 0
    with (folder / "long.txt").open("w") as text, (folder / "records.jsonl").open("w") as records:
        for number in range(1 << 40):
            paragraph = paragraphs[number % 64]
            text.write(f"{number}: {paragraph}\n")
            records.write(f'{{"id": {number}, "domain": "records", "text": "{number}. {paragraph}"}}\n')
            size += len(paragraph) + 12
            if size >= half:
                return


def peak() -> float:
    """The most memory that this process has had, MB: that of files that are mapped into it counts too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def main() -> None:
    """Does what the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["corpus", "train", "resume"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batches", type=Path)
    parser.add_argument("--kill", type=int, default=0, help="the step at which the process kills itself")
    parser.add_argument("--tokenizer", default="bytes")
    args = parser.parse_args()
    if args.what == "corpus":
        write(args.path, args.megabytes)
        return

    import lightning as L

    import moekit

    class Notes(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 0:
                print(f"first batch after {time.monotonic() - start:.1f} s, {peak():.0f} MB", flush=True)
            if args.kill and trainer.global_step == args.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            digest = hashlib.sha256(batch.inputs.numpy().tobytes()).hexdigest()[:16]
            with args.batches.open("a") as file:
                file.write(f"{trainer.global_step} {digest}\n")

    start = time.monotonic()
    if args.what == "resume":
        moekit.train(None, [f"trainer.max_steps={args.steps}"], resume=args.path, callbacks=[Notes()], compare=False)
    else:
        recipe = {
            "schema": 1,
            "name": "large",
            "model": {
                "use": "decoder", "vocab": "${data.tokenizer.vocab}", "dim": 16, "depth": 2,
                "attention": {"use": "gqa", "heads": 2, "head_dim": 8}, "ffn": {"use": "glu", "hidden": 16},
                "moe": {
                    "at": {"first": 1}, "router": {"use": "topk", "top_k": 2},
                    "experts": {"use": "glu", "count": 4, "hidden": 8}, "dispatcher": {"use": "grouped"},
                },
            },
            "objective": {"use": "causal_lm"},
            "data": {
                "use": "text_files", "path": str(args.path), "seq": 256, "batch": 32, "validation_windows": 4,
                "tokenizer": {"use": "bytes"} if args.tokenizer == "bytes" else {"use": "bpe", "vocab": 2048},
            },
            "optimizer": {"use": "adamw", "lr": 1e-3},
            "trainer": {
                "max_steps": args.steps, "accelerator": "cpu", "val_check_interval": 10, "limit_val_batches": 1,
                "enable_progress_bar": False,
            },
        }  # fmt: skip
        moekit.train(recipe, out=args.out, callbacks=[Notes()], compare=False)
    print(f"peak {peak():.0f}", flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()

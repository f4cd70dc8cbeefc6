"""Fine-tune a mixture that was imported from a Hugging Face folder, with a balance loss that it did not have.

Look at bits per byte on prose, before and after, and at MaxVio: the added balancer evens the load out. The folder is
made on the spot, of a tiny mixture that read Python alone. Put a real one in its place: ``config.json``, safetensors.
Run ``python examples/fine_tune_import.py`` (20 s on one core).
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path

import lightning as L

import moekit
from moekit.cli import main as moekit_command
from moekit.training import LitMoE

MADE = {
    "extends": "base/language_model",
    "model": {
        "dim": 32,
        "depth": 2,
        "attention": {"heads": 4, "kv_heads": 2, "head_dim": 8},
        "ffn": {"hidden": 48},
        "moe": {
            "at": {"first": 0},
            "router": {"use": "topk", "top_k": 2, "renormalize": True},
            "experts": {"use": "glu", "count": 4, "hidden": 48},
        },
    },
    "data": {"domains": ["python"], "megabytes": 0.2, "seq": 64, "batch": 4, "validation_windows": 64,
             "tokenizer": {"use": "bpe", "vocab": 400}},
    "trainer": {"max_steps": 60, "accelerator": "cpu"},
}  # fmt: skip
TUNING = [
    "data.domains=[prose]", "data.megabytes=0.2", "data.seq=64", "data.batch=4", "data.validation_windows=64",
    "model.moe.balancers={load: {use: load_balance, weight: 0.05}}",
    "optimizer.lr=3e-3", "trainer.max_steps=60", "trainer.accelerator=cpu",
]  # fmt: skip


def command(*args: str) -> None:
    """Runs ``moekit ARGS`` in this process."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert moekit_command([*args]) == 0, f"moekit {' '.join(args)} failed"


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    with tempfile.TemporaryDirectory() as work:
        theirs, imported, tuned = (str(Path(work) / name) for name in ("tiny-mixtral", "imported", "tuned-mixtral"))

        made = moekit.train(MADE, out=work, name="made", quiet=True)
        command("export", str(made.path), theirs, "--format", "hf", "family=mixtral")

        # From here on, `theirs` is any folder of a Hugging Face mixture.
        command("import", theirs, "--to", imported)
        trainer = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
        (before,) = trainer.validate(LitMoE(imported, TUNING), verbose=False)
        run = moekit.train(imported, TUNING, out=work, name="tuned", quiet=True)
        after = run.outcome["validation"]
        print("on prose         before   after")
        print(f"bits per byte    {before['val/bits_per_byte']:6.2f}  {after['bits_per_byte']:6.2f}")
        print(f"MaxVio           {before['val/max_violation']:6.2f}  {after['max_violation']:6.2f}")

        command("export", str(run.path), tuned, "--format", "hf")
        print(f"taken home: {', '.join(sorted(path.name for path in Path(tuned).iterdir()))}")
        assert after["bits_per_byte"] < before["val/bits_per_byte"]


if __name__ == "__main__":
    main()

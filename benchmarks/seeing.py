"""What it costs to see experts: statistics in a step of training, and the time that a report takes to open.

    python benchmarks/seeing.py step                      # deepseek_v3, glam, switch
    python benchmarks/seeing.py step deepseek_v3 --steps 200
    python benchmarks/seeing.py page                      # 1,000 steps and 100,000, 12 layers of 64 experts
    python benchmarks/seeing.py step --docs               # also writes the table of docs/seeing_experts.md

``step`` records every other step of one training, so that both kinds of step have the same machine, and compares their
median processor times. A run records about 100 of its steps, so the cost of a whole run is smaller by as much.
``page`` needs ``playwright`` and a Chromium in ``PATH``; it opens pages from disk, without network, five times each.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import measured
import numpy as np
from lightning.pytorch.callbacks import Callback

from moekit import load
from moekit import open as open_run
from moekit.spec import dump
from moekit.training.module import LitMoE
from moekit.training.run.prepare import quiet
from moekit_report.contents import contents
from moekit_report.page import html_of
from moekit_report.routing.module import RoutingRecorder
from moekit_report.routing.writing import save_tables

WARMUP = 6
STEP = {"recipe": "`{}`", "ms, recorded": "{:.1f}", "ms, not recorded": "{:.1f}", "cost": "{:+.1%}"}
PAGE = {"steps": "{:,}", "MB": "{:.1f}", "opens in, s": "{:.2f}"}


def long_record(folder: Path, *, rows: int, every: int, layers: int, experts: int) -> None:
    """A made-up record of so many rows, one at every so many-th step."""
    generator = np.random.default_rng(0)
    step, layer, expert = (a.ravel() for a in np.indices((rows, layers, experts)))
    names = [f"blocks.{i}.ffn" for i in range(layers)]
    load = generator.multinomial(4096, np.full(experts, 1 / experts), size=(rows, layers)).ravel()
    one = np.indices((rows, layers)).reshape(2, -1)
    means = {name: generator.random(rows * layers) for name in ("entropy", "first_gate", "margin", "logit_norm")}
    counts = ("tokens", "padded_tokens", "pairs", "padded_pairs", "unsent_pairs", "dropped_pairs", "dropped_tokens")
    tables = {
        "experts": {
            "step": (step + 1) * every, "part": np.zeros(len(step), np.int8), "layer": layer, "expert": expert,
            "load": load, "importance": load * 0.5, "bias": generator.normal(size=len(load)).astype(np.float32),
        },
        "layers": {
            "step": (one[0] + 1) * every, "part": np.zeros(one.shape[1], np.int8), "layer": one[1],
            "experts": np.full(one.shape[1], experts), "changed": np.full(one.shape[1], np.nan), **means,
            **{name: np.full(one.shape[1], 4096) for name in counts}, "unsent_tokens": np.zeros(one.shape[1]),
        },
    }  # fmt: skip
    save_tables(folder / f"step-{rows * every}.npz", tables, {"layer": names, "part": ("train", "val")})


class Alternate(Callback):
    """Has every other step recorded, and times all."""

    def __init__(self, recorder: RoutingRecorder) -> None:
        self.recorder = recorder
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self._start = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.recorder.train = batch_idx % 2 == 0
        self._start = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= WARMUP:
            self.seconds[self.recorder.train].append(time.process_time() - self._start)


def cost_of(recipe: str, steps: int, folder: str) -> list[Any]:
    """A row: the median time of steps with and without statistics."""
    recorder = RoutingRecorder(validation=False)
    timer = Alternate(recorder)
    with quiet():
        trainer = L.Trainer(
            max_steps=steps + WARMUP, accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, limit_val_batches=0,
            callbacks=[recorder, timer],  # the timer last: its end comes after the recorder's
        )  # fmt: skip
        trainer.fit(LitMoE(recipe))
    on, off = (statistics.median(timer.seconds[with_it]) for with_it in (True, False))
    return [recipe, 1e3 * on, 1e3 * off, on / off - 1]


def opening(path: Path) -> list[float]:
    """Seconds from the address to the page's last chart, in Chromium without network."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as starter:
        browser = starter.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(5):
            page = browser.new_context(offline=True).new_page()
            start = time.perf_counter()
            page.goto(path.as_uri())
            page.wait_for_selector("body[data-ready]")
            found.append(time.perf_counter() - start)
            page.context.close()
        browser.close()
    return found


def pages(folder: Path) -> Iterator[list[Any]]:
    """Rows: size and opening time of the pages of a long and of a very long run."""
    for rows, every in ((1000, 1), (4000, 25)):
        run = folder / str(rows)
        run.mkdir()
        (run / "spec.yaml").write_text(dump(load("deepseek_v3"), full_names=True))
        long_record(run / "routing", rows=rows, every=every, layers=12, experts=64)
        path = run / "report.html"
        path.write_text(html_of(contents(open_run(run), model=False)), encoding="utf-8")
        yield [rows * every, path.stat().st_size / 1e6, statistics.median(opening(path))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "page"))
    parser.add_argument("recipes", nargs="*", default=["deepseek_v3", "glam", "switch"])
    parser.add_argument("--steps", type=int, default=60)
    measured.option(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "page":
            columns, rows = PAGE, list(pages(Path(folder)))
        else:
            columns, rows = STEP, [cost_of(recipe, args.steps, folder) for recipe in args.recipes]
    measured.publish(f"seeing_{args.what}", measured.table(columns, rows), docs=args.docs)


if __name__ == "__main__":
    main()

"""The source files and calls of five paths: a run's start, an option, a token, the end of a step, a checkpoint save.

The start leads from ``moekit train jacobs1991`` to ``Trainer.fit``; an option, from the text of an override of
``deepseek_v3`` to the router's spec, in a process that has loaded the recipe before. Functions of moekit and its
plugins are counted, not the bodies of modules and classes, nor comprehensions.

python benchmarks/call_paths.py [--files] [start | option | token | step | save ...]
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (str(ROOT / "moekit"), str(ROOT / "plugins"))
PATHS = {
    "start": "start of a run",
    "option": "option",
    "parts": "  its recipe's",
    "token": "token",
    "step": "end of a step",
    "save": "save",
}
TINY = ["model.depth=2", "model.dim=32", "data.batch=2", "data.seq=32", "trainer.accumulate_grad_batches=2"]


def entered(call: Callable[[], object]) -> Counter[str]:
    """How often a call enters a function of moekit or its plugins, by file, in the order of the first entry."""
    files: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        body = code.co_name.startswith("<") and code.co_name != "<lambda>"  # of a module, or a comprehension
        if event == "call" and code.co_filename.startswith(SOURCES) and not body:
            files[str(Path(code.co_filename).relative_to(ROOT))] += bool(code.co_flags & inspect.CO_NEWLOCALS)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return +files


class Reached(BaseException):
    """``Trainer.fit`` was called."""


def start() -> Counter[str]:
    """From ``moekit train jacobs1991`` to ``Trainer.fit``. For a fresh process: nothing may be imported yet."""
    import lightning.pytorch

    from moekit.cli import main

    def fit(*args: object, **kwargs: object) -> NoReturn:
        raise Reached

    lightning.pytorch.Trainer.fit = fit  # type: ignore[method-assign]

    def run() -> None:
        try:
            main(["train", "jacobs1991"])
        except Reached:
            pass

    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        os.chdir(folder)
        printed, sys.stdout = sys.stdout, nowhere
        try:
            return entered(run)
        finally:
            sys.stdout = printed
            os.chdir(before)


def option() -> tuple[Counter[str], Counter[str]]:
    """From ``model.moe.router.top_k=4`` to the router's spec; and, apart, the recipe's other components."""
    from moekit import load

    load("deepseek_v3")
    files = entered(lambda: load("deepseek_v3", ["model.moe.router.top_k=4"]))
    parts = {file for file in files if file.startswith("plugins/") and "routers/" not in file}
    return Counter({f: n for f, n in files.items() if f not in parts}), Counter({f: files[f] for f in parts})


def token() -> Counter[str]:
    """The forward pass of one layer of ``deepseek_v3``, after a first one."""
    import torch

    from moekit import MoELayer, load

    model: Any = load("deepseek_v3").model
    layer, x = MoELayer.from_spec(model.moe, dim=model.dim), torch.randn(2, 16, model.dim)
    layer(x)
    return entered(lambda: layer(x))


def step_and_save() -> tuple[Counter[str], Counter[str]]:
    """The end of the last of three optimizer steps, each of which is logged here, and the save after it."""
    import lightning as L
    import torch

    from moekit import load
    from moekit.training import AtomicCheckpointIO, LitMoE
    from moekit.training.callbacks.checkpoint import SaveCheckpoints

    class Probe(LitMoE):
        step_files: Counter[str]

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.step_files = entered(lambda: super(Probe, self).on_before_optimizer_step(optimizer))

    module, saves = Probe(load("deepseek_v3", TINY)), []
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=3, accumulate_grad_batches=2, log_every_n_steps=1, limit_val_batches=0, num_sanity_val_steps=0,
            logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
            plugins=[AtomicCheckpointIO()], callbacks=[SaveCheckpoints(Path(folder) / "checkpoints")],
            default_root_dir=folder,
        )  # fmt: skip
        save = trainer.save_checkpoint
        trainer.save_checkpoint = lambda *args, **kwargs: saves.append(entered(lambda: save(*args, **kwargs)))  # type: ignore[method-assign]
        trainer.fit(module)
    return module.step_files, saves[-1]


def main() -> None:
    names = [name for name in PATHS if name != "parts"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="PATH", help=f"some of {', '.join(names)} (default: all)")
    parser.add_argument("--files", action="store_true", help="name the files, with their calls")
    args = parser.parse_args()
    wanted = args.paths or names
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: dict[str, Counter[str]] = {}
    if wanted == ["start"]:
        found["start"] = start()
    elif "start" in wanted:
        subprocess.run([sys.executable, __file__, "start", *["--files"] * args.files], check=True)
    if "option" in wanted:
        found["option"], found["parts"] = option()
    if "token" in wanted:
        found["token"] = token()
    if "step" in wanted or "save" in wanted:
        found["step"], found["save"] = step_and_save()
    for name, files in found.items():
        if name in wanted or name == "parts":
            print(f"{PATHS[name]:<16}{len(files):>3} files {files.total():>6,} calls")
            if args.files:
                print("\n".join(f"  {calls:>6,}  {file}" for file, calls in files.most_common()))


if __name__ == "__main__":
    main()

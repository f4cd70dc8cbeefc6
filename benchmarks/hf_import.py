"""Peak memory and time of importing a random model of Hugging Face, against copying its files.

    python benchmarks/hf_import.py --gigabytes 2
    python benchmarks/hf_import.py --docs    # also writes the table of docs/hugging_face.md

Writes a Mixtral of random bfloat16 weights in several files, imports it, exports it again, and prints seconds, and
memory above that of importing the packages. Each job runs in a process of its own, and the rounds of jobs alternate:
the best time of each counts, and ratios to the copy of the same round. What a job wrote is on the disk when it ends.
Needs four times the model's size there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import measured

DIM, HIDDEN, EXPERTS = 1024, 4096, 8
LAYER = 3 * DIM * HIDDEN * EXPERTS * 2  # bytes, in bfloat16


def write_model(path: Path, gigabytes: float) -> None:
    """A folder of about that size: a file for each layer, and an index."""
    import torch
    from safetensors.torch import save_file

    path.mkdir()
    depth = max(1, round(gigabytes * 1e9 / LAYER))
    config = {
        "model_type": "mixtral", "vocab_size": 1000, "hidden_size": DIM, "intermediate_size": HIDDEN,
        "num_hidden_layers": depth, "num_attention_heads": 8, "num_key_value_heads": 2, "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    where = {}
    for i in range(-1, depth):
        block = f"model.layers.{i}."
        shapes = {"model.embed_tokens.weight": (1000, DIM), "lm_head.weight": (1000, DIM), "model.norm.weight": (DIM,)}
        if i >= 0:
            rows = {"q": DIM, "k": DIM // 4, "v": DIM // 4, "o": DIM}
            shapes = {f"{block}self_attn.{name}_proj.weight": (size, DIM) for name, size in rows.items()}
            shapes |= {f"{block}{name}_layernorm.weight": (DIM,) for name in ("input", "post_attention")}
            shapes[f"{block}block_sparse_moe.gate.weight"] = (EXPERTS, DIM)
            for e in range(EXPERTS):
                expert = f"{block}block_sparse_moe.experts.{e}."
                shapes |= {f"{expert}w{n}.weight": (DIM, HIDDEN) if n == 2 else (HIDDEN, DIM) for n in (1, 2, 3)}
        file = f"model-{i + 2:05d}-of-{depth + 1:05d}.safetensors"
        save_file({name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}, path / file)
        where |= dict.fromkeys(shapes, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def copy(path: Path, out: Path) -> None:
    """Copies the folder and flushes it to the disk, as an import does."""
    shutil.copytree(path, out)
    for file in out.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def job(what: str, path: Path, out: Path) -> dict[str, float]:
    """Seconds, seconds of CPU, and megabytes of peak memory above those before, of one job in this process."""

    from moekit.machine import keep_freed_memory
    from moekit.registry import build
    from moekit_hf.exporter import HuggingFace
    from moekit_hf.importing import import_folder, inspect

    if what == "import":
        inspect(path)  # imports what it needs, reads headers alone
        keep_freed_memory()  # as the command does
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, start, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    if what == "copy":
        copy(path, out)
    elif what == "import":
        import_folder(path, out)
    else:
        build(HuggingFace()).export(path / "checkpoints" / "step-00000000", out)
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "megabytes": memory("VmHWM") - before,
    }


def memory(what: str) -> float:
    """This process's memory, or its peak, in megabytes, as Linux counts it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Runs each job in a process of its own and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    measured.option(parser)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        what, path, out = args.job
        print(json.dumps(job(what, Path(path), Path(out))))
        return
    with TemporaryDirectory(prefix="moekit-import-", dir=os.environ.get("TMPDIR")) as folder:
        model, run = Path(folder) / "model", Path(folder) / "run"
        write_model(model, args.gigabytes)
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        jobs = {"copy": (model, Path(folder) / "copy"), "import": (model, run), "export": (run, Path(folder) / "out")}
        rounds: dict[str, list[dict[str, float]]] = {what: [] for what in jobs}
        for _ in range(args.rounds):
            for what, (source, out) in jobs.items():
                shutil.rmtree(out, ignore_errors=True)
                command = [sys.executable, __file__, "--job", what, str(source), str(out)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                rounds[what].append(found)
    copied = [each["seconds"] for each in rounds["copy"]]
    rows: list[list[object]] = []
    for what, every in rounds.items():
        best = {key: min(each[key] for each in every) for key in every[0]}
        ratio = [each["seconds"] / seconds for each, seconds in zip(every, copied, strict=True)]
        rows.append([what, best["seconds"], min(ratio), median(ratio), best["cpu"], best["megabytes"]])
    made = measured.table(
        {
            "": "{}", "seconds": "{:.1f}", "times the copy": "{:.2f}", "median": "{:.2f}", "of CPU": "{:.1f}",
            "peak memory above that before, MB": "{:.0f}",
        },
        rows,
        words="{size:.2f} GB of bfloat16. The largest tensor has {largest:.1f} MB; the experts of a layer, one tensor "
        "here, have {ours:.0f} MB.",
        values={"size": size / 1e9, "largest": DIM * HIDDEN * 2 / 1e6, "ours": LAYER * 2 / 3e6},
    )  # fmt: skip
    measured.publish("hf_import", made, docs=args.docs)


if __name__ == "__main__":
    main()

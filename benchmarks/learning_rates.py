"""A recipe and its dense baseline, each at its best of the same learning rates.

Trains both at every rate, on the same tokens, and prints a table. A comparison at a single rate can favour one model;
this one cannot. Run ``python benchmarks/learning_rates.py deepseek_v3`` (a few minutes a rate); overrides follow the
recipe's name.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="a.b=c, as for moekit train")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 3e-3, 4e-3, 6e-3])
    parser.add_argument("--out", type=Path, help="keep the runs here")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    console = Console(stderr=True)
    rows: dict[float, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for rate in args.rates:
            out = (args.out or Path(temporary)) / f"{rate:g}"
            console.print(f"learning rate {rate:g}")
            command = [sys.executable, "-m", "moekit", "train", args.recipe, *args.overrides]
            command += [f"optimizer.lr={rate!r}", f"compare={{lr: {rate!r}}}", "--out", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            (summary,) = (path for path in out.rglob("summary.json") if path.parent.name != "dense")
            rows[rate] = json.loads(summary.read_text())["comparison"]
            console.print(f"  mixture {rows[rate]['moe']:.3f}, dense {rows[rate]['dense']:.3f}")
    table = Table("learning rate", "mixture", "dense", title=f"{args.recipe}: {next(iter(rows.values()))['metric']}")
    best = {side: min(row[side] for row in rows.values()) for side in ("moe", "dense")}
    for rate, row in rows.items():
        marked = (f"[bold]{row[s]:.3f}[/bold]" if row[s] == best[s] else f"{row[s]:.3f}" for s in ("moe", "dense"))
        table.add_row(f"{rate:g}", *marked)
    Console().print(table)
    print(f"best against best: {best['moe']:.3f} against {best['dense']:.3f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

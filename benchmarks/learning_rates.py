"""A recipe and its dense baseline, each at its best of the same learning rates.

    python benchmarks/learning_rates.py deepseek_v3           # a few minutes a rate
    python benchmarks/learning_rates.py deepseek_v3 --docs    # also writes the table of docs/measurements.md

Trains both at every rate, on the same tokens. A comparison at a single rate can favour one model; this one cannot.
Overrides follow the recipe's name.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import measured
from lineage import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="a.b=c, as for moekit train")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 3e-3, 4e-3])
    parser.add_argument("--out", type=Path, help="keep the runs here")
    measured.option(parser)
    args = parser.parse_args()
    rows: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for rate in args.rates:
            options = [*args.overrides, f"optimizer.lr={rate!r}", f"compare={{lr: {rate!r}}}"]
            found = train(args.recipe, (args.out or Path(temporary)) / f"{rate:g}", options)["comparison"]
            rows.append((rate, found["moe"], found["dense"]))
    (value, rate), (dense, dense_rate) = (min((row[side], row[0]) for row in rows) for side in (1, 2))
    made = measured.table(
        {"learning rate": "{:g}", f"mixture, {found['metric'].replace('_', ' ')}": "{:.3f}", "dense": "{:.3f}"},
        rows,
        words="At its best rate the mixture ends with {value:.3f} (at {rate:g}), the dense model with {dense:.3f} "
        "(at {dense_rate:g}).",
        values={"value": value, "rate": rate, "dense": dense, "dense_rate": dense_rate},
    )
    measured.publish("learning_rates", made, docs=args.docs)


if __name__ == "__main__":
    main()

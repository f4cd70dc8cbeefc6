"""How fast the tiny recipes begin to learn, by the scale of their initial weights.

python benchmarks/init_scale.py           # several minutes; --steps 20 for a look
python benchmarks/init_scale.py --docs    # also writes the table of docs/measurements.md
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import measured
from lineage import train

RECIPES = ("deepseek_v3", "glam", "gshard", "st_moe", "switch")
STARTS = {
    "std .06": ("model.init_std=0.06", "model.init_scale=null"),
    "s = .1": ("model.init_scale=0.1",),
    "s = .5": ("model.init_scale=0.5",),
    "s = 1": ("model.init_scale=1.0",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--steps", type=int, default=100)
    measured.option(parser)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.recipes:
            ends: list[float] = []
            for start in STARTS.values():
                options = ["--no-compare", f"trainer.max_steps={args.steps}", *start]
                ends.append(train(name, Path(temporary) / str(len(ends)), options)["curve"][-1][1])
            rows.append([name, *ends])
            print(*rows[-1], flush=True)
    made = measured.table(
        {"recipe": "`{}`"} | dict.fromkeys(STARTS, "{:.3f}"),
        rows,
        words="Validation bits per byte after {steps} steps, one seed, each recipe's own learning rate.",
        values={"steps": args.steps},
    )
    measured.publish("init_scale", made, docs=args.docs)


if __name__ == "__main__":
    main()

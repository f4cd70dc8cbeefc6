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

STEPS = {"deepseek_v3": 250, "glam": 100, "gshard": 200, "st_moe": 200, "switch": 200}
STARTS = {
    "std .06": ("model.init_std=0.06", "model.init_scale=null"),
    "s = .1": ("model.init_scale=0.1",),
    "s = .5": ("model.init_scale=0.5",),
    "s = 1": ("model.init_scale=1.0",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(STEPS), help=", ".join(STEPS))
    parser.add_argument("--steps", type=int, help="of all, for a look")
    measured.option(parser)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.recipes:
            steps = args.steps or STEPS[name]
            ends: list[float] = []
            for start in STARTS.values():
                options = ["--no-compare", f"trainer.max_steps={steps}", *start]
                ends.append(train(name, Path(temporary) / str(len(ends)), options)["curve"][-1][1])
            rows.append([name, steps, *ends])
            print(*rows[-1], flush=True)
    made = measured.table(
        {"recipe": "`{}`", "steps": "{}"} | dict.fromkeys(STARTS, "{:.3f}"),
        rows,
        words="Validation bits per byte, one seed, each recipe's own learning rate.",
    )
    measured.publish("init_scale", made, docs=args.docs)


if __name__ == "__main__":
    main()

"""``moekit bench``: the cost of layers, routers, dispatch and training steps, side by side."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from moekit_bench.request import BENCHMARKS, DTYPES, GROWTHS, SHAPES, BenchRequest

EXAMPLES = """\
  moekit bench layer                                        every dispatcher against a dense layer of equal work
  moekit bench layer fine --dispatchers loop,grouped --memory
  moekit bench layer --shape 2048,512,256,64,8 --dispatchers '{use: capacity, factor: 1.0}' --json > figures.json
  moekit bench layer fine --growth experts                  E from 8 to 256 at equal multiply-adds
  moekit bench layer olmoe --tokens 1024 --device cpu       a layer of a published model, with fewer tokens
  moekit bench layer fine --against transformers            another library on equal weights and routing
  moekit bench router many                                  routers alone
  moekit bench dispatch fine                                dispatch and combine alone
  moekit bench step deepseek_v3 data.batch=4                a training step against its dense baseline
  moekit bench step deepseek_v3 model.mtp=null --against transformers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    described = "; ".join(f"{what}: {words}" for what, words in BENCHMARKS.items())
    parser.add_argument("what", choices=list(BENCHMARKS), help=described)
    parser.add_argument(
        "names",
        nargs="*",
        default=[],
        metavar="NAME",
        help=f"shapes ({', '.join(SHAPES)}; default: those for the device); for step: a recipe and options",
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        dest="shapes",
        metavar="T,D,H,E,K",
        help="another shape; repeatable",
    )
    parser.add_argument("--tokens", type=int, metavar="T", help="tokens of every shape, in place of its own")
    parser.add_argument("--growth", choices=GROWTHS, default="", help="a series of shapes: E from 8 to 256, or T")
    for kind, example in (("dispatchers", "loop,grouped"), ("routers", "topk")):
        parser.add_argument(
            f"--{kind}",
            action="append",
            default=[],
            metavar="NAMES",
            help=f"only these ({example}), or one as YAML with options ({{use: ..., ...}}); repeatable",
        )
    parser.add_argument(
        "--against", default="", metavar="LIBRARIES", help="other libraries, if installed: see docs/benchmarks.md"
    )
    parser.add_argument("--memory", action="store_true", help="bytes saved for backward; on a GPU the peak too")
    parser.add_argument(
        "--explain", action="store_true", help="print what dispatchers that choose among others choose, and why"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="", help="default: cuda where there is one")
    parser.add_argument("--dtype", choices=DTYPES, default="", help="default: float32; on cuda bfloat16")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads of torch on the CPU (default: torch's choice)"
    )
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="rounds that count (default: 9)")
    parser.add_argument(
        "--warmup", type=int, default=2, metavar="N", help="rounds before them that do not (default: 2)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with the seconds of every round")


def run(args: argparse.Namespace) -> int:
    """Prints a table for each shape, or JSON.

    Raises:
        MoekitError: something requested does not exist, does not fit, or does not fit this machine.
    """
    given: dict[str, Any] = {field.name: getattr(args, field.name) for field in dataclasses.fields(BenchRequest)}
    given["against"] = filter(None, args.against.split(","))
    given |= {name: tuple(given[name]) for name in ("names", "shapes", "dispatchers", "routers", "against")}
    request = BenchRequest(**given)
    recipe = None
    if request.what == "step":
        from moekit.spec import load

        recipe = load(request.names[0], request.names[1:])  # reports mistakes before torch is imported

    from moekit_bench.run import run as measure

    measure(request, recipe)
    return 0

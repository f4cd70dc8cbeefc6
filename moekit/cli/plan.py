"""``moekit plan``: bytes on a device and on the wire, for a recipe on many devices, before anything is started."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from moekit.cli import text
from moekit.cli.config import one_name

if TYPE_CHECKING:
    from moekit.planning.advice import Advice
    from moekit.planning.plan import Plan, Row

SUMMARY = "size a run on many devices: bytes on each of them, bytes on the wire"
EXAMPLES = """\
  moekit plan deepseek_v3 --devices 4
  moekit plan deepseek_moe-16b --devices 64 --precision bf16-mixed --recompute blocks
  moekit plan deepseek_v3-671b --devices 2048 --ep 8,64 --batch 1 --sequence 4096
  moekit plan deepseek_v3 --devices 4 --explain        how each figure is made
"""

TERMS = {
    "parameters": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "gathered": "gathered",
    "gathered_gradients": "their grads",
    "copies": "copies",
    "activations": "activations",
    "outside": "outside",
    "at_work": "at work",
    "exchange": "exchange",
}
"""What the terms of ``Memory`` are called in the table."""

EXPLAIN = """\
  N devices, ep of them share a layer's experts, R = N / ep hold the same ones; b bytes a number: 4, or 2 or 8 by dtype
  weights      sum over parameters of b * its part: a routed bank's E/ep experts cut over R ranks, all else over N,
               along the first dimension of 8 N rows or more, or the first that divides evenly; and all buffers
  gradients    the same, of what is trained
  optimizer    the same rule for each tensor that the optimizer keeps; which it keeps is read off a tiny one
  gathered     b * (what is in no block + two blocks), whole: the block at work and the next one
  their grads  b * (what is in no block + one block), before they are added up over ranks
  copies       of the E/ep experts in autocast's dtype: all layers', or one layer's where activations are recomputed
  activations  kept for backward by the blocks, summed over the storages that autograd saves in a forward pass
  outside      the same, outside of blocks: inputs of blocks that are computed again, embedding, head, loss
  at work      the most that lives at once in a forward and backward pass, less what is kept
  exchange     2 * T * r * D * a of the layer that sends most; T = B * S tokens, D numbers each, of a bytes: those of
               autocast's dtype where autocast is on, else b
  r            ranks that hold a choice of a token, on average: ep * (1 - C(E - E/ep, K) / C(E, K)) for K free choices
               of E experts; within the router's groups where it limits a token to some
  sent         per layer T * r * (ep - 1) / ep rows out and back, their gradients back and out, a bytes a number, with
               gates, of max(4, b), and experts' numbers, of 4; out and back once more where activations are recomputed
  gathers      per micro-batch b * (n - 1) / n of each weight on n ranks, twice for blocks; scatters: of gradients once
  Activations and what is at work are measured on tensors without storage. Load is taken as even. The allocator's own
  waste, NCCL's buffers and the CUDA context are not in it: leave a tenth of the device free."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("name", help="a recipe or a YAML file")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="options to change")
    parser.add_argument("--devices", type=int, required=True, metavar="N", help="devices in all")
    parser.add_argument("--ep", default="", metavar="N,N", help="layouts: devices that share a layer's experts")
    parser.add_argument(
        "--batch", type=int, metavar="B", help="sequences in a device's micro-batch; default: the data's"
    )
    parser.add_argument("--sequence", type=int, metavar="S", help="tokens of each; default: the data's, or 4096")
    parser.add_argument("--accumulate", type=int, metavar="A", help="micro-batches a step; default: the recipe's, or 1")
    parser.add_argument(
        "--precision", default="", metavar="P", help="32-true, bf16-mixed, bf16-true, ...; default: the recipe's"
    )
    parser.add_argument(
        "--device-memory", type=float, default=80.0, metavar="GIB", help="GiB of a device (default: 80)"
    )
    parser.add_argument("--recompute", choices=("none", "experts", "blocks"), help="default: the recipe's")
    parser.add_argument("--explain", action="store_true", help="print how each figure is made")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")


def run(args: argparse.Namespace) -> int:
    """Prints the plan.

    Raises:
        MoekitError: the recipe has mistakes, a layout does not divide the devices or experts.
    """
    name, overrides = one_name("plan", [args.name, *args.overrides])
    from moekit.planning.request import Request, bytes_of_gib, eps_of, numbers_of, precision_of, shape_of
    from moekit.spec import load

    recipe = load(name, overrides)
    batch, sequence = shape_of(recipe)
    request = Request(
        devices=args.devices,
        eps=eps_of(recipe, args.devices, numbers_of(args.ep)),
        batch=batch if args.batch is None else args.batch,
        sequence=sequence if args.sequence is None else args.sequence,
        accumulate=int(recipe.trainer.get("accumulate_grad_batches", 1))
        if args.accumulate is None
        else args.accumulate,
        precision=precision_of(recipe, args.precision),
        device_memory=bytes_of_gib(args.device_memory),
    )
    from moekit.planning.advice import advise  # imports torch: after the request is known to be right
    from moekit.planning.plan import Planner, recompute_of
    from moekit.screen import Screen, status_line

    with status_line(Screen(stderr=True)) as tell:
        planner = Planner(recipe, tell)
        plan = planner.plan(request, planner.policy(args.recompute or recompute_of(recipe.model)))
        advice = [] if any(map(plan.fits, plan.rows)) else advise(planner, plan)
    if args.json:
        print(json.dumps(plain(plan, advice), indent=2))
    else:
        print("\n".join(_page(" ".join([name, *overrides]), plan, advice, args.explain)))
    return 0


def bytes_of(number: float) -> str:
    """A number of bytes to three digits or more, in units of 1024: ``1.31G``, ``812M``, ``0``."""
    if number == 0:
        return "0"
    for unit in ("", "K", "M", "G", "T"):
        if number < 1000 or unit == "T":
            digits = 0 if number >= 100 or not unit else 1 if number >= 10 else 2
            return f"{number:.{digits}f}{unit}"
        number /= 1024
    raise AssertionError


def table(plan: Plan) -> list[tuple[str, ...]]:
    """The layouts' bytes on a device: a head, and a row for each."""
    used = [name for name in TERMS if any(row.memory.terms()[name] for row in plan.rows)]
    rows: list[tuple[str, ...]] = [("ep", *(TERMS[name] for name in used), "total", "fits")]
    for row in plan.rows:
        terms = row.memory.terms()
        fits = "yes" if plan.fits(row) else "no"
        rows.append((str(row.layout.ep), *(bytes_of(terms[n]) for n in used), bytes_of(row.memory.total), fits))
    return rows


def wire_table(plan: Plan) -> list[tuple[str, ...]]:
    """What a device sends in a step: a head, and a row for each layout."""
    rows: list[tuple[str, ...]] = [
        ("ep", "ranks a token", "rows a token", "bytes a token", "sent", "messages", "gathers", "scatters", "calls")
    ]
    for row in plan.rows:
        layers = list(row.wire.layers.values())
        count = max(len(layers), 1)
        rows.append(
            (
                str(row.layout.ep),
                f"{sum(layer.reached for layer in layers) / count:.2f}",
                f"{sum(layer.rows for layer in layers) / count:.2f}",
                bytes_of(sum(layer.bytes_per_token for layer in layers)),
                bytes_of(row.wire.exchanged),
                f"{row.wire.messages:,}",
                bytes_of(row.wire.gathers),
                bytes_of(row.wire.scatters),
                f"{row.wire.collectives:,}",
            )
        )
    return rows


def plain(plan: Plan, advice: list[Advice]) -> dict[str, Any]:
    """The plan as plain values, in bytes."""
    from dataclasses import asdict

    return {
        "request": asdict(plan.request) | {"tokens": plan.request.tokens},
        "recompute": plan.recompute,
        "optimizer": plan.optimizer,
        "parameters": plan.parameters,
        "dispatcher_planned": plan.instead,
        "layouts": [
            {
                "ep": row.layout.ep,
                "memory": row.memory.terms() | {"total": row.memory.total},
                "fits": plan.fits(row),
                "wire": asdict(row.wire) | {"exchanged": row.wire.exchanged, "messages": row.wire.messages},
            }
            for row in plan.rows
        ],
        "advice": [
            {"change": a.what, "ep": a.row.layout.ep, "total": a.row.memory.total, "fits": a.fits} for a in advice
        ],
    }


def _page(title: str, plan: Plan, advice: list[Advice], explain: bool) -> list[str]:
    request = plan.request
    shape = f"{request.batch} x {request.sequence} tokens a device, {request.accumulate} micro-batch"
    shape += "es" if request.accumulate != 1 else ""
    lines = [
        text.bold(f"{title} on {request.devices} devices"),
        *text.paragraph(
            f"{plan.parameters:,} parameters; {request.precision}, {plan.optimizer}, "
            f"{f'recompute {plan.recompute}, ' if plan.recompute else ''}{shape}: {request.tokens:,} tokens a step"
        ),
        "",
        text.bold("bytes on the device that has the most"),
        *_aligned(table(plan)),
        "",
        text.bold("sent by a device in a step: tokens over all mixture layers; weights and gradients"),
        *_aligned(wire_table(plan)),
        "",
        *_verdict(plan, advice),
    ]
    return [*lines, "", text.bold("how"), EXPLAIN] if explain else lines


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    sizes = text.columns(rows)
    return text.table([tuple(cell.rjust(size) for cell, size in zip(row, sizes, strict=True)) for row in rows])


def _verdict(plan: Plan, advice: list[Advice]) -> Iterator[str]:
    has = f"{plan.request.device_memory / 2**30:g}G"
    least = min(plan.rows, key=lambda row: row.memory.total)
    if plan.fits(least):
        yield text.bold(f"fits: ep={least.layout.ep} takes {bytes_of(least.memory.total)} of {has}")
    else:
        needs = bytes_of(least.memory.total)
        yield text.bold(f"does not fit: ep={least.layout.ep} takes least, and needs {needs} of {has}")
    yield f"  most of it: {_largest(least)}"
    if plan.instead:
        stands = f"planned with dispatcher '{plan.instead}'"
        yield f"  {stands}: the recipe's reads its load, and a plan has none; on CPUs it keeps less"
    if plan.request.devices > 1 and plan.whole_tensors:
        refused = "looks at whole tensors, and is refused in shards (trainer.strategy)"
        yield f"  optimizer '{plan.optimizer}' {refused}; others: moekit ls optimizers"
    for change in advice:
        takes = f"ep={change.row.layout.ep} then takes {bytes_of(change.row.memory.total)}"
        yield f"  {'try' if change.fits else 'not even'} {change.what}: {takes}"


def _largest(row: Row) -> str:
    largest = sorted(row.memory.terms().items(), key=lambda term: -term[1])[:3]
    return ", ".join(f"{TERMS[name]} {bytes_of(size)}" for name, size in largest if size)

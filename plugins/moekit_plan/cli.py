"""``moekit plan``: memory of a device and traffic between devices, for a recipe on many, without running it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from moekit.cli import text
from moekit.cli.config import one_name
from moekit_plan.tables import TERMS, bytes_of, links_table, memory_table, traffic_table

if TYPE_CHECKING:
    from moekit_plan.advice import Advice
    from moekit_plan.plan import LayoutPlan, RunPlan

EXAMPLES = """\
  moekit plan deepseek_v3 --devices 4
  moekit plan deepseek_moe-16b --devices 64 --precision bf16-mixed --recompute blocks
  moekit plan deepseek_v3-671b --devices 2048 --ep 8,64 --batch 1 --sequence 4096
  moekit plan deepseek_v3-671b --devices 2048 --ep 64 --per-node 8     what a node of 8 sends to others
  moekit plan deepseek_v3 --devices 4 --explain        how each figure is computed
"""

EXPLAIN = """\
  N devices, ep of them share a layer's experts, R = N / ep hold the same ones; b bytes a number: 4, or 2 or 8 by dtype
  weights      sum over parameters of b * their shard: a layer's E/ep routed experts are sharded over R ranks, all else
               over N, along the first dimension of 8 N rows or more, or the first that divides evenly; and all buffers.
               With --dense replicate all else is whole on every rank
  gradients    the same, of trained parameters
  optimizer    the same for each tensor of the optimizer's state; its tensors are found by one step of a tiny model
  gathered     b * (all outside of blocks + two blocks), all-gathered: the current block and the next. Under bf16-mixed
               2 for b where experts are sharded over R > 1 ranks and ep > 1, or all else is replicated
  their grads  b * (all outside of blocks + one block) of trained parameters, before they are reduced over ranks; with
               --reduce step and several micro-batches max(4, b) * all of them
  copies       of the E/ep experts in autocast's dtype: all layers', or one layer's with activation checkpointing; none
               of experts that are gathered in it
  activations  saved for backward by the blocks: the sum of all storages that autograd saves in a forward pass
  outside      the same outside of blocks: inputs of recomputed blocks, embedding, head, loss
  transient    the peak of a forward and backward pass, less what is saved for backward
  exchange     2 * T * r * D * a of the layer that sends most; T = B * S tokens, D numbers each, a bytes a number: that
               of autocast's dtype with autocast, else b
  r            ranks with an expert of a token, on average: ep * (1 - C(E - E/ep, K) / C(E, K)) for K free choices
               of E experts; fewer where the router limits a token to some groups
  sent         per layer T * r * (ep - 1) / ep rows out and back, and their gradients, of a bytes a number; with each
               row its gates (max(4, b) bytes) and expert numbers (4 bytes); with recomputation out and back once more
  gathers      per micro-batch b * (n - 1) / n of each weight on n ranks, twice for blocks but the last
  scatters     per micro-batch, or with --reduce step once, max(4, b) * (n - 1) / n of each gradient on n ranks
  sums         per step 2 * max(4, b) * (N - 1) / N of each gradient that is whole on every rank
  of a node    with M devices a node (--per-node): its tokens' T * r * (ep - M) / ep rows; gathers and scatters as rings
               in the order of ranks: once for weights on all N ranks, min(M, ep) times for experts on R
  "activations" and "transient" are measured on tensors without storage. Load is assumed to be even. Not included: the
  allocator's fragmentation, NCCL's buffers and the CUDA context; leave a tenth of the device free."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("name", help="a recipe or a YAML file")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="options to change")
    parser.add_argument("--devices", type=int, required=True, metavar="N", help="devices in all")
    parser.add_argument("--per-node", type=int, default=0, metavar="M", help="devices of a node: prints its traffic")
    parser.add_argument("--ep", default="", metavar="N,N", help="layouts: devices that share a layer's experts")
    parser.add_argument(
        "--dense", choices=("shard", "replicate"), help="what is not a routed expert; default: the recipe's, or shard"
    )
    parser.add_argument(
        "--reduce", choices=("micro_batch", "step"), help="gradients of shards; default: the recipe's, or micro_batch"
    )
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
    parser.add_argument("--explain", action="store_true", help="print how each figure is computed")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")


def run(args: argparse.Namespace) -> int:
    """Prints the plan.

    Raises:
        MoekitError: the recipe has mistakes, an option is out of range, or the model cannot be planned.
    """
    name, overrides = one_name("plan", [args.name, *args.overrides])
    from moekit.spec import load
    from moekit_plan.request import (
        PlanRequest,
        bytes_of_gib,
        eps_of,
        parse_eps,
        precision_of,
        shape_of,
        strategy_option,
    )

    recipe = load(name, overrides)
    batch, sequence = shape_of(recipe)
    request = PlanRequest(
        devices=args.devices,
        eps=eps_of(recipe, args.devices, parse_eps(args.ep)),
        batch=batch if args.batch is None else args.batch,
        sequence=sequence if args.sequence is None else args.sequence,
        accumulate=recipe.trainer.accumulate_grad_batches if args.accumulate is None else args.accumulate,
        precision=precision_of(recipe, args.precision),
        device_memory=bytes_of_gib(args.device_memory),
        dense=strategy_option(recipe, "dense", args.dense),
        reduce=strategy_option(recipe, "reduce", args.reduce),
        per_node=args.per_node,
    )
    from moekit.screen import Screen, status_line
    from moekit_plan.advice import advise  # imports torch, so only once the request is valid
    from moekit_plan.plan import RunPlanner, recompute_of

    with status_line(Screen(stderr=True)) as on_progress:
        planner = RunPlanner(recipe, on_progress)
        plan = planner.plan(request, args.recompute or recompute_of(recipe.model))
        advice = [] if any(map(plan.fits, plan.rows)) else advise(planner, plan)
    if args.json:
        print(json.dumps(plain(plan, advice), indent=2))
    else:
        print("\n".join(_page(" ".join([name, *overrides]), plan, advice, args.explain)))
    return 0


def plain(plan: RunPlan, advice: list[Advice]) -> dict[str, Any]:
    """The plan as plain values, in bytes."""
    from dataclasses import asdict

    return {
        "request": asdict(plan.request) | {"tokens": plan.request.tokens},
        "recompute": plan.recompute,
        "optimizer": plan.optimizer,
        "parameters": plan.parameters,
        "dispatcher_planned": plan.substitute,
        "layouts": [
            {
                "ep": row.layout.ep,
                "memory": row.memory.terms() | {"total": row.memory.total},
                "fits": plan.fits(row),
                "traffic": asdict(row.traffic) | {"exchanged": row.traffic.exchanged, "messages": row.traffic.messages},
                "links": asdict(row.links) | {"exchanged": row.links.exchanged} if row.links else None,
            }
            for row in plan.rows
        ],
        "advice": [
            {"change": a.what, "ep": a.row.layout.ep, "total": a.row.memory.total, "fits": a.fits} for a in advice
        ],
    }


def _page(title: str, plan: RunPlan, advice: list[Advice], explain: bool) -> list[str]:
    request = plan.request
    shape = f"{request.batch} x {request.sequence} tokens per device, {request.accumulate} micro-batch"
    shape += "es" if request.accumulate != 1 else ""
    dense = "dense part replicated, " if request.dense == "replicate" else ""
    lines = [
        text.bold(f"{title} on {request.devices} devices"),
        *text.paragraph(
            f"{plan.parameters:,} parameters; {request.precision}, {plan.optimizer}, "
            f"{f'recompute {plan.recompute}, ' if plan.recompute else ''}{dense}{shape}: "
            f"{request.tokens:,} tokens per step"
        ),
        "",
        text.bold("memory of the device that has the most, in bytes"),
        *_aligned(memory_table(plan)),
        "",
        text.bold("sent by a device in a step: tokens of all MoE layers; weights and gradients"),
        *_aligned(traffic_table(plan)),
        "",
        *_links(plan),
        *_verdict(plan, advice),
    ]
    return [*lines, "", text.bold("how"), EXPLAIN] if explain else lines


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    return text.table(text.to_the_right(rows, left=0))


def _links(plan: RunPlan) -> list[str]:
    if not (rows := links_table(plan)):
        return []
    return [text.bold(f"sent by a node of {plan.request.per_node} devices to others in a step"), *_aligned(rows), ""]


def _verdict(plan: RunPlan, advice: list[Advice]) -> Iterator[str]:
    has = f"{plan.request.device_memory / 2**30:g}G"
    least = min(plan.rows, key=lambda row: row.memory.total)
    if plan.fits(least):
        yield text.bold(f"fits: ep={least.layout.ep} takes {bytes_of(least.memory.total)} of {has}")
    else:
        needs = bytes_of(least.memory.total)
        yield text.bold(f"does not fit: ep={least.layout.ep} takes least, and needs {needs} of {has}")
    yield f"  most of it: {_largest(least)}"
    if plan.substitute:
        planned = f"planned with dispatcher '{plan.substitute}'"
        yield f"  {planned}: the recipe's needs real loads; on CPUs it saves less"
    if plan.request.devices > 1 and plan.whole_tensors:
        rejected = "needs unsharded tensors, so sharded training rejects it (trainer.strategy)"
        yield f"  optimizer '{plan.optimizer}' {rejected}; others: moekit ls optimizers"
    for change in advice:
        takes = f"ep={change.row.layout.ep} {'' if change.fits else 'still '}takes {bytes_of(change.row.memory.total)}"
        yield f"  {'try' if change.fits else 'with'} {change.what}: {takes}"


def _largest(row: LayoutPlan) -> str:
    largest = sorted(row.memory.terms().items(), key=lambda term: -term[1])[:3]
    return ", ".join(f"{TERMS[name]} {bytes_of(size)}" for name, size in largest if size)

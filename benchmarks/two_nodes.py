"""Two nodes on one machine: bytes on the link between them, with and without routers that limit a token to a node.

    python benchmarks/two_nodes.py           # prints
    python benchmarks/two_nodes.py --docs    # also stores the table and shows it on its page

Each node is a network namespace with two ranks, and a pair of virtual interfaces is the link: everything that nodes
send each other passes it, and its counters show every byte. ``torchrun --nnodes 2`` starts a node, as on two machines.
Needs ``ip`` and ``unshare`` (Linux), as root or where users may make namespaces; leaves nothing behind.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measured

from moekit import load
from moekit.spec.recipe import Recipe
from moekit_plan.nodes import NodeTraffic
from moekit_plan.plan import RunPlanner
from moekit_plan.request import PlanRequest
from moekit_plan.traffic import COUNT_BYTES

NODES, PER_NODE, STEPS = 2, 2, 3
BATCH, SEQUENCE = 8, 128
RANK = Path(__file__).with_name("two_nodes_rank.py")
NOT_ALLOWED = 77
NETWORK = """\
mount -t tmpfs none /run && mkdir /run/netns && ip netns add node0 && ip netns add node1 || exit 77
ip link add name wire netns node0 type veth peer name wire netns node1 || exit 77
for i in 0 1; do
  ip netns exec node$i sh -c 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6' 2>/dev/null
  ip -n node$i addr add 10.77.0.$((i + 1))/24 dev wire && ip -n node$i link set lo up || exit 77
  ip -n node$i link set wire up || exit 77
done
"""
"""Shell commands that make two namespaces and the link, an interface ``wire`` in each; 77: not allowed."""
SMALL = (
    "model.depth=3", "model.dim=64", "model.mtp=null", "objective={use: causal_lm}", "compare=null", "model.vocab=512",
    "model.attention={use: gqa, heads: 2, kv_heads: 1, head_dim: 32}", "model.ffn.hidden=128",
    "model.moe.experts.count=16", "model.moe.experts.hidden=32", "model.moe.shared.hidden=32",
    "model.moe.router.top_k=4", f"data.batch={BATCH}", f"data.seq={SEQUENCE}", "data.megabytes=0.2",
    "trainer.accelerator=cpu", f"trainer.devices={PER_NODE}", f"trainer.num_nodes={NODES}",
    f"trainer.max_steps={STEPS + 1}", "trainer.limit_val_batches=0", "trainer.enable_checkpointing=false",
    "trainer.log_every_n_steps=1000",
)  # fmt: skip
"""A small ``deepseek_v3`` with two MoE layers of 16 experts, four a token."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A router and a layout.

    Attributes:
        name: of its row.
        groups, top_groups: of the router; groups are consecutive experts, as the ranks' are.
        ep: size of an expert group.
    """

    name: str
    groups: int = 1
    top_groups: int = 1
    ep: int = NODES * PER_NODE

    @property
    def options(self) -> list[str]:
        """Of the recipe."""
        return [
            *SMALL, f"trainer.strategy={{use: sharded, ep: {self.ep}}}", f"model.moe.router.groups={self.groups}",
            f"model.moe.router.top_groups={self.top_groups if self.groups > 1 else 'null'}",
            f"model.moe.router.group_score={'top2_sum' if self.groups > 1 else 'max'}",
        ]  # fmt: skip


CASES = (
    Case(name="any expert"),
    Case(name="experts of two ranks", groups=NODES * PER_NODE, top_groups=2),
    Case(name="experts of one node", groups=NODES, top_groups=1),
    Case(name="any expert, `ep: 2`: a node has all experts", ep=PER_NODE),
)


class NoNamespacesError(RuntimeError):
    """This machine does not let this user make network namespaces."""


def run_ranks(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """What every rank counted in each case.

    Raises:
        NoNamespacesError: they cannot be made.
        RuntimeError: a rank failed; with what it printed.
    """
    if not (shutil.which("ip") and shutil.which("unshare")):
        raise NoNamespacesError("this needs the commands ip and unshare (Debian: apt-get install iproute2)")
    with tempfile.TemporaryDirectory() as folder:
        out, script = Path(folder) / "counts.json", Path(folder) / "nodes.sh"
        listed = json.dumps([{"name": case.name, "options": case.options} for case in cases])
        script.write_text(NETWORK + "\n".join(_node(i, out) for i in range(NODES)) + "\nwait $first && wait $second\n")
        for flags in ("-nm", "-rnm"):  # as root; as a user who is root of a namespace of their own
            env = {**os.environ, "OMP_NUM_THREADS": "1", "CASES": listed, "GLOO_SOCKET_IFNAME": "wire"}
            done = subprocess.run(
                ["unshare", flags, "--kill-child", "--fork", "--pid", "--mount-proc", "sh", str(script)],
                env=env, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if out.exists():
                found: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
                return found
            if done.returncode != NOT_ALLOWED and not done.stderr.startswith("unshare:"):
                raise RuntimeError(f"the ranks ended with {done.returncode}:\n{(done.stdout + done.stderr)[-6000:]}")
        raise NoNamespacesError(f"network namespaces are not allowed here: {done.stderr.strip()[-300:]}")


def _node(i: int, out: Path) -> str:
    """The shell command that starts a node's ranks: as docs/scaling_out.md has it, with its own address."""
    address = f"10.77.0.{i + 1}"
    return (
        f"ip netns exec node{i} {sys.executable} -m torch.distributed.run --nnodes {NODES} --nproc-per-node {PER_NODE} "
        f"--rdzv-id moe1 --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:29500 --rdzv-conf is_host={1 - i} "
        f'--local-addr {address} {RANK} "$CASES" {out} & {("first", "second")[i]}=$!'
    )


def planned(case: Case) -> NodeTraffic:
    """What a node sends in a step, by ``moekit plan``."""
    recipe: Recipe = load("deepseek_v3", case.options)
    request = PlanRequest(
        devices=NODES * PER_NODE, eps=(case.ep,), batch=BATCH, sequence=SEQUENCE, accumulate=1, precision="32-true",
        device_memory=1, per_node=PER_NODE,
    )  # fmt: skip
    links = RunPlanner(recipe).plan(request, "none").rows[0].links
    assert links is not None
    return links


@dataclass(frozen=True, kw_only=True)
class Row:
    """Bytes that a node sends to the other in a step.

    Attributes:
        name: of the case.
        plan: what was planned.
        rows: that a token sends to the other node in a layer, counted.
        tokens: bytes of tokens, counted by the all-to-alls.
        by_plan: bytes of tokens by the plan's formula, for the rows counted.
        framed: ``tokens`` with the framing of collectives of known size.
        link: bytes on the link during all-to-alls.
        gathers, scatters: bytes on the link during all-gathers and reduce-scatters.
        per_byte, per_message: bytes of framing.
    """

    name: str
    plan: NodeTraffic
    rows: float
    tokens: float
    by_plan: float
    framed: float
    link: float
    gathers: float
    scatters: float
    per_byte: float
    per_message: float


def row_of(case: Case, counted: dict[str, Any]) -> Row:
    """One case's row."""
    plan, ranks = planned(case), counted["ranks"]
    steps, over = ranks[0]["steps"], ranks[0]["overhead"]
    per = NODES * steps
    layers, T = list(plan.layers.values()), PER_NODE * BATCH * SEQUENCE
    rows = sum(rank["rows"] for rank in ranks) / per
    counts = len(layers) * PER_NODE * max(case.ep - PER_NODE, 0) * COUNT_BYTES  # before rows: how many follow
    expected = sum(layer.rows for layer in layers) * T
    by_plan = counts + rows * (plan.exchanged - counts) / expected if expected else 0.0
    tokens = sum(rank["tokens"] for rank in ranks) / per
    link = {name: number / per for name, number in ranks[0]["link"].items()}
    calls = ranks[0]["calls"].get("tokens", 0) / steps
    messages = calls * PER_NODE * PER_NODE if expected else 0.0
    return Row(
        name=case.name,
        plan=plan,
        rows=rows / T / max(len(layers), 1),
        tokens=tokens,
        by_plan=by_plan,
        framed=tokens * (1 + over["per byte"]) + messages * over["per message"],
        link=link.get("tokens", 0.0),
        gathers=link.get("gathers", 0.0),
        scatters=link.get("scatters", 0.0),
        per_byte=over["per byte"],
        per_message=over["per message"],
    )


COLUMNS = {
    "a token may choose": "{}",
    "rows to the other node, planned, counted": "{:.3f}, {:.3f}",
    "KiB of tokens, planned": "{:,.1f}",
    "counted": "{:,.1f}",
    "on the link": "{:,.1f}",
    "÷ counted": "{:.3f}",
    "KiB of weights, planned, on the link": "{:,.1f}, {:,.1f}",
    "of gradients": "{:,.1f}, {:,.1f}",
}
WORDS = """A node's step: {nodes} nodes of {per_node} ranks, {tokens:,} tokens a rank, two MoE layers of 16 experts, 4 a
token, fp32. *Counted* is what all-to-alls are given for ranks of the other node. *On the link* is what its counters
show meanwhile, headers of Ethernet, IP and TCP included, less the bytes by which ranks wait for each other around each
collective, which vary by some KiB. Framing takes {per_byte:.1%} of a byte and {per_message:,.0f}
bytes of a message, by all-to-alls of known size; of that and of what was counted, the link carried {least:.3f} to
{most:.3f}."""


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measured.option(parser)
    args = parser.parse_args()
    found = [row_of(case, counted) for case, counted in zip(CASES, run_ranks(CASES), strict=True)]
    K = 1024
    rows = [
        [
            row.name, [row.plan.rows, row.rows], row.plan.exchanged / K, row.tokens / K, row.link / K,
            row.link / row.tokens if row.tokens else None,
            [row.plan.gathers / K, row.gathers / K], [row.plan.scatters / K, row.scatters / K],
        ]
        for row in found
    ]  # fmt: skip
    shares = [row.link / row.framed for row in found if row.framed]
    values = {
        "nodes": NODES, "per_node": PER_NODE, "tokens": BATCH * SEQUENCE, "per_byte": found[0].per_byte,
        "per_message": found[0].per_message, "least": min(shares), "most": max(shares),
    }  # fmt: skip
    device = f"{NODES * PER_NODE} processes, 1 thread each, gloo"
    made = measured.table(COLUMNS, rows, words=WORDS, values=values, device=device)
    measured.publish("two_nodes", made, docs=args.docs)


if __name__ == "__main__":
    main()

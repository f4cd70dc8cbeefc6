"""Updates the tables and formulas of ``docs/scaling_out.md`` with the output of ``moekit plan``.

python docs/make_scaling_out.py
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from moekit import load
from moekit_plan.cli import EXPLAIN
from moekit_plan.plan import RunPlanner
from moekit_plan.request import PlanRequest
from moekit_plan.tables import links_table, memory_table, traffic_table

PAGE = Path(__file__).with_name("scaling_out.md")
GIB = 2**30


class Case(NamedTuple):
    """A call of ``moekit plan``."""

    recipe: str
    devices: int
    eps: tuple[int, ...]
    batch: int
    recompute: str
    per_node: int = 0

    @property
    def command(self) -> str:
        """The command line."""
        eps = ",".join(map(str, self.eps))
        return (
            f"moekit plan {self.recipe} --devices {self.devices} --ep {eps} --batch {self.batch} --sequence 4096 "
            f"--precision bf16-mixed --recompute {self.recompute}"
            + (f" --per-node {self.per_node}" if self.per_node else "")
        )


CASES = (
    Case("deepseek_moe-16b", 32, (1, 4, 8, 32), 2, "none"),
    Case("deepseek_moe-16b", 32, (1, 4, 8, 32), 2, "blocks"),
    Case("deepseek_v3-671b", 2048, (1, 8, 32, 64, 256), 1, "blocks", per_node=8),
)


def tables(case: Case) -> str:
    """Memory and traffic of a case, as two Markdown tables."""
    recipe = load(case.recipe)
    request = PlanRequest(
        devices=case.devices,
        eps=case.eps,
        batch=case.batch,
        sequence=4096,
        accumulate=1,
        precision="bf16-mixed",
        device_memory=80 * GIB,
        per_node=case.per_node,
    )
    plan = RunPlanner(recipe).plan(request, case.recompute)
    made = [memory_table(plan), traffic_table(plan), *([links_table(plan)] if case.per_node else [])]
    return f"`{case.command}`\n\n" + "\n".join(map(markdown, made))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table."""
    head, *others = ["| " + " | ".join(row) + " |\n" for row in rows]
    return head + "|" + "---|" * len(rows[0]) + "\n" + "".join(others)


def page() -> str:
    """The page with its generated parts updated."""
    parts = {f"sizing {i}": tables(case) for i, case in enumerate(CASES, start=1)}
    parts["formulas"] = f"```text\n{EXPLAIN}\n```\n"
    text = PAGE.read_text(encoding="utf-8")
    for name, part in parts.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->\n)", re.DOTALL)
        assert mark.search(text), f"{PAGE} has no mark <!-- {name} -->"
        text = mark.sub(lambda found, part=part: f"{found[1]}{part}{found[2]}", text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)

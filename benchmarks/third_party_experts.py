"""The cost of third-party experts: a GLU written with ``groups.linear`` alone against the first-party ``glu``.

    python benchmarks/third_party_experts.py fine small --threads 2
    python benchmarks/third_party_experts.py fine small --docs         # also writes the table of docs/benchmarks.md

Both run through ``grouped``. The third-party GLU, whose weights have no standard form, also runs through ``auto``.
"""

from __future__ import annotations

import argparse

import measured
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit import build
from moekit.contracts import ExpertBank
from moekit.contracts.layer import Groups
from moekit.spec.kinds import DispatcherSpec
from moekit.spec.loading import component_spec
from moekit_bench.layers import dispatcher_variant
from moekit_bench.measure import Clock, time_interleaved
from moekit_bench.request import SHAPES
from moekit_bench.results import ratio
from moekit_bench.workload import make_workload

FIRST, THIRD = "first party", "third party"


class PlainGlu(ExpertBank):
    """``y = down(silu(gate(x)) * up(x))``, with one weight for each of the three products."""

    def __init__(self, num_experts: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.num_experts, self.out_dim = num_experts, dim
        self.gate_EHD = nn.Parameter(torch.randn(num_experts, hidden, dim) * dim**-0.5)
        self.up_EHD = nn.Parameter(torch.randn(num_experts, hidden, dim) * dim**-0.5)
        self.down_EDH = nn.Parameter(torch.randn(num_experts, dim, hidden) * hidden**-0.5)

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """``y_ND``: each row through its own expert."""
        hidden_NH = F.silu(groups.linear(x_ND, self.gate_EHD)) * groups.linear(x_ND, self.up_EHD)
        return groups.linear(hidden_NH, self.down_EDH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["fine"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    measured.option(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for shape in args.shapes:
        work = make_workload(SHAPES[shape], "cpu", torch.float32)
        banks = {
            FIRST: work.experts(),
            THIRD: PlainGlu(work.shape.E, work.shape.D, work.shape.H),
        }
        variants = []
        for author, name in ((FIRST, "grouped"), (THIRD, "grouped"), (THIRD, "auto")):
            spec = component_spec("dispatcher", {"use": name})
            assert isinstance(spec, DispatcherSpec)
            variants.append(dispatcher_variant(f"{author}, {name}", build(spec, work.dims), work, banks[author], spec))
        samples = time_interleaved(
            variants, rounds=args.rounds, warmup=2, clock=Clock("cpu"), on_progress=lambda text: None
        )
        first = samples[f"{FIRST}, grouped"].total
        rows += [[shape, name, ratio(samples[f"{THIRD}, {name}"].total, first)] for name in ("grouped", "auto")]
    columns = {"shape": "`{}`", "dispatcher": "`{}`", "third party ÷ `glu` in `grouped`, best (median)": measured.RATIO}
    measured.publish("third_party_experts", measured.table(columns, rows), docs=args.docs)


if __name__ == "__main__":
    main()

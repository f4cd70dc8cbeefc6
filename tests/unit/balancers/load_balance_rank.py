"""What ``test_load_balance`` runs in two processes: a loss of the global batch, of all tokens and of a part of them."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.contracts import BalanceContext, LayerDims
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.load_balance.module import LoadBalanceLoss
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter


def main(out: str) -> None:
    """7 of 18 tokens on rank 0, 11 on rank 1; saves the router's gradients, of one process and summed over ranks."""
    torch.manual_seed(0)
    dims = LayerDims(dim=4, num_experts=5)
    router = TopKRouter(TopK(top_k=2), dims).double()
    balancer = LoadBalanceLoss(LoadBalance(scope="global_batch"), dims)
    x_TD = torch.randn(18, 4, dtype=torch.float64)

    def run(x_TD: Tensor, training: bool) -> Tensor:
        value = balancer.loss(router(x_TD), BalanceContext(num_sequences=1, training=training)).value
        (gradient_ED,) = torch.autograd.grad(value * x_TD.shape[0] / 18, router.weight_ED)
        return gradient_ED

    alone = run(x_TD, True)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    together = run(x_TD[:7] if rank == 0 else x_TD[7:], True)
    dist.all_reduce(together)
    if rank == 0:
        run(x_TD[:7], False)  # in evaluation no rank waits for another
    dist.barrier()
    dist.destroy_process_group()
    torch.save((alone, together), f"{out}{rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])

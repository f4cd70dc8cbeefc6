"""Auxiliary-loss-free balancing: an overloaded expert becomes a little harder to choose. Oracle: ``naive.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from moekit.contracts import Balancer, LayerDims
from moekit_balancers.sign_bias import SignBias


class SignBiasBalancer(Balancer):
    """After each optimizer step: ``b_e += rate * sign(mean(c) - c_e)``, with c the load of the whole global batch.

    Source: Wang et al. 2024, Auxiliary-Loss-Free Load Balancing, algorithm 1; DeepSeek-V3 2024, section 2.1.2. The
    mean of b is left alone, as there; adding a constant to b changes no choice.

    The bias serves from the next step on, so a token's route never depends on its own batch. It is a buffer, never a
    parameter: no gradient, no optimizer and no weight decay reaches it, and it stays fp32 when the model is cast.

    Args:
        spec: its options.
        dims: E.
    """

    bias_E: Tensor

    def __init__(self, spec: SignBias, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("bias_E", torch.zeros(dims.num_experts, dtype=torch.float32))

    def selection_bias(self) -> Tensor:
        """fp32 ``[E]``, in units of affinity."""
        return self.bias_E

    @torch.no_grad()
    def step(self, load_E: Tensor, *, progress: float = 0.0) -> None:
        """Moves each bias by ``rate`` against its load; a load of no tokens moves nothing.

        Args:
            load_E: tokens per expert over all micro-batches and ranks; integers of any size are compared exactly.
        """
        load_E = load_E.to(self.bias_E.device)
        load_E = load_E.double() if load_E.is_floating_point() else load_E.long()
        short_E = load_E.sum() - load_E.numel() * load_E  # E times (mean - load): whole numbers, nothing rounds
        self.bias_E += self.spec.rate * short_E.sign().to(self.bias_E.dtype)

"""Auxiliary-loss-free balancing by a selection bias. Reference implementation: ``naive.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from moekit.contracts import Balancer, LayerDims
from moekit_balancers.sign_bias import SignBias


class SignBiasBalancer(Balancer):
    """After each optimizer step: ``b_e += rate * sign(mean(c) - c_e)``, with c the load of the whole global batch.

    Source: Wang et al. 2024, Auxiliary-Loss-Free Load Balancing, algorithm 1; DeepSeek-V3 2024, section 2.1.2. b is
    not centred, as there; adding a constant to b changes no choice.

    ``rule=proportional`` is Wang et al.'s variant ``b_e += rate * err_e``, there with rates of 1e-4 to 1e-2. Here
    ``err_e = (mean(c) - c_e) / mean(c)``: 1 for an idle expert, 1 - E for one that takes everything, so that a rate
    means the same for any batch size. The paper does not say how it scales err; raw counts, in the thousands, would
    dwarf affinities below 1.

    From the fraction ``until`` of training on, the bias stays fixed: DeepSeek-V3 moves it for 14.3 of its 14.8 trillion
    tokens. The fraction counts optimizer steps; if the total is unknown, the bias never stops moving.

    A new bias takes effect in the next step, so a token's route never depends on its own batch. It is a buffer, not a
    parameter: no gradient, optimizer or weight decay reaches it, and it stays fp32 when the model is cast.
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
        """Moves each bias against its load; a load without tokens moves nothing. Integers are compared exactly."""
        if progress >= self.spec.until < 1:
            return
        load_E = load_E.to(self.bias_E.device)
        load_E = load_E.double() if load_E.is_floating_point() else load_E.long()
        total = load_E.sum()
        short_E = total - load_E.numel() * load_E  # E times (mean - load), in integers: exact
        err_E = (
            short_E.sign() if self.spec.rule == "sign" else (short_E.to(self.bias_E.dtype) / total).where(total > 0, 0)
        )
        self.bias_E += self.spec.rate * err_E.to(self.bias_E.dtype)

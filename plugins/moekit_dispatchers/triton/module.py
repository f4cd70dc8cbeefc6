"""The triton dispatcher."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import final

import torch
from torch import Tensor

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims, StandardForm
from moekit.extras import MissingPackage, install
from moekit.routing import Routing, pairs_of
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.grouped.gpus import DTYPES, LEAST, capability_of, product_dtype
from moekit_dispatchers.grouped.module import GroupedDispatcher, sort_pairs
from moekit_dispatchers.triton import Triton
from moekit_dispatchers.triton.ops import triton_experts

ACTIVATIONS = ("silu", "gelu", "relu", "sigmoid")


@final
class TritonDispatcher(Dispatcher):
    """``y_t = sum of gate · expert(x_t)`` over the pairs of token t, in kernels of its own.

    Takes banks of standard form (``ExpertBank.standard_form``: glu and ffn without extras) on a CUDA device (or, for
    tests, on a CPU under ``TRITON_INTERPRET=1``), and uses their weights directly, in autocast's dtype if autocast is
    on. Hands everything else to ``grouped``: other banks, other devices, fp64, tokens and weights of different dtypes
    (``why_not`` gives the reason).

    Tokens are gathered inside the first product, and the activation is computed as its tiles are written. Saved for
    backward under ``save: minimum``, with a gate: the tokens (T·D), the first product's output (N·2H), gates and order;
    ``all`` saves the activation's output too (N·H), ``nothing`` neither. Without autograd neither is saved or written.
    Sums are in fp32 and in a fixed order. Nothing is read from the device and shapes are static, so a layer compiles
    into one graph. Differentiable once: a second derivative is rejected.
    """

    def __init__(self, spec: Triton, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec
        self.otherwise = GroupedDispatcher(Grouped(), dims)
        self.installed = find_spec("triton") is not None
        self.interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Sorts pairs; the kernels do the rest.

        Raises:
            ValueError: a soft routing.
            MissingPackage: the kernels are needed, and the package ``triton`` is not installed.
        """
        pairs = pairs_of(routing)
        form = experts.standard_form()
        if form is None or self.why_not(x_TD, form):
            return self.otherwise(x_TD, routing, experts, num_sequences=num_sequences)  # type: ignore[no-any-return]
        if not self.installed:
            raise MissingPackage(
                "the dispatcher 'triton' needs triton, which moekit does not install by itself\n"
                f"  {install('triton')}, or use the dispatcher 'grouped' or 'auto'"
            )
        dtype = product_dtype(x_TD)
        rows = sort_pairs(pairs, x_TD.shape[0], routing.num_experts)
        gate_N = pairs.gate_N.index_select(0, rows.pair_N).float()
        weights = (form.w_in_EHD.to(dtype), form.w_out_EOH.to(dtype))
        route = (rows.end_E, *rows.by_token[:3])
        save = self.spec.save if torch.is_grad_enabled() else "nothing"
        y_TO, *_ = triton_experts(x_TD.to(dtype), gate_N, *weights, *route, form.activation, save)
        return Dispatched(y_TO=y_TO, dropped=rows.pair_N.new_zeros(()))

    def why_not(self, x_TD: Tensor, form: StandardForm) -> str:
        """Why the kernels cannot take these tokens and weights, in words; empty if they can."""
        if x_TD.device.type != "cuda" and not (x_TD.device.type == "cpu" and self.interpreted):
            return f"it is for CUDA devices; the tokens are on {x_TD.device.type}"
        if form.activation not in ACTIVATIONS:
            return f"it has no activation '{form.activation}'"
        capability = capability_of(x_TD.device)
        if capability is not None and capability < LEAST:
            return "it needs a GPU of compute capability {}.{} or later; this one has {}.{}".format(*LEAST, *capability)
        found = {x_TD.dtype, form.w_in_EHD.dtype, form.w_out_EOH.dtype}
        if not found <= set(DTYPES) or (len(found) > 1 and not torch.is_autocast_enabled(x_TD.device.type)):
            return f"it takes fp32, fp16 or bf16 throughout; tokens are {x_TD.dtype}, weights {form.w_in_EHD.dtype}"
        return ""

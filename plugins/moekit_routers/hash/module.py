"""Hash routing by a table that is fixed before training. Reference implementation: ``naive.py``."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.contracts import LayerDims, Router
from moekit.errors import MoekitError
from moekit.routing import TokenChoice
from moekit_routers.hash import Hash


class HashRouter(Router):
    """Token t runs through the expert ``table[id_t]``, with gate 1.

    Source: Roller, Sukhbaatar, Szlam, Weston 2021, Hash Layers For Large Sparse Models: the random hash. Ids are
    shuffled and distributed to the experts in turn, so that experts have equally many ids, within one; their load
    depends on how frequent these are.

    Shapes and dtypes: ``x_TD``, any float, is not read; logits, scores (1 for the expert, else 0) and gates are fp32,
    or fp64 for fp64 tokens, under any autocast. ``expert_TK`` is int64 with K = 1. The table is a persistent buffer,
    int64 ``[V]``: a checkpoint keeps it, whatever a later version of Python shuffles.

    Gradient: none. There is nothing to train, and no gradient reaches the tokens through gates.

    Raises:
        MoekitError: fewer token ids than experts.
    """

    expert_V: Tensor

    def __init__(self, spec: Hash, dims: LayerDims) -> None:
        super().__init__()
        if problems := list(spec.check_experts(dims.num_experts)):
            raise MoekitError("router hash: " + "; ".join(problems))
        self.spec = spec
        self.num_experts = dims.num_experts
        ids = list(range(spec.vocab))
        random.Random(spec.seed).shuffle(ids)
        table = [0] * spec.vocab
        for place, token in enumerate(ids):
            table[token] = place % dims.num_experts
        self.register_buffer("expert_V", torch.tensor(table))

    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> TokenChoice:
        """Routes T tokens by their ids.

        Raises:
            MoekitError: a selection bias is given, which would have no effect; or no token ids.
        """
        if selection_bias_E is not None:
            raise MoekitError(
                "the hash router's choice is fixed, so a selection bias has no effect on it; "
                "remove the balancer that gives one, or use the router topk"
            )
        if token_T is None:
            raise MoekitError(
                "the hash router reads token ids, and was given none\n"
                "  expected layer(x, tokens=ids), or a model that passes them, as language models do"
            )
        expert_TK = self.expert_V[token_T][:, None]
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        scores_TE = F.one_hot(expert_TK.squeeze(1), self.num_experts).to(dtype)
        return TokenChoice(
            logits_TE=scores_TE,
            scores_TE=scores_TE,
            valid_T=valid_T,
            expert_TK=expert_TK,
            gate_TK=torch.ones_like(expert_TK, dtype=dtype),
        )

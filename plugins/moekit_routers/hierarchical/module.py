"""Hierarchical noisy top-k routing. Reference implementation: ``naive.py``.

Here G counts all groups, K the chosen groups or experts of one level, X the experts of one group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moekit.contracts import Init, LayerDims, Router
from moekit.errors import MoekitError
from moekit.router_math import router_logits
from moekit.routing import TokenChoice
from moekit_routers.hierarchical import Hierarchical
from moekit_routers.noise import noisy_top_k


class HierarchicalRouter(Router):
    """A noisy top-k gate chooses groups for a token; each group's own noisy top-k gate chooses experts in it.

    The result is an ordinary choice among all E experts: expert j of group i has number ``i · E/branches + j`` and gate
    ``Gprim_i · G_ij``. Gates of a token sum to 1.

    Source: Shazeer et al. 2017, Outrageously Large Neural Networks, appendix B; each gate is its eq. 3 to 5. Noise
    and its epsilon are those of ``noisy_topk``, in training alone.

    Shapes and dtypes: ``x_TD``, any float; arithmetic is fp32, or fp64 for fp64 tokens or weights, under any autocast.
    K = top_groups · top_k; ``expert_TK`` lists the best group's experts first, best expert first.
    ``scores_TE`` is the product of the two levels' softmaxes without noise; it sums to 1 over E. ``logits_TE`` are
    logits whose softmax it is: the group's logit plus the log-softmax within the group. So a z-loss on them acts on the
    first level's logits.

    ``smooth_load_E``, in training (else None): ``Load_ij = Loadprim_i(X) · Load_i(X_i)_j / |X_i|``, X_i being the valid
    tokens that chose group i. So it sends a gradient to the first level's gate. A group that no token chose has no
    mean; a uniform one, ``top_k`` over its number of experts, takes its place, so that its gate still gets a gradient.

    Selection bias: rejected. A bias on experts acts within a group but not between groups, so it could not balance the
    load.

    Ties: the lowest index wins, at both levels. Padding is read as zeros and is in no load. A token with NaN gets K
    distinct experts and NaN gates; other tokens are not affected. The second level computes the chosen groups alone,
    except for one product that gives all logits; there is no loop over groups.

    Gradient: reaches all four matrices and ``x_TD`` through the gates and ``smooth_load_E``.

    Raises:
        MoekitError: the groups do not fit the number of experts.
    """

    def __init__(self, spec: Hierarchical, dims: LayerDims) -> None:
        super().__init__()
        if problems := list(spec.check_experts(dims.num_experts)):
            raise MoekitError("router hierarchical: " + "; ".join(problems))
        self.spec = spec
        self.group_weight_GD = nn.Parameter(torch.zeros(spec.branches, dims.dim))
        self.group_noise_weight_GD = nn.Parameter(torch.zeros(spec.branches, dims.dim))
        self.weight_ED = nn.Parameter(torch.zeros(dims.num_experts, dims.dim))
        self.noise_weight_ED = nn.Parameter(torch.zeros(dims.num_experts, dims.dim))
        if not spec.zero_init:
            bound = dims.dim**-0.5
            for weight in self.parameters():
                nn.init.uniform_(weight, -bound, bound)

    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> TokenChoice:
        """Routes T tokens: groups, then experts in each.

        Raises:
            MoekitError: a selection bias is given; it would have no effect between groups.
        """
        if selection_bias_E is not None:
            raise MoekitError(
                "the hierarchical router takes no selection bias, because a bias per expert moves no load between "
                "groups; remove the balancer that gives one and use cv_squared, or use the router noisy_topk"
            )
        spec = self.spec
        size = self.weight_ED.shape[0] // spec.branches
        all_TGX = router_logits(x_TD, self.weight_ED, None, valid_T).view(-1, spec.branches, size)
        prim_TG = router_logits(x_TD, self.group_weight_GD, None, valid_T)
        raw_TG = router_logits(x_TD, self.group_noise_weight_GD, None, valid_T) if self.training else None
        group_TK, group_gate_TK, chance_TG = noisy_top_k(prim_TG, raw_TG, spec.top_groups, spec.noise_epsilon)

        of_group_TKX = group_TK[:, :, None].expand(-1, -1, size)
        raw_TKX = None
        if self.training:
            raw_TGX = router_logits(x_TD, self.noise_weight_ED, None, valid_T).view_as(all_TGX)
            raw_TKX = raw_TGX.gather(1, of_group_TKX)
        clean_TKX = all_TGX.gather(1, of_group_TKX)
        inner_TKX, inner_gate_TKX, chance_TKX = noisy_top_k(clean_TKX, raw_TKX, spec.top_k, spec.noise_epsilon)

        smooth_load_E = None
        if chance_TG is not None and chance_TKX is not None:
            smooth_load_E = self._smooth_load(chance_TG, group_TK, chance_TKX, valid_T)
        logits_TE = (prim_TG[:, :, None] + all_TGX.log_softmax(-1)).flatten(1)
        return TokenChoice(
            logits_TE=logits_TE,
            scores_TE=logits_TE.softmax(-1),
            valid_T=valid_T,
            smooth_load_E=smooth_load_E,
            expert_TK=(group_TK[:, :, None] * size + inner_TKX).flatten(1),
            gate_TK=(group_gate_TK[:, :, None] * inner_gate_TKX).flatten(1),
        )

    def _smooth_load(self, chance_TG: Tensor, group_TK: Tensor, chance_TKX: Tensor, valid_T: Tensor | None) -> Tensor:
        """``Load_ij`` of the class's docstring, ``[E]``."""
        size = chance_TKX.shape[2]
        one_TK = torch.ones_like(group_TK, dtype=chance_TG.dtype)
        if valid_T is not None:
            chance_TG = chance_TG * valid_T[:, None]
            chance_TKX = chance_TKX * valid_T[:, None, None]
            one_TK = one_TK * valid_T[:, None]
        group_N = group_TK.flatten()
        count_G = chance_TG.new_zeros(self.spec.branches).index_add(0, group_N, one_TK.flatten())
        zero_GX = chance_TG.new_zeros(self.spec.branches, size)
        sum_GX = zero_GX.index_add(0, group_N, chance_TKX.flatten(0, 1))
        mean_GX = (sum_GX / count_G.clamp(min=1)[:, None]).where(count_G[:, None] > 0, self.spec.top_k / size)
        return (chance_TG.sum(0)[:, None] * mean_GX).flatten()

    def init_weights(self, init: Init) -> None:
        """Initialises the four matrices by ``init``, or to 0 under ``zero_init``."""
        for weight in self.parameters():
            if self.spec.zero_init:
                nn.init.zeros_(weight)
            else:
                init.draw(weight)

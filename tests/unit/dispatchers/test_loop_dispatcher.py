from __future__ import annotations

import pytest
import torch

from moekit.contracts import LayerDims
from moekit.routing import Soft
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.loop.module import LoopDispatcher
from moekit_experts.linear import Linear
from moekit_experts.linear.module import LinearExperts


def test_a_soft_routing_is_refused() -> None:
    dims = LayerDims(dim=2, num_experts=2)
    soft = Soft(logits_TE=torch.zeros(3, 2), scores_TE=torch.zeros(3, 2), combine_TEP=torch.zeros(3, 2, 1))
    message = r"forms token_choice, expert_choice\), but the router gave 'soft'; the dispatcher 'soft' takes that"
    with pytest.raises(ValueError, match=message):
        LoopDispatcher(Loop(), dims)(torch.zeros(3, 2), soft, LinearExperts(Linear(count=2), dims))

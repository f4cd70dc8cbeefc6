"""Balance without a loss: a bias on choosing, moved by a fixed step against the load. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import BalancerSpec, Form


@dataclass(frozen=True, kw_only=True)
class SignBias(BalancerSpec):
    """Options of the sign-bias balancer."""

    forms: ClassVar[frozenset[Form]] = frozenset({"token_choice"})
    gives_bias: ClassVar[bool] = True
    rate: float = option(1e-3, "how far a bias moves per optimizer step, in units of affinity", ge=0)


COMPONENT = Component(
    name="sign_bias",
    spec=SignBias,
    target="moekit_balancers.sign_bias.module:SignBiasBalancer",
    summary="a selection bias that moves a fixed step against each expert's load; no loss",
    paper="Wang et al. 2024 (loss-free balancing), DeepSeek-V3 2024",
)

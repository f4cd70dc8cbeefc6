"""Balance without a loss: a bias on choosing, moved against the load after each step. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import BalancerSpec, Form


@dataclass(frozen=True, kw_only=True)
class SignBias(BalancerSpec):
    """Options of the sign-bias balancer."""

    forms: ClassVar[frozenset[Form]] = frozenset({"token_choice"})
    gives_bias: ClassVar[bool] = True
    rate: float = option(1e-3, "how far a bias moves per optimizer step, in units of affinity", ge=0)
    rule: Literal["sign", "proportional"] = option(
        "sign",
        "a bias moves by rate, whatever its expert's load lacks; or by rate times what it lacks of the mean load",
    )
    until: float = option(
        1.0, "share of the training run after which the bias rests (DeepSeek-V3: 14.3 of 14.8 T tokens)", ge=0, le=1
    )


COMPONENT = Component(
    name="sign_bias",
    spec=SignBias,
    target="moekit_balancers.sign_bias.module:SignBiasBalancer",
    summary="a selection bias that moves against each expert's load, by a fixed step or in proportion; no loss",
    paper="Wang et al. 2024 (loss-free balancing), DeepSeek-V3 2024",
)

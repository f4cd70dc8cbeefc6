"""Balancing without a loss: a selection bias, moved against the load after each step. Torch-free."""

from typing import ClassVar, Literal

from moekit.spec.fields import option
from moekit.spec.kinds import BalancerSpec, Form


class SignBias(BalancerSpec):
    """Options of the sign-bias balancer."""

    forms: ClassVar[frozenset[Form]] = frozenset({"token_choice"})
    gives_bias: ClassVar[bool] = True
    rate: float = option(1e-3, "how far a bias moves per optimizer step, in units of affinity", ge=0)
    rule: Literal["sign", "proportional"] = option(
        "sign",
        "sign: a bias moves by rate; proportional: by rate times (mean load - load) / mean load",
    )
    until: float = option(
        1.0, "fraction of training after which the bias stays fixed (DeepSeek-V3: 14.3 of 14.8 T tokens)", ge=0, le=1
    )

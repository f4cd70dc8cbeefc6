"""First-party balancers: losses and biases that keep the experts' loads even."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit.lazy import from_stub

MOEKIT_API = 2
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)


@hookimpl
def moekit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component(
            kind="balancer",
            name="communication_balance",
            spec="moekit_balancers.communication_balance:CommunicationBalance",
            target="moekit_balancers.communication_balance.module:CommunicationBalanceLoss",
            summary="loss sum f·P over devices, f the tokens a device receives; 1 at balance when all M devices are "
            "used",
            paper="DeepSeek-V2 2024",
        ),
        Component(
            kind="balancer",
            name="cv_squared",
            spec="moekit_balancers.cv_squared:CVSquared",
            target="moekit_balancers.cv_squared.module:CVSquaredLoss",
            summary="loss CV² (variance over squared mean) of the experts' importance or load; 0 at balance",
            paper="Shazeer et al. 2017",
        ),
        Component(
            kind="balancer",
            name="device_balance",
            spec="moekit_balancers.device_balance:DeviceBalance",
            target="moekit_balancers.device_balance.module:DeviceBalanceLoss",
            summary="loss sum f·P over devices, groups of experts; 1 at balance",
            paper="DeepSeekMoE 2024, DeepSeek-V2 2024",
        ),
        Component(
            kind="balancer",
            name="load_balance",
            spec="moekit_balancers.load_balance:LoadBalance",
            target="moekit_balancers.load_balance.module:LoadBalanceLoss",
            summary="loss E sum f·P: share of choices (all, or the first) times mean affinity; 1 at balance",
            paper="GShard 2020, Switch Transformer 2021",
        ),
        Component(
            kind="balancer",
            name="sequence_balance",
            spec="moekit_balancers.sequence_balance:SequenceBalance",
            target="moekit_balancers.sequence_balance.module:SequenceBalanceLoss",
            summary="loss sum f·P within each sequence, on normalised affinities; 1 at balance",
            paper="DeepSeek-V3 2024",
        ),
        Component(
            kind="balancer",
            name="sign_bias",
            spec="moekit_balancers.sign_bias:SignBias",
            target="moekit_balancers.sign_bias.module:SignBiasBalancer",
            summary="a selection bias that moves against each expert's load, by a fixed step or in proportion; no loss",
            paper="Wang et al. 2024 (loss-free balancing), DeepSeek-V3 2024",
        ),
        Component(
            kind="balancer",
            name="z_loss",
            spec="moekit_balancers.z_loss:ZLoss",
            target="moekit_balancers.z_loss.module:RouterZLoss",
            summary="loss mean (logsumexp of the router's logits)²: keeps them small, and bf16 exact; (ln E)² at "
            "zero logits",
            paper="ST-MoE 2022",
        ),
    ]

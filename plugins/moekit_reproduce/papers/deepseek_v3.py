"""DeepSeek-V3 2024: balance by sequence, by batch and by a bias; multi-token prediction. Torch-free."""

from __future__ import annotations

from moekit_reproduce.papers.field import BALANCE, COLUMNS, RATES, SHARE, Node, decoder, mixture, saved
from moekit_reproduce.study import Arm, ClaimSpec, Panel, Prediction, Study

BALANCED = "section 4.5.3 (1B)"


class DeepSeekV3(ClaimSpec):
    """Sizes of the experiment."""


def study(spec: DeepSeekV3) -> Study:
    """One model, balanced in three ways, and with multi-token prediction."""

    def arm(name: str, balancers: Node, *, tuned: bool = False, mtp: bool = False) -> Arm:
        router = {
            "use": "topk", "top_k": 7, "score": "sigmoid", "groups": 4, "top_groups": 2, "group_score": "top2_sum",
            "renormalize": True, "scale": 2.5,
        }  # fmt: skip
        experts, shared = {"use": "glu", "count": 32, "hidden": 27}, {"use": "glu", "hidden": 27}
        changes = [mixture(router, experts, balancers, shared=shared)]
        changes += [{"model": {"mtp": {"depth": 1}}, "objective": {"mtp_weight": 0.3, "mtp_late_weight": 0.1}}] * mtp
        return Arm(name=name, recipe=decoder(spec, *changes), rates=RATES, rate_of="" if tuned else "bias")

    bias: Node = {
        "bias": {"use": "sign_bias", "rate": 1e-2, "until": 0.966},
        "sequence": {"use": "sequence_balance", "weight": 1e-4},
    }
    by_loss = {"use": "load_balance", "weight": 1e-3}
    return Study(
        title="DeepSeek-AI 2024: DeepSeek-V3",
        about=(
            "Top-7 of 32 experts within 2 of 4 groups and a shared one, in two of three layers, with rotary attention "
            "in place of latent attention. Balance losses have weight 1e-3. Multi-token prediction has depth 1, and "
            "weight .3, at the end .1; its module works in training alone, so the validation loss is that of the next "
            "token. It takes its own work in training, which the table does not count."
        ),
        arms=(
            arm("bias", bias, tuned=True),
            arm("loss by sequence", {"load": {**by_loss, "scope": "sequence"}}),
            arm("loss by batch", {"load": {**by_loss, "scope": "micro_batch"}}),
            arm("bias and MTP", bias, tuned=True, mtp=True),
        ),
        predictions=(
            Prediction(
                claim="balancing by a bias is better than by a loss within each sequence",
                paper="validation loss 2.253 against 2.258: 0.22 % lower",
                source=BALANCED,
                measure=SHARE,
                contrast=saved("bias", "loss by sequence"),
                at_least=0.0011,
            ),
            Prediction(
                claim="a loss over the batch is as good as the bias",
                paper="validation loss 2.253, both",
                source=BALANCED,
                measure=f"{SHARE}; a difference of .0022, the paper's to the loss by sequence, counts as none",
                contrast=saved("loss by batch", "bias"),
                at_least=-0.0022,
            ),
            Prediction(
                claim="multi-token prediction improves the prediction of the next token",
                paper="better on most benchmarks (no figure that we have seen)",
                source="section 4.5.1, table 4",
                measure=SHARE,
                contrast=saved("bias and MTP", "bias"),
            ),
        ),
        panels=(
            Panel(value="loss", title="validation loss, nats per byte"),
            Panel(value="global_violation", title="MaxVio, global"),
        ),
        columns={**COLUMNS, **BALANCE},
    )

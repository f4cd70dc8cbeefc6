"""Wang et al. 2024: balancing by a bias alone, by a loss, and not at all, over their coefficients. Torch-free."""

from __future__ import annotations

from moekit_reproduce.papers.field import BALANCE, COLUMNS, RATES, SHARE, Node, decoder, lower, mixture, saved
from moekit_reproduce.study import Arm, ClaimSpec, Panel, Prediction, Study

BIAS = (1e-3, 1e-2, 1e-1)
LOSS = (1e-3, 1e-2, 1e-1)
TABLE = "table 2 (1B)"


class AuxFree(ClaimSpec):
    """Sizes of the experiment."""


def study(spec: AuxFree) -> Study:
    """One model, balanced in seven ways."""

    def arm(name: str, balancers: Node) -> Arm:
        router = {"use": "topk", "top_k": 6, "score": "sigmoid"}
        experts, shared = {"use": "glu", "count": 30, "hidden": 27}, {"use": "glu", "count": 2, "hidden": 27}
        recipe = decoder(spec, mixture(router, experts, balancers, shared=shared))
        tuned = name == "none"
        return Arm(name=name, recipe=recipe, rates=RATES, rate_of="" if tuned else "none")

    bias = [arm(f"bias {rate:g}", {"bias": {"use": "sign_bias", "rate": rate}}) for rate in BIAS]
    loss = [arm(f"loss {weight:g}", {"load": {"use": "load_balance", "weight": weight}}) for weight in LOSS]
    series = {
        "bias, by its rate": [(rate, f"bias {rate:g}") for rate in BIAS],
        "loss, by its weight": [(weight, f"loss {weight:g}") for weight in LOSS],
        "none": [(0.0, "none")],
    }
    return Study(
        title="Wang et al. 2024: Auxiliary-Loss-Free Load Balancing",
        about=(
            "Top-6 of 30 fine-grained experts and 2 shared ones, with raw sigmoid gates, in two of three layers. "
            "Nothing but the balancing differs; the learning rate is that of the model without any. The bias moves "
            "by 1e-3 a step in the paper, over 40,000 steps; before the run 1e-2 was stated as the rate that is "
            "compared here."
        ),
        arms=(arm("none", {}), *bias, *loss),
        predictions=(
            Prediction(
                claim="a bias balances the load over the validation set, which the usual balance loss does not",
                paper="MaxVio .04 with the bias, .72 with a loss of weight 1e-3: 94 % less",
                source=TABLE,
                measure="share of the global MaxVio saved, bias 1e-2 against loss 1e-3",
                contrast=saved("bias 0.01", "loss 0.001", "global_violation"),
                at_least=0.47,
            ),
            Prediction(
                claim="the model balanced by a bias is better than under that loss",
                paper="perplexity 9.50 against 9.56: 0.28 % of the loss",
                source=TABLE,
                measure=SHARE,
                contrast=saved("bias 0.01", "loss 0.001"),
                at_least=0.0014,
            ),
            Prediction(
                claim="a balance loss that is strong enough to balance costs quality",
                paper="no figure that we have seen",
                source="figure 2",
                measure=f"{SHARE} by weight 1e-3 against 1e-1",
                contrast=saved("loss 0.001", "loss 0.1"),
            ),
            Prediction(
                claim="a bias costs no quality against no balancing",
                paper="no figure that we have seen",
                source="section 2",
                measure=f"{SHARE}, bias 1e-2 against none; a loss of .005 counts as none",
                contrast=saved("bias 0.01", "none"),
                at_least=-0.005,
            ),
            Prediction(
                claim="a small rate balances too slowly",
                paper="1e-4 balances slowly early in training, against 1e-3 (no figure that we have seen)",
                source="figure 4",
                measure="MaxVio of a step at the end, bias 1e-3 − bias 1e-2",
                contrast=lower("bias 0.01", "bias 0.001", "max_violation"),
            ),
        ),
        panels=(
            Panel(value="loss", title="validation loss, nats per byte", points=series, x="coefficient", log=True),
            Panel(value="global_violation", title="MaxVio, global", points=series, x="coefficient", log=True),
        ),
        columns={**COLUMNS, **BALANCE},
    )

"""Switch Transformer 2021: steps to the dense model's loss, and the capacity factor. Torch-free."""

from __future__ import annotations

from moekit_reproduce.papers.field import BALANCE, COLUMNS, LOAD, RATES, SHARE, Node, decoder, mixture, saved
from moekit_reproduce.study import Arm, ClaimSpec, Panel, Prediction, Seen, Study

TABLE = "table 1, negative log perplexity after 100k steps"


class Switch(ClaimSpec):
    """Sizes of the experiment."""


def study(spec: Switch) -> Study:
    """One of 16 experts with three capacities, top-2, and the dense model."""

    def arm(name: str, *changes: Node, rate_of: str = "") -> Arm:
        schedule = {"schedule": {"use": "inverse_sqrt", "warmup": 20}}
        recipe = decoder(spec, {"model": {"ffn": {"activation": "gelu"}}}, schedule, *changes)
        return Arm(name=name, recipe=recipe, rates=RATES, rate_of=rate_of, validations=20)

    def routed(router: Node, factor: float) -> Node:
        dispatcher = {"use": "capacity", "factor": factor, "eval_factor": 2.0, "count": "tokens", "order": "choice"}
        experts = {"use": "glu", "count": 16, "hidden": 216, "activation": "gelu"}
        return mixture({"use": "topk", "input_jitter": 1e-2, **router}, experts, {"load": LOAD}, dispatcher=dispatcher)

    one, two = {"top_k": 1}, {"top_k": 2, "renormalize": True}
    return Study(
        title="Fedus, Zoph, Shazeer 2021: Switch Transformers",
        about=(
            "A decoder on text in place of an encoder-decoder that fills in spans; the authors' schedule (inverse "
            "square root of the step), under which a loss in mid-run can be compared. One of 16 experts as wide as "
            "the dense layer, in two of three layers; capacity 2.0 in evaluation. The steps to the dense model's "
            "last loss are read off 20 validations, and interpolated between two."
        ),
        arms=(
            arm("Switch, 1.25", routed(one, 1.25)),
            arm("dense"),
            arm("Switch, 1.0", routed(one, 1.0), rate_of="Switch, 1.25"),
            arm("Switch, 2.0", routed(one, 2.0), rate_of="Switch, 1.25"),
            arm("top-2, 1.0", routed(two, 1.0)),
        ),
        predictions=(
            Prediction(
                claim="Switch reaches the dense model's loss in fewer steps, at equal work a token",
                paper="60k steps against 450k (64 experts, T5-Base): 87 % fewer",
                source="figure 4 and section 3.1",
                measure="share of the steps saved",
                contrast=steps_saved,
                at_least=0.43,
            ),
            Prediction(
                claim="at the end Switch is better than the dense model",
                paper="no figure that we have seen",
                source="table 1",
                measure=SHARE,
                contrast=saved("Switch, 1.25", "dense"),
            ),
            Prediction(
                claim="capacity 1.25 costs nothing against 2.0",
                paper="−1.553 against −1.554",
                source=TABLE,
                measure=f"{SHARE}; a loss of .005 counts as none",
                contrast=saved("Switch, 1.25", "Switch, 2.0"),
                at_least=-0.005,
            ),
            Prediction(
                claim="capacity 1.0 costs little against 2.0",
                paper="−1.561 against −1.554: 0.5 %",
                source=TABLE,
                measure=f"{SHARE}; a loss of .01 counts as little",
                contrast=saved("Switch, 1.0", "Switch, 2.0"),
                at_least=-0.01,
            ),
            Prediction(
                claim="at capacity 1.0 one expert is better than two",
                paper="−1.561 against −1.572: 0.7 % lower",
                source=TABLE,
                measure=SHARE,
                contrast=saved("Switch, 1.0", "top-2, 1.0"),
                at_least=0.0035,
            ),
        ),
        panels=(
            Panel(value="curve", title="validation loss, nats per byte"),
            Panel(value="loss", title="the last loss"),
        ),
        columns={**COLUMNS, **BALANCE, "kept": "computed pairs"},
    )


def steps_saved(seen: Seen) -> float:
    """1 − (steps of Switch to the dense model's last loss) / (all steps); 0 if it never gets there."""
    target, before = seen["dense"]["loss"], (0, float("inf"))
    curve = seen["Switch, 1.25"]["curve"]
    for step, loss in curve:
        if loss <= target:
            fraction = (before[1] - target) / (before[1] - loss) if before[0] else 1.0
            return float(1 - (before[0] + fraction * (step - before[0])) / curve[-1][0])
        before = (step, loss)
    return 0.0

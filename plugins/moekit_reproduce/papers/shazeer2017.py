"""Shazeer et al. 2017: the two balance losses in six settings, and more experts at equal work. Torch-free."""

from __future__ import annotations

from math import log

from moekit_reproduce.papers.field import BALANCE, COLUMNS, SHARE, Node, saved, sizes
from moekit_reproduce.study import Arm, ClaimSpec, Panel, Prediction, Seen, Study

RATES = (1e-2, 2e-2, 4e-2)
SETTINGS = ((0.0, 0.0), (0.2, 0.0), (0.0, 0.2), (0.1, 0.1), (0.01, 0.01), (1.0, 1.0))
"""Weights of the importance loss and of the load loss."""
ABLATION = "appendix A, table 6 (MoE-256)"


class Shazeer2017(ClaimSpec):
    """Sizes of the experiment."""


def study(spec: Shazeer2017) -> Study:
    """Noisy top-4 of 32 experts between two LSTMs, under six settings; 4 experts, of which all run."""

    def arm(importance: float, load: float, count: int = 32, name: str = "") -> Arm:
        balancers: dict[str, Node | None] = {
            "importance": {"weight": importance} if importance else None,
            "load": {"weight": load} if load else None,
        }
        changes = {
            "model": {"dim": 64, "moe": {"experts": {"count": count, "hidden": 128}, "balancers": balancers}},
            "non_finite": "skip",
            "compare": None,
        }
        tuned = bool(name) or (importance, load) == (0.1, 0.1)
        return Arm(
            name=name or label(importance, load),
            recipe=("shazeer2017", changes, sizes(spec)),
            rates=RATES,
            rate_of="" if tuned else label(0.1, 0.1),
        )

    def flattest(seen: Seen) -> float:
        losses = [seen[label(*each)]["loss"] for each in SETTINGS if each != (0.0, 0.0)]
        return float(-(max(losses) - min(losses)) / min(losses))

    def evener(seen: Seen) -> float:
        none, both = (1 + seen[label(*each)]["global_violation"] for each in (SETTINGS[0], SETTINGS[3]))
        return log(none / both)

    return Study(
        title="Shazeer et al. 2017: The Sparsely-Gated Mixture-of-Experts Layer",
        about=(
            "The paper's language model, small: two LSTMs of 64 and between them 32 experts of 128 hidden units, noisy "
            "top-4, on bytes in place of 793,471 words. The arms are named by the weights of the importance loss and "
            "of the load loss. Max/mean load is 1 + MaxVio over the validation set."
        ),
        arms=(
            arm(0.1, 0.1),
            *(arm(*each) for each in SETTINGS if each != (0.1, 0.1)),
            arm(0.1, 0.1, count=4, name="4 experts, all run"),
        ),
        predictions=(
            Prediction(
                claim="without balance losses a few experts get most tokens",
                paper="max/mean load 17.80 without, 1.14 with (.1, .1)",
                source=ABLATION,
                measure="ln of the ratio of max/mean load, (0, 0) over (.1, .1)",
                contrast=evener,
                at_least=log(17.80 / 1.14) / 2,
            ),
            Prediction(
                claim="without balance losses the model is worse",
                paper="perplexity 39.8 against 35.6: 3.0 % of the loss",
                source=ABLATION,
                measure=SHARE,
                contrast=saved(label(0.1, 0.1), label(0.0, 0.0)),
                at_least=0.015,
            ),
            Prediction(
                claim="any of the five other settings gives the same quality",
                paper="perplexity 35.6 to 35.7",
                source=ABLATION,
                measure="−(worst − best loss) / best; a loss of .01 counts as none",
                contrast=flattest,
                at_least=-0.01,
            ),
            Prediction(
                claim="more experts are better at equal work",
                paper="perplexity 39.7 (32 experts) against 45.0 (4, all run): 3.3 % of the loss",
                source="table 7",
                measure=SHARE,
                contrast=saved(label(0.1, 0.1), "4 experts, all run"),
                at_least=0.0165,
            ),
        ),
        panels=(
            Panel(value="loss", title="validation loss, nats per byte"),
            Panel(value="global_violation", title="MaxVio over the validation set"),
        ),
        columns={**COLUMNS, **BALANCE},
    )


def label(importance: float, load: float) -> str:
    """The name of a setting."""
    return f"({importance:g}, {load:g})"

"""GShard 2020: capacity and the random second expert against none; more experts. Torch-free."""

from __future__ import annotations

from moekit_reproduce.papers.field import AUTO, BALANCE, COLUMNS, LOAD, RATES, SHARE, Node, decoder, mixture, saved
from moekit_reproduce.study import Arm, ClaimSpec, Panel, Prediction, Study

TOP_2: Node = {"use": "topk", "top_k": 2, "renormalize": True}
RANDOM: Node = {**TOP_2, "send_threshold": 0.5}
CAPACITY: Node = {"use": "capacity", "factor": 2.0, "count": "tokens", "order": "choice"}
LOSSLESS = f"{SHARE}; a loss of .01 counts as none"


class GShard(ClaimSpec):
    """Sizes of the experiment."""


def study(spec: GShard) -> Study:
    """Top-2 of 16 experts with and without its two economies; 4 experts; a dense model."""

    def routed(router: Node, dispatcher: Node, count: int = 16) -> Node:
        experts = {"use": "ffn", "count": count, "hidden": 162}
        return mixture(router, experts, {"load": LOAD}, dispatcher=dispatcher)

    def arm(name: str, *changes: Node, tuned: bool = False) -> Arm:
        recipe = decoder(spec, {"model": {"ffn": {"use": "ffn", "hidden": 324}}}, *changes)
        return Arm(name=name, recipe=recipe, rates=RATES, rate_of="" if tuned else "both")

    return Study(
        title="Lepikhin et al. 2020: GShard",
        about=(
            "A decoder on text in place of translation: 16 experts, top-2, in two of three layers. The paper compares "
            "no model without capacity or with every second expert sent; it argues that both cost nothing."
        ),
        arms=(
            arm("both", routed(RANDOM, CAPACITY), tuned=True),
            arm("dense", tuned=True),
            arm("neither", routed(TOP_2, AUTO)),
            arm("capacity", routed(TOP_2, CAPACITY)),
            arm("random second", routed(RANDOM, AUTO)),
            arm("both, 4 experts", routed(RANDOM, CAPACITY, 4)),
        ),
        predictions=(
            Prediction(
                claim="a capacity of twice the even share (factor 2.0 by tokens) costs no quality",
                paper="no figure",
                source="section 2.2",
                measure=LOSSLESS,
                contrast=saved("capacity", "neither"),
                at_least=-0.01,
            ),
            Prediction(
                claim="sending the second expert at random, by its gate, costs no quality",
                paper="no figure",
                source="section 2.2, algorithm 1",
                measure=LOSSLESS,
                contrast=saved("random second", "neither"),
                at_least=-0.01,
            ),
            Prediction(
                claim="both together cost no quality",
                paper="no figure",
                source="section 2.2, algorithm 1",
                measure=LOSSLESS,
                contrast=saved("both", "neither"),
                at_least=-0.01,
            ),
            Prediction(
                claim="the mixture is better than a dense model",
                paper="mean BLEU 44.3 (600B, 2048 experts) against 36.9 (dense, 96 layers, 2.3B)",
                source="table 1 and section 4; BLEU does not carry over",
                measure=f"{SHARE}, at equal active work",
                contrast=saved("both", "dense"),
            ),
            Prediction(
                claim="more experts of one size are better",
                paper="mean BLEU 39.0, 43.7, 44.3 with 128, 512, 2048 experts (36 layers)",
                source="table 1; BLEU does not carry over",
                measure=f"{SHARE}, 16 experts against 4",
                contrast=saved("both", "both, 4 experts"),
            ),
        ),
        panels=(
            Panel(value="loss", title="validation loss, nats per byte"),
            Panel(value="kept", title="computed pairs / chosen pairs, in training"),
        ),
        columns={**COLUMNS, **BALANCE, "kept": "computed pairs"},
    )

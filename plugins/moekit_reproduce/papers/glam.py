"""GLaM 2021: a mixture against a dense model at equal active work, over lengths of training. Torch-free."""

from __future__ import annotations

from moekit.spec.fields import option
from moekit_reproduce.papers.field import BALANCE, COLUMNS, LOAD, RATES, SHARE, Node, decoder, saved
from moekit_reproduce.study import Arm, ClaimSpec, Panel, Prediction, Study

LENGTHS = (0.4, 1.0, 2.0)
"""Of training, in units of ``steps``."""


class GLaM(ClaimSpec):
    """Sizes of the experiment."""

    steps: int = option(200, "optimizer steps of the middle length; the others take 0.4 and 2 times as many", ge=3)


def study(spec: GLaM) -> Study:
    """Both models at three lengths, each with the whole schedule."""
    middle = round(spec.steps * LENGTHS[1])

    def arms(name: str, *changes: Node) -> list[Arm]:
        found = []
        for length in LENGTHS:
            steps = round(spec.steps * length)
            four = {"model": {"depth": 4, "ffn": {"activation": "gelu"}}}
            rate_of = "" if steps == middle else f"{name}, {middle}"
            recipe = decoder(spec, four, *changes, steps=steps)
            found.append(Arm(name=f"{name}, {steps}", recipe=recipe, rates=RATES, rate_of=rate_of))
        return found

    routed = {
        "at": {"every": 2},
        "router": {"use": "topk", "top_k": 2, "renormalize": True, "send_threshold": 0.5},
        "experts": {"use": "ffn", "count": 16, "hidden": 162},
        "balancers": {"load": LOAD},
        "dispatcher": {"use": "capacity", "factor": 2.0, "count": "tokens", "order": "choice"},
    }
    short, middle, long = (round(spec.steps * length) for length in LENGTHS)
    lengths = (short, middle, long)
    return Study(
        title="Du et al. 2021: GLaM",
        about=(
            "A decoder of four layers, every other a mixture of 16 experts, top-2, with capacity 2.0; rotary positions "
            "in place of relative ones. The amount of data is the length of training, each with the whole schedule: "
            f"{', '.join(str(n) for n in lengths)} steps of 1,024 bytes. The rate is searched at the middle length."
        ),
        arms=(*arms("mixture", {"model": {"moe": routed}}), *arms("dense")),
        predictions=(
            *(
                Prediction(
                    claim=f"the mixture is better than a dense model of equal active work after {steps} steps",
                    paper="mean of 29 tasks, zero-shot, 62.7 against GPT-3's 56.9 at half of its operations a token",
                    source="abstract and table 1; task scores do not carry over",
                    measure=SHARE,
                    contrast=saved(f"mixture, {steps}", f"dense, {steps}"),
                )
                for steps in lengths
            ),
            Prediction(
                claim="the mixture needs less data: after half of the steps it is as good as the dense model",
                paper="no figure that we have seen",
                source="the section on data efficiency",
                measure=f"{SHARE}, mixture after {middle} steps against dense after {long}",
                contrast=saved(f"mixture, {middle}", f"dense, {long}"),
            ),
        ),
        panels=(
            Panel(
                value="loss",
                title="validation loss, nats per byte",
                points={name: [(steps, f"{name}, {steps}") for steps in lengths] for name in ("mixture", "dense")},
                x="steps",
                log=True,
            ),
        ),
        columns={**COLUMNS, **BALANCE, "kept": "computed pairs"},
    )

"""ST-MoE 2022: the router z-loss under raised learning rates in bf16; which parameters to fine-tune. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from moekit.spec.fields import option
from moekit_reproduce.papers.field import BALANCE, COLUMNS, LOAD, RATES, SHARE, Node, decoder, mixture, saved
from moekit_reproduce.study import Arm, ClaimSpec, Panel, Prediction, Seen, Study

if TYPE_CHECKING:
    from moekit.spec.recipe import Recipe

FACTOR = 8.0
"""By how much rates are raised."""
STABLE = 1.1
"""A run is stable if its loss is at most this times that of the same model at its own rate."""
UPDATES: Mapping[str, Node] = {
    "all": {},
    "others": {"freeze": ["experts", "router"]},
    "experts": {"train": ["experts", "router"]},
}
"""Three ways to fine-tune, as options of ``start``."""
TABLE = "table 4"
FINE_TUNED = "fine-tuned"


class STMoE(ClaimSpec):
    """Sizes of the experiment."""

    quick: ClassVar[Mapping[str, Any]] = {**ClaimSpec.quick, "finetune_steps": 3}
    finetune_steps: int = option(100, "steps of fine-tuning, after 3 times as many of pre-training", ge=1)


def study(spec: STMoE) -> Study:
    """Top-2 in bf16 with and without z-loss, at its own rate and at a raised one; and a model that is fine-tuned."""

    def arm(name: str, z: bool, factor: float = 1.0) -> Arm:
        parts = mixture(
            {"use": "topk", "top_k": 2, "renormalize": True, "send_threshold": 0.2},
            {"use": "glu", "count": 16, "hidden": 108, "activation": "gelu", "scale_bias": True},
            {"load": LOAD} | ({"z": {"use": "z_loss", "weight": 1e-3}} if z else {}),
            dispatcher={"use": "capacity", "factor": 1.25, "eval_factor": 2.0, "count": "tokens", "order": "choice"},
        )
        bf16 = {"model": {"ffn": {"activation": "gelu"}}, "trainer": {"precision": "bf16-mixed"}}
        recipe = decoder(spec, bf16, parts)
        rate_of = "" if factor == 1 and not z else "no z-loss"
        return Arm(name=name, recipe=recipe, rates=RATES, rate_of=rate_of, factor=factor)

    small = {
        "model": {"dim": 64, "attention": {"head_dim": 16}, "cross": {"head_dim": 16}, "ffn": {"hidden": 216}}
        | {"moe": {"experts": {"hidden": 216}}},
        "data": {"text": {"seq": 64, "batch": 16}},
        "trainer": {"max_steps": 3 * spec.finetune_steps},
        "compare": None,
    }
    raised, raised_z = f"no z-loss, rate × {FACTOR:g}", f"z-loss, rate × {FACTOR:g}"

    def stable(seen: Seen) -> float:
        with_z = seen[raised_z]["loss"] <= STABLE * seen["z-loss"]["loss"]
        return float(with_z) - float(seen[raised]["loss"] <= STABLE * seen["no z-loss"]["loss"])

    return Study(
        title="Zoph et al. 2022: ST-MoE",
        about=(
            "A decoder in bf16 (autocast; the router in fp32), top-2 of 16 experts in two of three layers, capacity "
            f"1.25. The rate is searched without z-loss, and all four take it, once raised by {FACTOR:g}. A run is "
            f"stable if its loss is at most {STABLE:g} times that of its model at the rate itself. Fine-tuning: the "
            f"recipe `st_moe`, 64 wide, learns to fill in spans for {3 * spec.finetune_steps} steps, then to name a "
            f"text's kind for {spec.finetune_steps}, three times from the same weights; one rate for all (1e-3)."
        ),
        arms=(
            arm("no z-loss", False),
            arm("z-loss", True),
            arm(raised, False, FACTOR),
            arm(raised_z, True, FACTOR),
            Arm(
                name=FINE_TUNED,
                recipe=("st_moe", small, {"trainer": {"max_steps": 3 * spec.finetune_steps}}),
                measure="moekit_reproduce.papers.st_moe:fine_tune",
            ),
        ),
        predictions=(
            Prediction(
                claim="with the z-loss more runs are stable at a raised rate",
                paper="3 of 3 against 4 of 6 runs stable",
                source=TABLE,
                measure="stable runs, with − without",
                contrast=stable,
                at_least=1 / 6,
            ),
            Prediction(
                claim="at a raised rate the model with z-loss is better",
                paper="no figure that we have seen",
                source=TABLE,
                measure=SHARE,
                contrast=saved(raised_z, raised),
            ),
            Prediction(
                claim="the z-loss costs no quality at the usual rate, and improves it",
                paper="−1.741 against −1.755 (negative log perplexity): 0.8 % lower",
                source=TABLE,
                measure=SHARE,
                contrast=saved("z-loss", "no z-loss"),
                at_least=0.004,
            ),
            Prediction(
                claim="fine-tuning all but the mixtures' own weights is as good as fine-tuning all",
                paper="about equal (no figure that we have seen)",
                source="section 4.2",
                measure="accuracy, others − all; a loss of .02 counts as none",
                contrast=lambda seen: seen[FINE_TUNED]["accuracy_others"] - seen[FINE_TUNED]["accuracy_all"],
                at_least=-0.02,
            ),
            Prediction(
                claim="fine-tuning the mixtures' own weights alone is worse",
                paper="far worse (no figure that we have seen)",
                source="section 4.2",
                measure="accuracy, all − experts",
                contrast=lambda seen: seen[FINE_TUNED]["accuracy_all"] - seen[FINE_TUNED]["accuracy_experts"],
            ),
        ),
        panels=(
            Panel(value="loss", title="validation loss, nats per token"),
            *(Panel(value=f"accuracy_{update}", title=f"accuracy, updating {update}") for update in UPDATES),
        ),
        columns={**COLUMNS, **BALANCE, **{f"accuracy_{update}": f"accuracy, {update}" for update in UPDATES}},
    )


def fine_tune(recipe: Recipe, arm: Arm, seed: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Pre-trains a recipe, then fine-tunes its weights in three ways; the accuracy of each over the validation set."""
    from moekit.spec import load, to_plain
    from moekit.spec.recipe import Start
    from moekit.training.module import LitMoE
    from moekit.training.run.start import freeze
    from moekit_reproduce.runs import Watch, fit, work_of

    pretrained, trainer = fit(recipe, Watch(recipe.trainer.max_steps, report))
    weights = {name: value.clone() for name, value in pretrained.model.state_dict().items()}
    values: dict[str, Any] = {"loss": float(trainer.callback_metrics["val/loss"]), **work_of(recipe, 1.0)}
    steps = recipe.trainer.max_steps // 3
    plain: Mapping[str, Any] = to_plain(load("st_moe_finetune"))
    changes = {key: plain[key] for key in ("objective", "data", "optimizer", "schedule")}
    text = to_plain(recipe)["data"]["text"]
    for update in UPDATES:

        def start(module: LitMoE, update: str = update) -> None:
            module.model.load_state_dict(weights)
            freeze(module.model, Start(run="the pre-trained one", **UPDATES[update]))

        node: Node = {**changes, "data": {**changes["data"], "text": text}, "trainer": {"max_steps": steps}}
        tuned = load([recipe, node, {"model": plain_mixture(plain)}])
        words = f"fine-tuning, {update}"
        _, trainer = fit(tuned, Watch(steps, lambda said, words=words: report(f"{words}: {said}")), before=start)  # type: ignore[misc]
        values[f"accuracy_{update}"] = float(trainer.callback_metrics["val/exact"])
    return values


def plain_mixture(plain: Mapping[str, Any]) -> Node:
    """What fine-tuning changes of the mixture: dropout in experts, and the capacity."""
    moe = plain["model"]["moe"]
    experts = {"dropout": moe["experts"]["dropout"]}
    return {"moe": {"experts": experts, **{key: moe[key] for key in ("dispatcher", "encoder_dispatcher")}}}

"""Jacobs et al. 1991: mixtures of experts against backprop nets on vowels, and the three losses. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from moekit.spec.fields import option
from moekit_reproduce.study import Arm, ClaimSpec, Panel, Prediction, Seen, Study

if TYPE_CHECKING:
    from moekit.contracts import Data
    from moekit.training.module import LitMoE
    from moekit_reproduce.study import Found

RATES = (10.0, 20.0, 40.0)
TABLE = "table 1"


class Jacobs1991(ClaimSpec):
    """Sizes of the experiment of 1991."""

    quick: ClassVar[Mapping[str, Any]] = {"seeds": 2, "steps": 40, "tune": False}
    seeds: int = option(10, "seeds of every system, from 1", ge=2)
    steps: int = option(6000, "epochs of a run, at most", ge=1)


def study(spec: Jacobs1991) -> Study:
    """Six systems, trained to one criterion."""

    def arm(name: str, *changes: Mapping[str, Any]) -> Arm:
        recipe = ("jacobs1991", {"trainer": {"max_steps": spec.steps}}, *changes)
        return Arm(name=name, recipe=recipe, rates=RATES, probe="moekit_reproduce.papers.jacobs1991:probe")

    def mixture(count: int, error: str) -> Mapping[str, Any]:
        return {"model": {"moe": {"experts": {"count": count}}}, "objective": {"error": error}}

    def net(hidden: int) -> Mapping[str, Any]:
        model = {"use": "mlp", "inputs": 2, "hidden": hidden, "outputs": 1, "init_range": 0.5}
        return {"model": model, "objective": {"use": "squared_error"}}

    def saved(few: str, many: str) -> Any:
        return lambda seen: 1 - seen[few]["epochs"] / seen[many]["epochs"]

    def accuracy(seen: Seen) -> float:
        return float(seen["4 experts"]["accuracy"] - max(seen[net]["accuracy"] for net in ("net of 6", "net of 12")))

    share = "share of the epochs saved"
    return Study(
        title="Jacobs, Jordan, Nowlan, Hinton 1991: Adaptive Mixtures of Local Experts",
        about=(
            "Full-batch gradient descent on 400 vowels (F1, F2; 50 speakers) until the mean squared error of the "
            "blended output is 0.08, tested on 200 of 25 other speakers. We do not know the coding of the vowels, the "
            "rates or the initial weights. The losses 1.1 and 1.2 are used as printed."
        ),
        arms=(
            arm("4 experts", mixture(4, "likelihood")),
            arm("8 experts", mixture(8, "likelihood")),
            arm("net of 6", net(6)),
            arm("net of 12", net(12)),
            arm("8 experts, loss 1.1", mixture(8, "cooperative")),
            arm("8 experts, loss 1.2", mixture(8, "competitive")),
        ),
        predictions=(
            Prediction(
                claim="four experts reach the criterion in fewer epochs than a net of 6 hidden units",
                paper="1124 against 2209 epochs: 49 % fewer",
                source=TABLE,
                measure=share,
                contrast=saved("4 experts", "net of 6"),
                at_least=0.245,
            ),
            Prediction(
                claim="four experts reach it in fewer epochs than a net of 12 hidden units",
                paper="1124 against 2435 epochs: 54 % fewer",
                source=TABLE,
                measure=share,
                contrast=saved("4 experts", "net of 12"),
                at_least=0.27,
            ),
            Prediction(
                claim="eight experts are faster than four",
                paper="1083 against 1124 epochs: 3.6 % fewer",
                source=TABLE,
                measure=share,
                contrast=saved("8 experts", "4 experts"),
                at_least=0.018,
            ),
            Prediction(
                claim="a mixture is as good on new speakers as the better net",
                paper="90 % right, all four",
                source=TABLE,
                measure="accuracy, four experts − the better net; at most .02 less",
                contrast=accuracy,
                at_least=-0.02,
            ),
            Prediction(
                claim="under competition (1.3) all but two or three of eight experts end with a gate of about 0",
                paper="all but 2 or 3 experts, in all runs",
                source="the text on the vowels",
                measure="3 − active experts (gate above 0.1 in some case); half an expert more counts as none",
                contrast=lambda seen: 3 - seen["8 experts"]["active"],
                at_least=-0.5,
            ),
            Prediction(
                claim="under cooperation (1.1) more experts share the work than under 1.3",
                paper="no figure",
                source="the text on eq. 1.1",
                measure="active experts, 1.1 − 1.3",
                contrast=lambda seen: seen["8 experts, loss 1.1"]["active"] - seen["8 experts"]["active"],
            ),
            Prediction(
                claim="under competition (1.2) fewer experts share the work than under 1.1",
                paper="no figure",
                source="the text on eq. 1.2",
                measure="active experts, 1.1 − 1.2",
                contrast=lambda seen: seen["8 experts, loss 1.1"]["active"] - seen["8 experts, loss 1.2"]["active"],
            ),
        ),
        panels=(
            Panel(value="epochs", title="epochs to the criterion"),
            Panel(value="active", title="active experts"),
        ),
        columns={"epochs": "epochs", "converged": "converged", "accuracy": "test accuracy", "active": "active experts"},
        score="epochs",
        tuning_seeds=2,
        pictures="moekit_reproduce.papers.jacobs1991:pictures",
    )


def probe(module: LitMoE, data: Data) -> dict[str, float]:
    """Experts whose gate exceeds 0.1 in some training case; nothing for a net, which has none."""
    import torch

    with torch.no_grad():
        reports = list(module.model.on(data.train_batch(torch.Generator())).reports.values())
    if not reports:
        return {}
    gate_TEP: Any = reports[0].routing.combine_TEP  # type: ignore[attr-defined]
    return {"active": float((gate_TEP.sum(-1).amax(0) > 0.1).sum())}


def pictures(study: Study, found: Mapping[str, Found], folder: Path) -> list[Path]:
    """The decision regions of four experts with seed 1, trained once more."""
    from moekit.inference.evaluation import evaluate
    from moekit.registry import build
    from moekit.spec import load
    from moekit_reproduce.runs import Watch, fit, prepared

    arm = study.arms[0]
    recipe = load([*arm.recipe, {"seed": 1, "optimizer": {"lr": found[arm.name].rate}}])
    assert recipe.data is not None
    module, _ = fit(recipe, Watch(recipe.trainer.max_steps))
    evaluators = {name: build(spec) for name, spec in recipe.evaluators.items()}
    files = evaluate(evaluators, module.model, prepared(recipe.data)[0], folder).files
    return [path.replace(folder / f"jacobs1991-{path.name}") for path in files]

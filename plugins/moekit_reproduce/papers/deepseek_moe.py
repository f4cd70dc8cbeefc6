"""DeepSeekMoE 2024: fine-grained and shared experts at equal parameters, and disabled experts. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moekit_reproduce.papers.field import BALANCE, COLUMNS, RATES, SHARE, Node, decoder, mixture, saved
from moekit_reproduce.study import Arm, ClaimSpec, Panel, Prediction, Seen, Study

if TYPE_CHECKING:
    from moekit.contracts import Data
    from moekit.training.module import LitMoE

TABLE = "table 1, Pile loss of 2B models after 100B tokens"
PROBE = "moekit_reproduce.papers.deepseek_moe:probe"


class DeepSeekMoE(ClaimSpec):
    """Sizes of the experiment."""


def study(spec: DeepSeekMoE) -> Study:
    """Three ways to divide the same parameters."""

    def arm(name: str, count: int, top_k: int, hidden: int, shared: bool = False) -> Arm:
        router: Node = {"use": "topk", "top_k": top_k}
        parts = mixture(
            router,
            {"use": "glu", "count": count, "hidden": hidden},
            {"load": {"use": "load_balance", "weight": 1e-2}},
            shared={"use": "glu", "hidden": hidden} if shared else None,
        )
        return Arm(name=name, recipe=decoder(spec, parts), rates=RATES, probe=PROBE)

    def rise(seen: Seen, arm: str, value: str) -> float:
        return float(seen[arm][value] - seen[arm]["loss"])

    return Study(
        title="Dai et al. 2024: DeepSeekMoE",
        about=(
            "In two of three layers: 2 of 16 experts; 8 of 64 of a quarter of the width; 7 of 63 of these and a shared "
            "one. Expert parameters and multiply-adds are the same; the router grows with the experts. Gates are not "
            "renormalised in any of the three. Afterwards, without training: each token's best experts are disabled "
            "and others take their place; the shared expert is removed and one more routed expert takes its place."
        ),
        arms=(
            arm("2 of 16", 16, 2, 108),
            arm("8 of 64", 64, 8, 27),
            arm("7 of 63 and 1 shared", 63, 7, 27, shared=True),
        ),
        predictions=(
            Prediction(
                claim="fine-grained experts are better at equal parameters and work",
                paper="no figure that we have seen",
                source="section 4.4, figure 3",
                measure=SHARE,
                contrast=saved("8 of 64", "2 of 16"),
            ),
            Prediction(
                claim="fine-grained and shared experts are better than 2 of 16",
                paper="1.808 against 1.867 (GShard): 3.2 % lower",
                source=TABLE,
                measure=SHARE,
                contrast=saved("7 of 63 and 1 shared", "2 of 16"),
                at_least=0.016,
            ),
            Prediction(
                claim="a shared expert among fine-grained ones is better than none",
                paper="no figure that we have seen",
                source="section 4.4, figure 3",
                measure=SHARE,
                contrast=saved("7 of 63 and 1 shared", "8 of 64"),
            ),
            Prediction(
                claim="disabling each token's best 1/16 of the experts hurts more than in 2 of 16: less redundancy",
                paper="Pile loss about 1.8 → 7.5 against 1.8 → 5.6 (GShard × 1.5): 1.5 times the rise",
                source="figure 4, read off the curves",
                measure="rise of the loss / rise with 2 of 16, − 1",
                contrast=lambda seen: (
                    rise(seen, "7 of 63 and 1 shared", "without_1") / rise(seen, "2 of 16", "without_1") - 1
                ),
                at_least=0.25,
            ),
            Prediction(
                claim="no routed expert can replace the shared one",
                paper="Pile loss 1.808 → 2.414: 34 % higher",
                source="section 4.5",
                measure="rise of the loss / loss",
                contrast=lambda seen: (
                    rise(seen, "7 of 63 and 1 shared", "without_shared") / seen["7 of 63 and 1 shared"]["loss"]
                ),
                at_least=0.17,
            ),
        ),
        panels=(
            Panel(value="loss", title="validation loss, nats per byte"),
            Panel(value="without_1", title="the same without each token's best 1/16"),
        ),
        columns={
            **COLUMNS,
            **BALANCE,
            "without_1": "loss without the best 1/16",
            "without_4": "without the best 4/16",
            "without_shared": "without the shared one",
        },
    )


def probe(module: LitMoE, data: Data) -> dict[str, float]:
    """The loss with each token's best 1/16 and 4/16 of the experts disabled; and without shared experts, if any."""
    from moekit.moe_layer import MoELayer
    from moekit_reproduce.papers.disabled import disabled
    from moekit_reproduce.runs import validation_loss

    layers = [layer for layer in module.model.modules() if isinstance(layer, MoELayer)]
    found = {}
    for sixteenths in (1, 4):
        with disabled(layers, best=sixteenths / 16):
            found[f"without_{sixteenths}"] = validation_loss(module, data)
    if all(layer.shared is not None for layer in layers):
        with disabled(layers, shared=True):
            found["without_shared"] = validation_loss(module, data)
    return found

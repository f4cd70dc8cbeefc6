"""Objectives over cases: which cases count, metrics, and refused outputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moekit.contracts import Batch, ModelOutput
from moekit.errors import MoekitError
from moekit.spec.kinds import MoE
from moekit_dispatchers.soft import Soft as SoftDispatcher
from moekit_experts.linear import Logistic
from moekit_models.mixture import Mixture
from moekit_models.mixture.module import MixtureModel
from moekit_objectives.competitive import Competitive
from moekit_objectives.competitive.module import CompetitiveObjective
from moekit_objectives.squared_error import SquaredError
from moekit_objectives.squared_error.module import SquaredErrorObjective
from moekit_routers.dense import Dense


def mixture(outputs: int = 1) -> MixtureModel:
    moe = MoE(router=Dense(), experts=Logistic(count=3), dispatcher=SoftDispatcher())
    return MixtureModel(Mixture(inputs=2, outputs=outputs, moe=moe))


def test_squared_error_and_its_metrics() -> None:
    y, d = torch.tensor([[0.5, 0.0], [1.0, 0.6]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    out = SquaredErrorObjective(SquaredError())(ModelOutput(y=y), Batch(y, d))
    assert out.total.item() == pytest.approx((0.25 + 0.36) / 2)
    assert out.count == 2
    metrics = {name: (a / b).item() for name, (a, b) in out.metrics.items()}
    # 0.5 is not above 0.5 and 0.6 is: two of four outputs are on the right side
    assert metrics == pytest.approx({"loss": 0.305 / 2, "blend_mse": 0.61 / 2, "accuracy": 0.5})


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("error", ["cooperative", "competitive", "likelihood"])
def test_blend_mse_is_the_cooperative_error_and_padding_counts_nowhere(error: str, outputs: int) -> None:
    model, objective = mixture(outputs), CompetitiveObjective(Competitive(error=error))  # type: ignore[arg-type]
    x, d = torch.randn(6, 2), torch.rand(6, outputs).round()
    valid = torch.tensor([True, True, False, True, True, False])
    padded = objective(model(x, valid=valid), Batch(x, d, valid))
    alone = objective(model(x[valid]), Batch(x[valid], d[valid]))
    assert padded.count == alone.count == 4
    torch.testing.assert_close(padded.total, alone.total)
    for name, (value, count) in alone.metrics.items():
        torch.testing.assert_close(padded.metrics[name][0] / padded.metrics[name][1], value / count)
    cooperative = CompetitiveObjective(Competitive(error="cooperative"))(model(x[valid]), Batch(x[valid], d[valid]))
    torch.testing.assert_close(alone.metrics["blend_mse"][0], cooperative.total.detach())


def test_squared_error_takes_a_mixture() -> None:
    x, d = torch.randn(5, 2), torch.rand(5, 1).round()
    model = mixture()
    out = SquaredErrorObjective(SquaredError())(model(x), Batch(x, d))
    torch.testing.assert_close(2 * out.total.detach(), out.metrics["blend_mse"][0])


def test_a_model_without_a_mixture_is_refused() -> None:
    y = torch.zeros(2, 1)
    with pytest.raises(MoekitError, match="needs a model with one mixture layer; this one has 0"):
        CompetitiveObjective(Competitive())(ModelOutput(y=y), Batch(y, y))


def test_a_dispatcher_that_keeps_no_expert_outputs_is_refused() -> None:
    x, d = torch.randn(3, 2), torch.zeros(3, 1)
    output = mixture()(x)
    silent = ModelOutput(y=output.y, reports={"moe": replace(output.reports["moe"], expert_TEO=None)})
    with pytest.raises(MoekitError, match="needs every expert's own output") as error:
        CompetitiveObjective(Competitive())(silent, Batch(x, d))
    assert "moekit ls dispatchers" in str(error.value)


def test_an_unknown_error_is_refused() -> None:
    with pytest.raises(ValueError, match="error='friendly' is out of range"):
        Competitive(error="friendly")  # type: ignore[arg-type]

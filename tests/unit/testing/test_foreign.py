"""``check_foreign``: a small mixture that knows nothing of moekit passes; with one fault, the check for it fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moekit_testing import Seen, check_foreign
from moekit_testing.running import Result

D, E, K = 6, 4, 2


class Layer(nn.Module):
    """``x -> (y, aux)``: softmax, top 2, a linear map for each expert, and the loss of Switch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(D, E, bias=False)
        self.experts = nn.ModuleList(nn.Linear(D, D) for _ in range(E))
        self.load_E = torch.zeros(E)
        self.logits_TE = torch.zeros(0)
        self.expert_TK = torch.zeros(0)

    def forward(self, x_BSD: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x_TD = self.flattened(x_BSD)
        valid_T = torch.ones(len(x_TD), dtype=torch.bool) if mask is None else mask.flatten()
        self.logits_TE = self.gate(x_TD)
        scores_TE = self.logits_TE.softmax(-1)
        self.expert_TK = scores_TE.topk(K, dim=1).indices
        gate_TK = self.gates(scores_TE).gather(1, self.expert_TK)
        chosen_TE = torch.zeros_like(scores_TE).scatter(1, self.expert_TK, 1.0)
        kept_TE = self.kept(chosen_TE)
        weight_TE = torch.zeros_like(scores_TE).scatter(1, self.expert_TK, gate_TK) * kept_TE
        y_TD = sum(weight_TE[:, e, None] * expert(x_TD) for e, expert in enumerate(self.experts))
        counted_T = self.counted(valid_T)
        self.load_E = (chosen_TE * counted_T[:, None]).sum(0).detach()
        mean_E = (self.for_loss(scores_TE) * counted_T[:, None]).sum(0) / counted_T.sum()
        aux = E * (self.load_E / self.load_E.sum() * mean_E).sum()
        assert isinstance(y_TD, Tensor)
        return y_TD.view(x_BSD.shape), aux

    def flattened(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.flatten(0, 1)

    def gates(self, scores_TE: Tensor) -> Tensor:
        return scores_TE

    def kept(self, chosen_TE: Tensor) -> Tensor:
        return chosen_TE

    def counted(self, valid_T: Tensor) -> Tensor:
        return valid_T

    def for_loss(self, scores_TE: Tensor) -> Tensor:
        return scores_TE


class CountsPadding(Layer):
    def counted(self, valid_T: Tensor) -> Tensor:
        return torch.ones_like(valid_T)


class RoundsGates(Layer):
    def gates(self, scores_TE: Tensor) -> Tensor:
        return scores_TE.bfloat16().float()


class HasACapacity(Layer):
    """An expert takes the first tokens alone, as many as its even share times 1.25."""

    def kept(self, chosen_TE: Tensor) -> Tensor:
        capacity = max(int(1.25 * K * len(chosen_TE) / E), 1)
        return chosen_TE * (chosen_TE.cumsum(0) <= capacity)


class ChangesItsInput(Layer):
    def flattened(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.mul_(0.5).flatten(0, 1)


class DetachesItsLoss(Layer):
    """The loss has a gradient, to a weight that is none of the router's."""

    def for_loss(self, scores_TE: Tensor) -> Tensor:
        bias_D = self.experts[0].bias
        assert isinstance(bias_D, Tensor)
        return scores_TE.detach() + bias_D.sum()


def read(layer: Any, out: tuple[Tensor, Tensor]) -> Seen:
    return Seen(y=out[0], aux=out[1], load_E=layer.load_E, logits_TE=layer.logits_TE, expert_TK=layer.expert_TK)


def call(layer: Any, x_BSD: Tensor, valid_BS: Tensor) -> Any:
    return layer(x_BSD, mask=valid_BS)


def expert(layer: Any, e: int, x_TD: Tensor) -> Tensor:
    y_TD: Tensor = layer.experts[e](x_TD)
    return y_TD


def check(layer: Layer) -> dict[str, Result]:
    results = check_foreign(layer, dim=D, read=read, masked=call, expert=expert, router="gate.")
    return {result.check: result for result in results}


def test_a_correct_layer_passes_every_check() -> None:
    assert {name: result.reason for name, result in check(Layer()).items() if result.status != "passed"} == {}


@pytest.mark.parametrize(
    ("layer", "name", "said"),
    [
        (CountsPadding, "check_foreign_padding", "loads with padding"),
        (RoundsGates, "check_foreign_gates", "y, against the sum of gate · expert(x)"),
        (HasACapacity, "check_foreign_drops", "outputs are 0 among tokens equal to it, in eval mode"),
        (ChangesItsInput, "check_foreign_input", "the input after a pass in training mode"),
        (DetachesItsLoss, "check_foreign_balance_loss", "found     a gradient of at most 0 to gate.weight"),
    ],
)
def test_a_layer_with_one_fault_fails_the_check_for_it(layer: type[Layer], name: str, said: str) -> None:
    results = check(layer())
    assert results[name].status == "failed" and said in results[name].reason
    others = {n for n, result in results.items() if result.status == "failed"} - {name}
    assert others <= {"check_foreign_gates"}, "a layer that drops tokens or halves its input also computes another sum"


def test_what_a_module_does_not_show_is_skipped_with_the_reason() -> None:
    results = {r.check: (r.status, r.reason) for r in check_foreign(nn.Linear(D, D), dim=D)}
    assert results == {
        "check_foreign_input": ("passed", ""),
        "check_foreign_drops": ("passed", ""),
        "check_foreign_padding": ("skipped", "no `masked`, so it is not known how it takes a mask"),
        "check_foreign_gates": ("skipped", "it shows no logits and chosen experts"),
        "check_foreign_balance_loss": ("skipped", "it returns no balance loss"),
    }


def test_a_router_alone_is_checked_on_flat_tokens() -> None:
    class Gate(nn.Linear):
        def forward(self, x_TD: Tensor) -> Any:
            logits_TE = super().forward(x_TD)
            expert_TK = logits_TE.topk(K, dim=1).indices
            return logits_TE, expert_TK, logits_TE.softmax(-1).gather(1, expert_TK) * self.factor

        factor = 1.0

    def shown(module: nn.Module, out: Any) -> Seen:
        return Seen(logits_TE=out[0], expert_TK=out[1], gate_TK=out[2])

    def status_of(gate: Gate) -> str:
        results = {r.check: r for r in check_foreign(gate, dim=D, read=shown, flat=True)}
        assert results["check_foreign_drops"].reason == "it returns no output for each token"
        return results["check_foreign_gates"].status

    gate = Gate(D, E)
    assert status_of(gate) == "passed"
    gate.factor = 2.0
    assert status_of(gate) == "failed"


def test_an_output_that_cannot_be_read_says_what_to_give() -> None:
    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {"y": super().forward(x)}

    results = {r.check: r for r in check_foreign(Named(D, D), dim=D)}
    assert "give read=lambda module, out: Seen(y=...)" in results["check_foreign_input"].reason


def test_a_router_whose_parameters_do_not_exist_is_named_with_those_that_do() -> None:
    results = {r.check: r for r in check_foreign(Layer(), dim=D, router="router.")}
    assert "no parameter whose name begins with 'router.'" in results["check_foreign_balance_loss"].reason
    assert "gate.weight" in results["check_foreign_balance_loss"].reason


def test_the_module_stays_as_it_is() -> None:
    layer = Layer().eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    check_foreign(layer, dim=D)
    assert not layer.training and all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())

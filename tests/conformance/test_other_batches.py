"""Models and objectives that take something else than tokens, pairs and cases: here pictures and their classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from moekit import (
    Batch,
    Component,
    LossSum,
    Model,
    ModelOutput,
    ModelSpec,
    MoekitError,
    Objective,
    ObjectiveSpec,
    option,
)
from moekit_testing import parametrize_checks
from moekit_testing.assertions import CheckFailure
from moekit_testing.cases import cases_of
from moekit_testing.running import checks_for


class PatchNet(ModelSpec):
    takes: ClassVar[str] = "pictures"
    gives: ClassVar[str] = "classes"
    classes: int = option(5, "number of classes", ge=2)


class PatchNetModel(Model):
    def __init__(self, spec: PatchNet) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 6, 4, 4)
        self.head = nn.Linear(6, spec.classes)

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        return ModelOutput(y=self.head(self.patches(inputs).flatten(2).mean(2).tanh()))


class Classify(ObjectiveSpec):
    takes: ClassVar[frozenset[str]] = frozenset({"classes"})


class ClassifyObjective(Objective):
    def __init__(self, spec: Classify) -> None:
        super().__init__()

    def forward(self, output: ModelOutput, batch: Batch) -> LossSum:
        each = nn.functional.cross_entropy(output.y, batch.targets, reduction="none")
        valid = torch.ones_like(each, dtype=torch.bool) if batch.valid is None else batch.valid
        return LossSum(total=each[valid].sum(), count=valid.sum())


class KeepingObjective(ClassifyObjective):
    """Keeps a tensor of its last batch in a private attribute."""

    _last: Tensor | None = None

    def forward(self, output: ModelOutput, batch: Batch) -> LossSum:
        self._last = output.y.detach()
        return super().forward(output, batch)


NET = Component(name="patch_net", spec=PatchNet, target=PatchNetModel, summary="averages patches")
LOSS = Component(name="classify", spec=Classify, target=ClassifyObjective, summary="cross entropy of classes")
PICTURES = Batch(torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5)
SCORES = ModelOutput(y=torch.randn(6, 5, generator=torch.Generator().manual_seed(1)))


@parametrize_checks([NET, LOSS], batches={"patch_net": PICTURES, "objective/classify": (SCORES, PICTURES)})
def test_a_model_of_pictures_and_its_objective_pass_all_checks(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (NET, r"model 'patch_net' takes pictures, which .* batches=\{'patch_net': Batch\(...\)\}"),
        (LOSS, r"objective 'classify' takes classes, which .* batches=\{'classify': \(ModelOutput\(...\), Batch"),
    ],
)
def test_without_a_batch_the_message_says_how_to_give_one(component: Component, message: str) -> None:
    with pytest.raises(MoekitError, match=message):
        list(cases_of([component], {}))


def test_a_tensor_kept_in_a_private_attribute_is_found() -> None:
    keeps = Component(name="classify", spec=Classify, target=KeepingObjective, summary="keeps state")
    (case,) = cases_of([keeps], {}, batches={"classify": (SCORES, PICTURES)})
    (check,) = [bound for bound in checks_for(case) if bound.name == "check_forward_keeps_no_state"]
    with pytest.raises(CheckFailure, match="forward in training mode changed '_last'"):
        check()

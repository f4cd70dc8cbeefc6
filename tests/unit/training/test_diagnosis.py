"""The diagnosis of a non-finite step names the part that caused it; each test breaks one part of a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch._dynamo import eval_frame
from training_helpers import trainer

from moekit import Batch, LossSum, LossTerm, MoekitError, MoELayer
from moekit.contracts import ExpertBank
from moekit.contracts.layer import Groups, UniformGroups
from moekit.training import LitMoE
from moekit_doctor.diagnosis import Found, Watch, _largest, named_experts

pytestmark = pytest.mark.usefixtures("quiet_lightning")
Tree = dict[str, Any]
Make = Callable[..., Tree]
NAN = float("nan")
EXPERTS, ROUTER = "blocks.1.ffn.experts", "blocks.1.ffn.router"
GATE_UP, DOWN = f"{EXPERTS}.w_gate_up_EHD", f"{EXPERTS}.w_down_EOH"


def named_part(module: LitMoE, *batches: Batch, **options: Any) -> str:
    """The part that one optimizer step names when it stops; the step must not change any weight."""
    options = {"limit_val_batches": 0, **options}
    before = deepcopy(module.state_dict())
    with pytest.raises(MoekitError, match="step 1: the loss is") as caught:
        trainer(1, **options).fit(module, *([Batches(*batches)] if batches else []))
    assert all(
        torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in module.state_dict().items()
    )
    return str(caught.value).splitlines()[1].strip()


class Batches:
    """A loader of some batches."""

    def __init__(self, *batches: Batch) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def layer_of(module: LitMoE) -> MoELayer:
    return next(m for m in module.modules() if isinstance(m, MoELayer))


def map_leaves(module: LitMoE, names: Sequence[str], value: float, experts: Sequence[int] = ()) -> None:
    """Fills weights, or those of some experts, with a value."""
    for name in names:
        weight = module.model.get_parameter(name).data
        weight[list(experts) or ...] = value


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize(
    ("name", "experts", "named"),
    [
        (DOWN, [2], f"expert 2 of {EXPERTS} (w_down_EOH)"),
        (f"{ROUTER}.weight_ED", [], f"{ROUTER} (weight_ED)"),
        ("head.weight", [], "head (weight)"),
        ("embedding.weight", [], "embedding (weight)"),
    ],
)
def test_a_non_finite_weight_is_named(recipe: Make, name: str, experts: list[int], named: str, value: float) -> None:
    module = LitMoE(recipe())
    map_leaves(module, [name], value, experts)
    assert named_part(module) == f"weights that are not finite: {named}"


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_buffer_with_a_nan_is_named(recipe: Make, policy: str) -> None:
    """It ends the run at once, as weights do. Infinity in a buffer may be a mask, and is not blamed."""
    module = LitMoE(recipe(non_finite=policy))
    module.model.register_buffer("mask", torch.full((2, 2), -float("inf")))
    module.model.get_buffer("blocks.1.ffn.balancers.bias.bias_E")[2] = NAN
    layer_of(module).experts.get_parameter("w_down_EOH").register_hook(lambda grad: grad * NAN)
    assert named_part(module) == "buffers that are not finite: blocks.1.ffn.balancers.bias (bias_E)"


DISPATCHERS = ("loop", "grouped", "fused", "capacity", "auto")


@pytest.mark.parametrize(
    ("weights", "value", "experts", "moe", "named"),
    [
        *[
            ([GATE_UP, DOWN], 1e30, [1], {"dispatcher": {"use": use}}, f"expert 1 of {EXPERTS} (")
            for use in DISPATCHERS
        ],
        ([GATE_UP], 1e38, [0, 3], {}, f"experts 0, 3 of {EXPERTS} ("),
        (["blocks.0.ffn.w_gate_up_EHD"], 1e38, [], {}, "blocks.0.ffn (GluExperts; "),
        # The softmax of infinity is NaN; its sigmoid would be 1.
        ([f"{ROUTER}.weight_ED"], 3e38, [], {"router": {"use": "topk", "top_k": 2}}, f"{ROUTER} (TopKRouter; "),
        (["head.weight"], 3e38, [], {}, "head (Linear; "),
    ],
)
def test_a_part_with_finite_weights_that_overflows_is_named(
    recipe: Make, weights: list[str], value: float, experts: list[int], moe: Tree, named: str
) -> None:
    """The fused dispatcher does not call the experts module; the diagnosis then runs the experts itself."""
    tree = recipe()
    tree["model"]["moe"] |= moe
    module = LitMoE(tree)
    map_leaves(module, weights, value, experts)
    assert named_part(module) == f"first not finite: {named}inputs and weights are finite)"


def test_only_experts_that_the_token_chose_are_named(recipe: Make) -> None:
    tree = recipe()
    tree["model"]["moe"]["dispatcher"] = {"use": "fused"}
    module = LitMoE(tree)
    map_leaves(module, [GATE_UP, DOWN], 1e30)
    assert re.fullmatch(rf"first not finite: experts \d, \d of {EXPERTS} \(inputs .*\)", named_part(module))


def test_experts_are_numbered_over_all_ranks(recipe: Make) -> None:
    module = LitMoE(recipe())
    assert named_experts(module.model, EXPERTS, [1, 3]) == f"experts 1, 3 of {EXPERTS}"
    assert named_experts(module.model, EXPERTS, [0, 1, 2, 3]) == f"experts 0, 1, 2, and 1 more of {EXPERTS}"
    layer_of(module).dispatcher.local_experts = range(4, 8)
    assert named_experts(module.model, EXPERTS, [1]) == f"expert 5 of {EXPERTS}"


def test_an_expert_that_overflows_only_in_fp16_is_named(recipe: Make) -> None:
    """fp16 ends at 65,504; in fp32 the same weights train."""
    for half in (True, False):
        module = LitMoE(recipe())
        map_leaves(module, [GATE_UP, DOWN], 300.0, [2])
        if half:
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            named = named_part(module, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
            assert named == f"first not finite: expert 2 of {EXPERTS} (inputs and weights are finite)"
        else:
            trainer(1, limit_val_batches=0).fit(module)


def test_non_finite_data_is_named_with_its_micro_batch(recipe: Make) -> None:
    batches = [Batch(torch.randn(5, 2), torch.randn(5, 1)) for _ in range(3)]
    batches[1].inputs[2, 0] = NAN
    said = named_part(LitMoE("jacobs1991"), *batches, accumulate_grad_batches=3)
    assert said == "first not finite: the data: its inputs or targets are not finite, in micro-batch 2 of 3"


def test_batches_of_finite_steps_are_not_kept() -> None:
    batches = [Batch(torch.randn(5, 2), torch.randn(5, 1)) for _ in range(3)]
    batches[2].inputs[2, 0] = NAN
    module = LitMoE("jacobs1991")
    with pytest.raises(MoekitError, match="step 3: the loss is nan") as caught:
        trainer(3, limit_val_batches=0).fit(module, Batches(*batches))
    assert str(caught.value).splitlines()[1].endswith("the data: its inputs or targets are not finite")
    assert not module._step._micro_batches


def test_a_non_finite_objective_is_named(recipe: Make) -> None:
    module = LitMoE(recipe())
    module.objective.register_forward_hook(lambda _, args, loss: replace(loss, total=loss.total / 0))
    assert named_part(module) == "first not finite: the objective (CausalLMObjective)"


def test_a_layers_loss_that_overflows_is_named(recipe: Make) -> None:
    """It is not in the objective's sum: the reported loss is finite, its gradients are not."""
    tree = recipe()
    tree["model"]["moe"]["balancers"] = {"load": {"use": "load_balance", "weight": 1e39}}
    assert named_part(LitMoE(tree)) == "first not finite: the loss 'load' of blocks.1.ffn"


def test_a_layers_nan_loss_is_named_and_not_the_layer(recipe: Make) -> None:
    """The layer's output is finite; the losses in its report are checked by name."""
    tree = recipe()
    tree["model"]["moe"]["balancers"] = {"load": {"use": "load_balance", "weight": 0.1}}
    module = LitMoE(tree)
    balancer: Any = layer_of(module).balancers["load"]
    loss = balancer.loss

    def planted(*args: Any, **kwargs: Any) -> LossTerm:
        term: LossTerm = loss(*args, **kwargs)
        return replace(term, value=term.value * NAN)

    balancer.loss = planted
    assert named_part(module) == "first not finite: the loss 'load' of blocks.1.ffn"


def test_a_block_whose_sum_overflows_is_named(recipe: Make) -> None:
    """Both summands are finite. The block is to blame, not the norm after it."""
    module = LitMoE(recipe())
    for part in ("attention", "ffn"):
        module.model.get_submodule(f"blocks.0.{part}").register_forward_hook(lambda _, args, y: y * 0 + 3e38)
    assert named_part(module) == "first not finite: blocks.0 (Block; inputs and weights are finite)"


def test_a_non_finite_gradient_of_an_expert_is_named(recipe: Make) -> None:
    module = LitMoE(recipe())
    weight = layer_of(module).experts.get_parameter("w_down_EOH")
    weight.register_hook(lambda grad: grad.index_fill(0, torch.tensor([3]), NAN))
    begin = "the forward pass is finite, the gradients are not, backwards from:"
    assert named_part(module) == f"{begin} expert 3 of {EXPERTS} (w_down_EOH)"


def test_the_last_weight_with_a_non_finite_gradient_is_named(recipe: Make) -> None:
    """All weights before the broken output have such gradients; the last of them is named."""
    module = LitMoE(recipe())

    def plant(_: Any, args: Any, output: tuple[Tensor, Any]) -> None:
        if output[0].requires_grad:
            output[0].register_hook(lambda grad: grad * NAN)

    module.model.get_submodule("blocks.0").register_forward_hook(plant)
    said = named_part(module)
    assert said.startswith("the forward pass is finite, the gradients are not, backwards from: blocks.0.ffn (w_")


def test_the_largest_gradient_is_named_if_only_the_norm_overflows(recipe: Make) -> None:
    module = LitMoE(recipe())
    module.model.get_parameter("head.weight").register_hook(lambda grad: grad.sign() * 3e38)
    norm = "every gradient is finite, and their norm overflows"
    assert named_part(module) == f"{norm}; the largest is that of: head.weight, up to 1.9e+37"


class Scaled(nn.Module):
    def forward(self, x: Tensor, *, by: Tensor) -> Tensor:
        return x * by


class Dividing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Scaled()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x, by=x / 0)
        return y


def test_a_part_is_not_blamed_for_a_non_finite_keyword_argument() -> None:
    with Watch(model := Dividing()) as watch:
        model(torch.ones(2))
    assert watch.order == ["inner", ""] and watch.found.startswith("the model (Dividing;")


def test_a_fault_that_does_not_repeat_is_reported_as_such(recipe: Make) -> None:
    module, times = LitMoE(recipe()), []

    def once(_: Any, args: Any, output: Tensor) -> Tensor:
        times.append(1)
        return output * NAN if len(times) == 1 else output

    module.model.get_submodule("head").register_forward_hook(once)
    batch = Batch(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64))
    assert named_part(module, batch) == ("run again, the whole step is finite: it does not repeat (a hardware fault?)")


def test_micro_batches_run_again_under_the_same_noise(recipe: Make) -> None:
    """So an overflow that depends on the noise is found."""
    module = LitMoE(recipe())
    noise: list[float] = []

    def noisy(_: Any, args: Any, output: Tensor) -> Tensor:
        noise.append(float(torch.rand(())))
        return output / 0 if noise[-1] == noise[0] else output

    module.model.get_submodule("head").register_forward_hook(noisy)
    assert named_part(module) == "first not finite: head (Linear; inputs and weights are finite)"
    assert noise[1:] == noise[:1]


def test_the_step_runs_again_with_the_same_progress_uncompiled_and_without_gradients(recipe: Make) -> None:
    """Compiled parts would be compiled again because of the hooks."""
    module, passes = LitMoE(recipe()), []

    def plant(_: Any, args: Any, output: Tensor) -> Tensor:
        return output * NAN if module.trainer.global_step == 1 else output

    def note(_: Any, args: Any, kwargs: dict[str, float]) -> None:
        passes.append((kwargs["progress"], eval_frame._stance.stance, torch.is_grad_enabled()))

    module.model.get_submodule("head").register_forward_hook(plant)
    module.objective.register_forward_pre_hook(note, with_kwargs=True)
    with pytest.raises(MoekitError, match="step 2: the loss is nan"):
        trainer(4, limit_val_batches=0).fit(module)
    assert passes == [(0.0, "default", True), (0.25, "default", True), (0.25, "force_eager", False)]


def test_the_reported_loss_is_per_token(recipe: Make) -> None:
    module = LitMoE(recipe())
    module.model.get_parameter("head.weight").register_hook(lambda grad: grad * NAN)
    with pytest.raises(MoekitError, match="step 1: the loss is") as caught:
        trainer(1, limit_val_batches=0).fit(module)
    (loss,) = re.findall(r"the loss is ([0-9.]+), the norm of its gradients nan", str(caught.value))
    assert 4 < float(loss) < 7  # of 256 bytes, all as likely: ln 256 = 5.5


def test_data_is_blamed_before_every_part_of_the_model(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks agree on the lowest place: that of data must be lower than that of the first part, on another rank."""
    places: list[float] = []

    def agree(found: Found | None, **_: Any) -> Found | None:
        places.extend([] if found is None else [found.place])
        return found

    monkeypatch.setattr("moekit_doctor.diagnosis._agree", agree)
    batch = Batch(torch.zeros(1, 4, dtype=torch.int64), torch.full((1, 4), NAN))
    module = LitMoE(recipe())
    module.objective.forward = lambda output, *_, **__: LossSum(  # type: ignore[method-assign]
        total=output.y.sum() * NAN, count=torch.tensor(4)
    )
    assert named_part(module, batch) == "first not finite: the data: its inputs or targets are not finite"
    assert places == [-1]


class Listed(ExpertBank):
    """Two experts that are separate modules."""

    num_experts, out_dim = 2, 3

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        return torch.cat([expert(x_nD) for expert, x_nD in zip(self.each, groups.split(x_ND), strict=True)])


def test_an_experts_module_is_watched_as_a_whole() -> None:
    """The modules inside do not know an expert's number over all ranks."""
    model = nn.ModuleDict({"experts": Listed()})
    with torch.no_grad():
        model["experts"].each[1].weight.fill_(3e38)
    with Watch(model) as watch:
        model["experts"](torch.ones(4, 3), UniformGroups(2, 4))
    assert watch.order == ["experts"] and watch.found.startswith("expert 1 of experts (")


def test_the_largest_gradient_may_be_negative() -> None:
    model: Any = nn.Linear(2, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[-5.0, 1.0]]), torch.tensor([3.0])
    found = _largest(model)
    assert found is not None and found.what == "weight, up to 5.0e+00"


def test_the_diagnosis_leaves_no_hooks(recipe: Make) -> None:
    module = LitMoE(recipe(non_finite="skip"))
    counts: list[int] = []
    weight = layer_of(module).experts.get_parameter("w_down_EOH")
    weight.register_hook(lambda grad: grad * (NAN if module.trainer.global_step == 1 else 1))

    class Counts(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            counts.append(sum(len(m._forward_hooks) for m in module.modules()))

    trainer(3, limit_val_batches=0, callbacks=[Counts()]).fit(module)
    own = sum(isinstance(m, ExpertBank) for m in module.modules())  # each checks what it returns
    assert counts == [own] * 3 and own and module.skips.count == 1

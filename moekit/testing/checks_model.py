"""Checks of models: a batch's inputs in, ``ModelOutput`` out."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from moekit.contracts import Model, ModelOutput
from moekit.layer import MoELayer
from moekit.spec.kinds import ModelSpec
from moekit.testing.case import Case, Check, require, require_equal, require_finite
from moekit.testing.probes import model_inputs


def checks(case: Case) -> Iterator[Check]:
    """The model checks that a case's claims call for."""
    yield from (check_output, check_reports, check_model_padding, check_model_trains)
    yield from (check_parts, check_counted_without_memory)
    if _spec(case).gives == "next_token":
        yield check_model_causal


def check_output(case: Case) -> None:
    """Answers every token with logits ``[B, S, V]`` (``gives = "next_token"``), or every case with ``[T, O]``."""
    inputs = model_inputs(case)
    output = _run(_build(case).eval(), inputs)
    next_token = _spec(case).gives == "next_token"
    wanted = (*inputs.shape, case.spec.vocab) if next_token else inputs.shape[:1]  # type: ignore[attr-defined]
    shape = tuple(output.y.shape)
    fit = shape == wanted if next_token else len(shape) == 2 and shape[:1] == wanted
    require(fit, found=f"y of shape {shape}", expected=f"{wanted}" if next_token else f"({inputs.shape[0]}, O)")
    require_finite(output.y, "y")
    require(output.future == (), found=f"{len(output.future)} entries in future in eval mode", expected="none")


def check_reports(case: Case) -> None:
    """Reports every MoE layer under its module name, so that the training step finds whose load it counts."""
    model = _build(case)
    layers = {name for name, module in model.named_modules() if isinstance(module, MoELayer)}
    reported = set(_run(model, model_inputs(case)).reports)
    require(reported == layers, found=f"reports of {sorted(reported)}", expected=f"{sorted(layers)}, the MoE layers")


def check_model_padding(case: Case) -> None:
    """Counts no padding in its layers' loads, and lets it change no earlier token's answer."""
    model, inputs = _build(case).eval(), model_inputs(case)
    valid = torch.ones(inputs.shape[:2] if inputs.dtype == torch.int64 else inputs.shape[:1], dtype=torch.bool)
    valid[..., -3:] = False
    other = inputs.clone()
    other[..., -3:] = other[..., :3] if inputs.dtype == torch.int64 else other[..., -3:]
    if inputs.dtype != torch.int64:
        other[-3:] = 3.0
    one, two = (_run(model, x, valid) for x in (inputs, other))
    require_equal(two.y[valid], one.y[valid], "y of valid places when padding changes", tolerance=1e-5)
    for name, report in one.reports.items():
        seen = int(report.routing.num_valid())
        require(seen == int(valid.sum()), found=f"'{name}' saw {seen} tokens", expected=f"{int(valid.sum())} valid")


def check_model_trains(case: Case) -> None:
    """Sends a finite gradient to every parameter (an expert that nothing chose may have 0, but not None)."""
    model = _build(case)
    output = _run(model, model_inputs(case))
    total = output.y.float().square().mean()
    for extra in (*output.future, *(report.loss() for report in output.reports.values())):
        total = total + extra.float().square().mean()
    torch.autograd.backward(total)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            require_finite(parameter.grad, f"gradient of '{name}'")


def check_parts(case: Case) -> None:
    """Names as ``embeddings()`` and ``extra_parts()`` what it really holds; parameter counts are made of them."""
    model = _build(case)
    own = {id(p) for p in model.parameters()}
    for which, parameter in zip(("input embedding", "output head"), model.embeddings(), strict=True):
        require(
            parameter is None or id(parameter) in own,
            found=f"an {which} that is no parameter of the model",
            expected="one of model.parameters()",
        )
    modules = {id(m) for m in model.modules()}
    for name, part in model.extra_parts().items():
        require(id(part) in modules, found=f"extra part '{name}' outside the model", expected="one of its modules")


def check_counted_without_memory(case: Case) -> None:
    """Can be built on the meta device, with the same parameters: ``moekit params`` counts models of any size so."""
    with torch.device("meta"):
        empty = case.build_raw()
    real = {name: tuple(p.shape) for name, p in _build(case).named_parameters()}
    meta = {name: tuple(p.shape) for name, p in empty.named_parameters()}
    require(meta == real, found=f"{len(meta)} parameters on meta, {len(real)} in memory", expected="the same")
    elsewhere = [name for name, p in empty.named_parameters() if p.device.type != "meta"]
    require(not elsewhere, found=f"'{''.join(elsewhere[:1])}' in memory", expected="every parameter on meta")


def check_model_causal(case: Case) -> None:
    """Predicts a token from earlier ones alone, as a model that gives ``next_token`` must."""
    model, tokens_BS = _build(case).eval(), model_inputs(case)
    changed = tokens_BS.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % case.spec.vocab  # type: ignore[attr-defined]
    before, after = (_run(model, x).y for x in (tokens_BS, changed))
    require_equal(after[:, :6], before[:, :6], "logits before the changed tokens", tolerance=1e-5)


def _run(model: Model, inputs: torch.Tensor, valid: torch.Tensor | None = None) -> ModelOutput:
    output: ModelOutput = model(inputs, valid=valid)
    return output


def _build(case: Case) -> Model:
    model = case.build()
    assert isinstance(model, Model)
    return model


def _spec(case: Case) -> ModelSpec:
    assert isinstance(case.spec, ModelSpec)
    return case.spec

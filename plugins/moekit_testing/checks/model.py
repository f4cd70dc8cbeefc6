"""Checks of models, from a batch's inputs to ``ModelOutput``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from moekit.contracts import Batch, Cache, Model, ModelOutput, Source
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.spec.kinds import ModelSpec
from moekit_testing.assertions import require, require_equal, require_finite
from moekit_testing.case import Case, Check
from moekit_testing.fixtures.inputs import Probe, model_inputs, model_source


def probe(case: Case) -> Probe:
    """The standard input of the common checks, and how to run a module on it."""

    def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(module, Model)
        tokens = inputs["inputs"]
        source = Source(inputs["source"]) if "source" in inputs else None
        output = module.on(batch_of(case, tokens, source=source))
        return {"y": output.y} | {f"future[{k}]": y for k, y in enumerate(output.future)}

    inputs, source = model_inputs(case), model_source(case)
    named = {"inputs": inputs} if source is None else {"inputs": inputs, "source": source.tokens}
    return Probe(inputs=named, run=run, fullgraph=False)


def batch_of(case: Case, inputs: Tensor, valid: Tensor | None = None, source: Source | None = None) -> Batch:
    """A batch of these inputs, with everything else as in the case's batch if it has one."""
    if case.batch is None:
        return Batch(inputs, inputs, valid, source=source)
    return case.batch._replace(inputs=inputs, valid=valid if valid is not None else case.batch.valid, source=source)


def checks(case: Case) -> Iterator[Check]:
    """The model checks that a case's claims call for."""
    yield from (check_output, check_reports, check_model_trains)
    if case.batch is None or case.batch.valid is not None:
        yield check_model_padding
    yield from (check_parts, check_counted_without_memory)
    if case.spec_as(ModelSpec).gives == "next_token":
        yield from (check_model_causal, check_model_cache)
    if case.spec_as(ModelSpec).takes == "pairs":
        yield from (check_source_read, check_source_padding, check_given_source)


def check_output(case: Case) -> None:
    """Returns logits ``[B, S, V]`` for tokens (``gives = "next_token"``), ``[T, O]`` for cases, else a row an input."""
    inputs = model_inputs(case)
    output = _run(case, case.build_as(Model).eval(), inputs)
    if case.batch is not None:
        rows = f"y of {output.y.shape[0] if output.y.ndim else 0} rows"
        require(output.y.ndim > 0 and len(output.y) == len(inputs), found=rows, expected=f"{len(inputs)}, one an input")
        require_finite(output.y, "y")
        return
    next_token = case.spec_as(ModelSpec).gives == "next_token"
    wanted = (*inputs.shape, case.spec.vocab) if next_token else inputs.shape[:1]  # type: ignore[attr-defined]
    shape = tuple(output.y.shape)
    fit = shape == wanted if next_token else len(shape) == 2 and shape[:1] == wanted
    require(fit, found=f"y of shape {shape}", expected=f"{wanted}" if next_token else f"({inputs.shape[0]}, O)")
    require_finite(output.y, "y")
    require(output.future == (), found=f"{len(output.future)} entries in future in eval mode", expected="none")


def check_reports(case: Case) -> None:
    """Reports every MoE layer under its module name, by which the training step finds the layer."""
    model = case.build_as(Model)
    layers = {name for name, module in model.named_modules() if isinstance(module, MoELayer)}
    reported = set(_run(case, model, model_inputs(case)).reports)
    require(reported == layers, found=f"reports of {sorted(reported)}", expected=f"{sorted(layers)}, the MoE layers")


def check_model_padding(case: Case) -> None:
    """Excludes padding from its layers' loads, and its content changes no output of earlier tokens."""
    model, inputs = case.build_as(Model).eval(), model_inputs(case)
    if case.batch is not None and case.batch.valid is not None:
        valid = case.batch.valid
        other = torch.where(valid.reshape(*valid.shape, *[1] * (inputs.ndim - valid.ndim)), inputs, inputs.flip(0))
        one, two = (_run(case, model, x, valid) for x in (inputs, other))
        require_equal(two.y[valid], one.y[valid], "y of valid positions when padding changes", tolerance=1e-5)
        return
    valid = torch.ones(inputs.shape[:2] if inputs.dtype == torch.int64 else inputs.shape[:1], dtype=torch.bool)
    valid[..., -3:] = False
    other = inputs.clone()
    other[..., -3:] = other[..., :3] if inputs.dtype == torch.int64 else other[..., -3:]
    if inputs.dtype != torch.int64:
        other[-3:] = 3.0
    one, two = (_run(case, model, x, valid) for x in (inputs, other))
    require_equal(two.y[valid], one.y[valid], "y of valid positions when padding changes", tolerance=1e-5)
    _require_seen(one, valid, of_source=False)


def check_model_trains(case: Case) -> None:
    """Gives every parameter a finite gradient (0 is allowed for an expert that no token chose, None is not)."""
    model = case.build_as(Model)
    output = _run(case, model, model_inputs(case))
    total = output.y.float().square().mean()
    for extra in (*output.future, *(report.loss() for report in output.reports.values())):
        total = total + extra.float().square().mean()
    torch.autograd.backward(total)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            require_finite(parameter.grad, f"gradient of '{name}'")


def check_parts(case: Case) -> None:
    """Returns from ``embeddings()`` and ``extra_parts()`` its own parameters and modules, for parameter counts."""
    model = case.build_as(Model)
    own = {id(p) for p in model.parameters()}
    for which, parameter in zip(("input embedding", "output head"), model.embeddings(), strict=True):
        require(
            parameter is None or id(parameter) in own,
            found=f"an {which} that is not a parameter of the model",
            expected="one of model.parameters()",
        )
    modules = {id(m) for m in model.modules()}
    for name, part in model.extra_parts().items():
        require(id(part) in modules, found=f"extra part '{name}' outside the model", expected="one of its modules")


def check_counted_without_memory(case: Case) -> None:
    """Can be built on the meta device, with the same parameters, so that ``moekit params`` counts any size."""
    with torch.device("meta"):
        empty = case.build_raw()
    real = {name: tuple(p.shape) for name, p in case.build_as(Model).named_parameters()}
    meta = {name: tuple(p.shape) for name, p in empty.named_parameters()}
    require(meta == real, found=f"{len(meta)} parameters on meta, {len(real)} in memory", expected="the same")
    elsewhere = [name for name, p in empty.named_parameters() if p.device.type != "meta"]
    require(not elsewhere, found=f"'{''.join(elsewhere[:1])}' in memory", expected="every parameter on meta")


def check_model_causal(case: Case) -> None:
    """Predicts a token only from earlier ones, as a model that gives ``next_token`` must."""
    model, tokens_BS = case.build_as(Model).eval(), model_inputs(case)
    changed = tokens_BS.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % case.spec.vocab  # type: ignore[attr-defined]
    before, after = (_run(case, model, x).y for x in (tokens_BS, changed))
    require_equal(after[:, :6], before[:, :6], "logits before the changed tokens", tolerance=1e-5)


def check_model_cache(case: Case) -> None:
    """Decodes with a cache, if ``start_cache`` returns one, to the same logits as a forward pass over all tokens.

    For any number of new tokens, and with interleaved caches: state is kept in the cache, not in the model. Without a
    cache, ``decode`` raises ``MoekitError``. (Examples that drop pairs beyond a capacity cannot pass.)
    """
    model = case.build_as(Model).double().eval()
    inputs, sources = [model_inputs(case, seed=s) for s in (0, 4)], [model_source(case, seed=s) for s in (1, 2)]
    caches = [cache for cache in map(model.start_cache, sources) if cache is not None]
    if not caches:
        _require_no_decode(model, inputs[0])
        return
    found: list[list[torch.Tensor]] = [[] for _ in caches]
    with torch.no_grad():
        for parts in zip(*(torch.split(tokens_BS, [4, 1, 3, 1], dim=1) for tokens_BS in inputs), strict=True):
            for cache, part, y_BSV in zip(caches, parts, found, strict=True):
                y_BSV.append(model.decode(part, cache).y)
        for tokens_BS, source, y_BSV in zip(inputs, sources, found, strict=True):
            expected = _run(case, model, tokens_BS, source=source).y
            require_equal(torch.cat(y_BSV, dim=1), expected, "y of 4, 1, 3, 1 new positions", tolerance=1e-9)


def check_source_read(case: Case) -> None:
    """Depends on the source: another source changes the logits, including those of the first position."""
    model, inputs = case.build_as(Model).eval(), model_inputs(case)
    one, two = (_run(case, model, inputs, source=model_source(case, seed=seed)).y for seed in (1, 2))
    same = torch.allclose(one[:, :1], two[:, :1])
    require(not same, found="the same logits for another source", expected="logits that depend on the source")


def check_source_padding(case: Case) -> None:
    """Ignores padding of the source: it changes no logit, and layers named in ``of_source`` do not count it."""
    model, inputs, source = case.build_as(Model).eval(), model_inputs(case), _source(case)
    valid = torch.arange(source.tokens.shape[1]).expand(source.tokens.shape) < torch.tensor([[4], [6]])
    other = source.tokens.where(valid, (source.tokens + 1) % case.spec.vocab)  # type: ignore[attr-defined]
    one, two = (_run(case, model, inputs, source=Source(tokens, valid)) for tokens in (source.tokens, other))
    require_equal(two.y, one.y, "y when padding of the source changes", tolerance=1e-5)
    unknown = one.of_source - set(one.reports)
    require(not unknown, found=f"of_source names {sorted(unknown)}", expected="names of reports")
    _require_seen(one, valid, of_source=True)


def check_given_source(case: Case) -> None:
    """Gives the same outputs through ``given(source)``, which encodes a source once, as on a batch."""
    model, inputs, source = case.build_as(Model).eval(), model_inputs(case), _source(case)
    decode = model.given(source)
    for length in (1, inputs.shape[1]):
        target = inputs[:, :length]
        require_equal(decode(target, None).y, _run(case, model, target).y, f"y of {length} positions", tolerance=1e-5)


def _require_no_decode(model: Model, tokens_BS: torch.Tensor) -> None:
    __tracebackhide__ = True
    try:
        model.decode(tokens_BS, Cache())
    except MoekitError:
        return
    require(False, found="a result of decode(), though start_cache() returns None", expected="MoekitError")


def _require_seen(output: ModelOutput, valid: torch.Tensor, *, of_source: bool) -> None:
    __tracebackhide__ = True
    for name, report in output.reports.items():
        if (name in output.of_source) == of_source:
            seen = int(report.routing.num_valid())
            require(seen == int(valid.sum()), found=f"'{name}' saw {seen} tokens", expected=f"{int(valid.sum())} valid")


def _run(
    case: Case,
    model: Model,
    inputs: torch.Tensor,
    valid: torch.Tensor | None = None,
    source: Source | None = None,
) -> ModelOutput:
    return model.on(batch_of(case, inputs, valid, source or model_source(case)))


def _source(case: Case) -> Source:
    source = model_source(case)
    assert source is not None
    return source

"""Checks of expert banks. N rows sorted by expert, E experts, D in, O out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from moekit.contracts import ExpertBank
from moekit.contracts.layer import LoopGroups, UniformGroups
from moekit_testing.assertions import require, require_equal, require_finite
from moekit_testing.case import Case, Check, normal
from moekit_testing.fixtures.inputs import Probe


def probe(case: Case) -> Probe:
    """The standard input of the common checks, and how to run a module on it."""
    E = case.dims.num_experts

    def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"y_NO": module(inputs["x_ND"], UniformGroups(E, inputs["x_ND"].shape[0]))}

    return Probe(inputs={"x_ND": normal(3 * E, case.dims.dim)}, run=run)


def checks(case: Case) -> Iterator[Check]:
    """The checks of an expert bank."""
    yield from (check_sizes, check_dtypes, check_rows_independent, check_own_weights)
    yield from (check_empty_groups, check_groups_agree, check_expert_device)


def check_sizes(case: Case) -> None:
    """Has the number of experts that its spec says (``count``), and the output width of the layer (``out_dim``)."""
    bank = case.build_as(ExpertBank)
    E, out_dim = case.dims.num_experts, case.dims.out_dim
    require(
        (bank.num_experts, bank.out_dim) == (E, out_dim),
        found=f"num_experts = {bank.num_experts}, out_dim = {bank.out_dim}",
        expected=f"{E} (spec.count) and {out_dim} (dims.out_dim; dims.dim is {case.dims.dim})",
    )
    shape = tuple(bank(normal(2 * E, case.dims.dim), UniformGroups(E, 2 * E)).shape)
    require(shape == (2 * E, out_dim), found=f"y of shape {shape}", expected=f"{(2 * E, out_dim)}")


def check_dtypes(case: Case) -> None:
    """Returns the dtype of its weights and input (bf16, fp32, fp64), with results close to fp64 (in eval mode)."""
    E = case.dims.num_experts
    x_ND = normal(2 * E, case.dims.dim).bfloat16()
    bank = case.build_as(ExpertBank).bfloat16().eval()
    exact = bank.double()(x_ND.double(), UniformGroups(E, 2 * E))
    for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float32, 1e-5), (torch.float64, 0.0)):
        y_NO = bank.to(dtype)(x_ND.to(dtype), UniformGroups(E, 2 * E))
        require(y_NO.dtype == dtype, found=f"{y_NO.dtype} for {dtype}", expected=str(dtype))
        require_equal(y_NO, exact, f"y in {dtype}", tolerance=tolerance)


def check_rows_independent(case: Case) -> None:
    """Processes each row independently in eval mode: changing one, even to NaN, changes no other.

    Which rows share a batch is arbitrary; a bank that mixes them leaks information between tokens.
    """
    E = case.dims.num_experts
    bank, x_ND = case.build_as(ExpertBank).eval(), normal(3 * E, case.dims.dim)
    before = bank(x_ND, UniformGroups(E, 3 * E))
    for bad in (7.0, float("nan")):
        changed_ND = x_ND.clone()
        changed_ND[1] = bad
        after = bank(changed_ND, UniformGroups(E, 3 * E))
        others = torch.arange(3 * E) != 1
        require_equal(after[others], before[others], f"y of other rows when row 1 becomes {bad}", tolerance=1e-6)


def check_own_weights(case: Case) -> None:
    """Uses each row's own expert: the same row gives different results for different experts, alone or together."""
    E = case.dims.num_experts
    bank = case.build_as(ExpertBank).double().eval()
    x_1D = normal(1, case.dims.dim, dtype=torch.float64)
    together = bank(x_1D.expand(E, -1).contiguous(), UniformGroups(E, E))
    for e in range(E):
        alone = bank(x_1D, LoopGroups([int(i == e) for i in range(E)]))
        require_equal(together[e], alone[0], f"y of expert {e} among others", tolerance=1e-12)
        same = [i for i in range(E) if i != e and torch.allclose(together[i], together[e])]
        require(
            not same or not any(p.shape[:1] == (E,) for p in bank.parameters()),
            found=f"experts {e} and {same[:1]} give the same output though their weights differ",
            expected="each row through its own expert",
        )
        bank.zero_grad()
        if alone.requires_grad:
            torch.autograd.backward(alone.sum())
        for name, parameter in bank.named_parameters():
            if parameter.ndim >= 2 and parameter.shape[0] == E and parameter.grad is not None:
                reached = parameter.grad.flatten(1).any(1).nonzero().flatten().tolist()
                require(
                    set(reached) <= {e},
                    found=f"a row of expert {e} sends gradient to slices {reached} of '{name}'",
                    expected=f"to slice {e} alone",
                )


def check_empty_groups(case: Case) -> None:
    """Handles experts without rows, no rows at all, and rows at the end that belong to no expert."""
    E, D = case.dims.num_experts, case.dims.dim
    bank, x_ND = case.build_as(ExpertBank).eval(), normal(5, D)
    none = bank(normal(0, D), LoopGroups([0] * E))
    require(tuple(none.shape) == (0, bank.out_dim), found=f"y {tuple(none.shape)}", expected=f"(0, {bank.out_dim})")
    for e in range(E):
        sizes = [5 if i == e else 0 for i in range(E)]
        y_NO = bank(x_ND, LoopGroups(sizes))
        require_finite(y_NO, f"y when expert {e} has every row")
        spare_ND = torch.cat([x_ND, torch.full((2, D), float("nan"))])
        with_spare = bank(spare_ND, LoopGroups(sizes, num_rows=7))
        require_equal(with_spare[:5], y_NO, "y followed by two rows of no expert", tolerance=1e-6)
    bank.zero_grad()
    y_NO = bank(x_ND, LoopGroups([5] + [0] * (E - 1)))
    if y_NO.requires_grad:
        torch.autograd.backward(y_NO.sum())
    for name, parameter in bank.named_parameters():
        if parameter.grad is not None:
            require_finite(parameter.grad, f"gradient of '{name}' with idle experts")


def check_groups_agree(case: Case) -> None:
    """Gives the same outputs and gradients under any ``Groups``, to which it leaves products and slices."""
    E = case.dims.num_experts
    bank = case.build_as(ExpertBank).double().eval()
    results = []
    for groups in (UniformGroups(E, 2 * E), LoopGroups([2] * E)):
        bank.zero_grad()
        x_ND = normal(2 * E, case.dims.dim, dtype=torch.float64).requires_grad_()
        y_NO = bank(x_ND, groups)
        torch.autograd.backward((y_NO * normal(*y_NO.shape, seed=2, dtype=torch.float64)).sum())
        grads = {n: p.grad.clone() for n, p in bank.named_parameters() if p.grad is not None}
        results.append({"y": y_NO, "gradient of x": x_ND.grad, **grads})
    uniform, loop = results
    for name, value in uniform.items():
        other = loop.get(name)
        assert value is not None
        require(other is not None, found=f"no gradient of '{name}' under a loop", expected="one, as under equal groups")
        assert other is not None
        require_equal(other, value, f"'{name}' under a loop", tolerance=1e-12)


def check_expert_device(case: Case) -> None:
    """Computes on its input's device, with no tensor elsewhere (tested on meta, and on CUDA if available)."""
    E = case.dims.num_experts
    for device in ["meta", *(["cuda"] if torch.cuda.is_available() else [])]:
        y_NO = case.build_as(ExpertBank).to(device)(torch.zeros(E, case.dims.dim, device=device), UniformGroups(E, E))
        require(y_NO.device.type == device, found=f"y on {y_NO.device}", expected=device)

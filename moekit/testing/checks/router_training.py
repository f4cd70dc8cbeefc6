"""Checks of what a router does in training alone: noise, the load it expects, a loss of its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from moekit.routing import LossTerm, Routing
from moekit.spec.kinds import RouterSpec
from moekit.testing.case import Case, Check, normal, require, require_equal, require_finite, seeded, tensors_in
from moekit.testing.probes import route
from moekit.testing.reference import chosen_TE

_DRAWS = 64


def checks(case: Case) -> Iterator[Check]:
    """The checks of a router in training that a case's claims call for."""
    assert isinstance(case.spec, RouterSpec)
    yield from (check_compile_in_training, check_own_loss)
    yield check_smooth_load if case.spec.gives_smooth_load else check_no_smooth_load


def check_compile_in_training(case: Case) -> None:
    """Compiles in training mode too, as one graph, to what eager mode gives for the same seed."""
    router, x_TD = case.build(), normal(7, case.dims.dim)
    valid_T = torch.arange(7) % 3 != 1
    torch.compiler.reset()
    compiled = torch.compile(lambda x: _outputs(router, x, valid_T), backend="aot_eager", fullgraph=True)
    with seeded(3):
        expected = _outputs(router, x_TD, valid_T)
    with warnings.catch_warnings(), seeded(3):
        warnings.simplefilter("ignore")  # the compiler's own, about itself
        found = compiled(x_TD)
    torch.compiler.reset()
    for name, value in expected.items():
        require_equal(found[name], value, f"compiled {name}", tolerance=1e-5)


def check_own_loss(case: Case) -> None:
    """Has, where it has a loss of its own, one that trains: 0-d, fp32 at least, and blind to what padding holds.

    With a gradient to a parameter; a loss without one teaches nobody.
    """
    router, x_TD = case.build(), normal(12, case.dims.dim)
    valid_T = torch.arange(12) % 4 != 1
    term = _own_loss(router, x_TD.masked_fill(~valid_T[:, None], 0), valid_T)
    if term is None:
        return
    require(
        term.value.ndim == 0 and term.value.dtype == torch.float32,
        found=f"own_loss.value of shape {tuple(term.value.shape)}, {term.value.dtype}",
        expected="a 0-d float32 tensor",
    )
    holes_TD = x_TD.masked_fill(~valid_T[:, None], float("nan"))
    padded = _own_loss(router, holes_TD, valid_T)
    assert padded is not None
    require_equal(padded.value, term.value, "own_loss with NaN in padding", tolerance=1e-6)
    in_bf16 = _own_loss(router.bfloat16(), holes_TD.bfloat16(), valid_T)
    assert in_bf16 is not None
    dtype = in_bf16.value.dtype
    require(dtype == torch.float32, found=f"own_loss.value is {dtype} for bf16 weights", expected="float32")
    require(padded.value.requires_grad, found="own_loss without a gradient", expected="one to a parameter")
    torch.autograd.backward(padded.value)
    for name, parameter in router.float().named_parameters():
        if parameter.grad is not None:
            require_finite(parameter.grad, f"gradient of own_loss to '{name}'")


def check_smooth_load(case: Case) -> None:
    """Says in training what load to expect, as it claims (``gives_smooth_load``), and says nothing in evaluation.

    ``smooth_load_E`` is fp32 at least, counts valid tokens alone, has a gradient (unless every expert is chosen), and
    over many draws of noise it is on average what the load is.
    """
    E, router = case.dims.num_experts, case.build()
    valid_T = torch.arange(4 * E) % 4 != 1
    x_TD = normal(4 * E, case.dims.dim).masked_fill(~valid_T[:, None], float("nan"))
    smooth_E, load_E = torch.zeros(E), torch.zeros(E)
    for seed in range(_DRAWS):
        routing = _seeded_route(router, x_TD, valid_T, seed)
        given = routing.smooth_load_E
        if given is None:
            require(False, found="smooth_load_E = None in training", expected="a tensor (or no such claim)")
            return
        require(
            given.shape == (E,) and given.dtype == torch.float32,
            found=f"smooth_load_E of shape {tuple(given.shape)}, {given.dtype}",
            expected=f"({E},), float32",
        )
        smooth_E, load_E = smooth_E + given.detach() / _DRAWS, load_E + routing.load_E() / _DRAWS
        if seed == 0 and not bool(chosen_TE(routing)[valid_T].all()):
            _require_gradient(router, given)
    require_finite(smooth_E, "smooth_load_E with NaN in padding")
    apart_E, mean = (smooth_E - load_E).abs(), load_E.mean().item()
    e = int(apart_E.argmax())
    require(
        apart_E[e].item() <= 0.4 * mean,
        found=f"over {_DRAWS} draws smooth_load_E of expert {e} is {smooth_E[e]:.4g}, its load {load_E[e]:.4g}",
        expected="about the same",
    )
    in_eval = route(router.eval(), x_TD, valid_T).smooth_load_E
    require(in_eval is None, found="a smooth_load_E in evaluation", expected="None: without noise there is none")


def check_no_smooth_load(case: Case) -> None:
    """Gives no ``smooth_load_E``, in training either, as it claims: balancers that need one go by the claim."""
    for training in (True, False):
        given = route(case.build().train(training), normal(5, case.dims.dim)).smooth_load_E
        require(given is None, found="a smooth_load_E", expected="None (or the claim gives_smooth_load = True)")


def _require_gradient(router: nn.Module, smooth_load_E: Tensor) -> None:
    require(smooth_load_E.requires_grad, found="smooth_load_E without a gradient", expected="one to the weights")
    weigh_E = normal(*smooth_load_E.shape, seed=5)
    torch.autograd.backward((smooth_load_E * weigh_E).sum())
    grads = {n: p.grad for n, p in router.named_parameters() if p.grad is not None}
    for name, gradient in grads.items():
        require_finite(gradient, f"gradient of smooth_load_E to '{name}'")
    trained = any(bool(gradient.any()) for gradient in grads.values())
    require(trained, found="a gradient of 0 from smooth_load_E to every weight", expected="one that trains")


def _seeded_route(router: nn.Module, x_TD: Tensor, valid_T: Tensor, seed: int = 0) -> Routing:
    with seeded(seed):
        return route(router, x_TD, valid_T)


def _own_loss(router: nn.Module, x_TD: Tensor, valid_T: Tensor) -> LossTerm | None:
    return _seeded_route(router, x_TD, valid_T).own_loss


def _outputs(router: nn.Module, x_TD: Tensor, valid_T: Tensor) -> dict[str, Tensor]:
    routing = route(router, x_TD, valid_T)
    own = {} if routing.own_loss is None else {"own_loss": routing.own_loss.value}
    return tensors_in(routing) | own

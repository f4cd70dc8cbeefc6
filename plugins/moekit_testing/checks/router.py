"""Checks of routers: their routing, what their specs claim, and what they do only in training.

T tokens, E experts, K experts per token, C tokens per expert, P slots per expert.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from moekit.errors import MoekitError
from moekit.routing import ExpertChoice, LossTerm, Routing, TokenChoice, gates_of
from moekit.spec.kinds import RouterSpec
from moekit_testing.assertions import require, require_equal, require_finite
from moekit_testing.case import Case, Check, Omitted, claimed, normal, seeded, tensors_in
from moekit_testing.fixtures.inputs import NUM_IDS, Probe, route, routing_tensors
from moekit_testing.fixtures.reference import chosen_TE, weights_TX


def probe(case: Case) -> Probe:
    """The standard input of the common checks, and how to run a module on it."""

    def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return routing_tensors(route(module, inputs["x_TD"]))

    return Probe(inputs={"x_TD": normal(5, case.dims.dim)}, run=run)


def checks(case: Case) -> Iterator[Check | Omitted]:
    """The router checks that a case's claims call for."""
    yield from (check_shapes, check_any_number_of_tokens, check_fp32_arithmetic, check_device)
    yield from (check_choices_distinct, check_load_counts, check_padding, check_padding_nan)
    yield from (check_extreme_logits, check_nan_stays_with_its_token, check_form, check_active)
    yield from claimed(case, "takes_bias", check_bias_chooses_only)
    if not case.spec_as(RouterSpec).takes_bias:
        yield check_bias_is_ignored
    yield from claimed(case, "causal", check_causal)
    yield from (check_compile_in_training, check_own_loss)
    yield check_reads_tokens if case.spec_as(RouterSpec).needs_tokens else check_ignores_tokens
    yield from claimed(case, "gives_smooth_load", check_smooth_load)
    if not case.spec_as(RouterSpec).gives_smooth_load:
        yield check_no_smooth_load
    if case.spec_as(RouterSpec).form == "token_choice":
        yield check_lists_all


def check_shapes(case: Case) -> None:
    """Returns scores and logits ``[T, E]``, and indices and gates in the shapes and dtypes of its form."""
    E = case.dims.num_experts
    T = 8 * E + 1
    routing = route(case.build(), normal(T, case.dims.dim))
    for name in ("logits_TE", "scores_TE"):
        shape = tuple(getattr(routing, name).shape)
        require(shape == (T, E), found=f"{name} of shape {shape}", expected=f"{(T, E)}")
    if isinstance(routing, TokenChoice | ExpertChoice):
        token_choice = isinstance(routing, TokenChoice)
        index = routing.expert_TK if isinstance(routing, TokenChoice) else routing.token_EC
        gates = gates_of(routing)
        first = T if token_choice else E
        require(
            index.dtype == torch.int64 and index.ndim == 2 and index.shape[0] == first and index.shape == gates.shape,
            found=f"indices {index.dtype} {tuple(index.shape)}, gates {tuple(gates.shape)}",
            expected=f"int64 indices and gates, both [{first}, {'K' if token_choice else 'C'}]",
        )
        top = E if token_choice else T
        inside = bool(((index >= 0) & (index < top)).all())
        require(inside, found=f"indices from {index.min()} to {index.max()}", expected=f"0 to {top - 1}")
    else:
        shape = tuple(gates_of(routing).shape)
        require(len(shape) == 3 and shape[:2] == (T, E), found=f"combine_TEP {shape}", expected=f"({T}, {E}, P)")


def check_any_number_of_tokens(case: Case) -> None:
    """Accepts any number of tokens: zero, one, and numbers that no size divides."""
    router = case.build().eval()
    for T in (0, 1, 13):
        routing = route(router, normal(T, case.dims.dim))
        require(
            routing.scores_TE.shape == (T, case.dims.num_experts),
            found=f"scores_TE {tuple(routing.scores_TE.shape)} for {T} tokens",
            expected=f"({T}, {case.dims.num_experts})",
        )
        require(weights_TX(routing).shape[0] == T, found="gates of other tokens", expected=f"gates of {T} tokens")
        require_finite(gates_of(routing), f"gates for {T} tokens")


def check_fp32_arithmetic(case: Case) -> None:
    """Computes in fp32 at least: under autocast, for bf16 input and with bf16 weights.

    A softmax in bf16 has three digits: near ties then choose the wrong expert, and training becomes unstable.
    """
    x_TD = normal(9, case.dims.dim).bfloat16()
    router = case.build().bfloat16().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = route(router.float(), x_TD.float())
    in_bf16 = route(router.bfloat16(), x_TD)
    in_fp32 = tensors_in(route(router.float(), x_TD.float()))
    for found, how in ((under_autocast, "under autocast"), (in_bf16, "for bf16 input and weights")):
        for name, value in tensors_in(found).items():
            if value.is_floating_point():
                require(value.dtype == torch.float32, found=f"{name} is {value.dtype} {how}", expected="float32")
            require_equal(value, in_fp32[name], f"{name} {how}", tolerance=1e-5)


def check_device(case: Case) -> None:
    """Computes on its input's device, with no tensor elsewhere (tested on meta, and on CUDA if available)."""
    for device in ["meta", *(["cuda"] if torch.cuda.is_available() else [])]:
        router = case.build().to(device)
        valid_T = torch.ones(5, dtype=torch.bool, device=device)
        bias_E = torch.zeros(case.dims.num_experts, device=device) if case.spec_as(RouterSpec).takes_bias else None
        routing = route(router, torch.zeros(5, case.dims.dim, device=device), valid_T, bias_E)
        for name, value in tensors_in(routing).items():
            require(value.device.type == device, found=f"{name} on {value.device}", expected=f"{device}")


def check_choices_distinct(case: Case) -> None:
    """Never chooses the same pair of token and expert twice, even with ties; a double would distort the load."""
    router = case.build().eval()
    for x_TD, what in ((normal(11, case.dims.dim), "random tokens"), (torch.zeros(11, case.dims.dim), "all ties")):
        routing = route(router, x_TD)
        if isinstance(routing, TokenChoice | ExpertChoice):
            pairs = routing.pairs()
            all_pairs = list(zip(pairs.token_N.tolist(), pairs.expert_N.tolist(), strict=True))
            twice = sorted({p for p in all_pairs if all_pairs.count(p) > 1 and p[1] < routing.num_experts})
            require(not twice, found=f"(token, expert) {twice[:1]} chosen twice for {what}", expected="distinct pairs")


def check_load_counts(case: Case) -> None:
    """Reports as int64 load exactly the pairs of valid tokens in its routing."""
    valid_T = torch.arange(12) % 3 != 0
    routing = route(case.build(), normal(12, case.dims.dim), valid_T)
    load_E, counted_E = routing.load_E(), chosen_TE(routing).sum(0)
    require(load_E.dtype == torch.int64, found=f"load_E is {load_E.dtype}", expected="int64")
    require_equal(load_E, counted_E, "load_E")


def check_padding(case: Case) -> None:
    """Treats padding as absent: it has no load and no gradient, and does not affect the routing of valid tokens.

    ``valid_T`` is False for padding, which may be anywhere among the tokens.
    """
    router = case.build().eval()
    valid_T = torch.tensor([True, False, True, True, False, True, False, True, False, False, True])
    x_TD = normal(11, case.dims.dim).requires_grad_()
    padded, alone = route(router, x_TD, valid_T), route(router, x_TD[valid_T])
    require_equal(weights_TX(padded)[valid_T], weights_TX(alone), "gates of valid tokens", tolerance=1e-6)
    if weights_TX(padded).requires_grad:
        weights = weights_TX(padded)
        torch.autograd.backward((weights * normal(*weights.shape, seed=5)).sum())
        assert x_TD.grad is not None
        require_equal(x_TD.grad[~valid_T], torch.zeros_like(x_TD[~valid_T]), "gradient of padding tokens")
    require_equal(padded.load_E(), alone.load_E(), "load_E with padding")


def check_padding_nan(case: Case) -> None:
    """Keeps the content of padding rows (NaN, here) out of valid tokens' gates and out of every gradient.

    Mask the input, not the result: in backward a gradient of 0 times NaN is NaN.
    """
    router = case.build()
    valid_T = torch.tensor([True, False, True, True, False])
    x_TD = normal(5, case.dims.dim).masked_fill(~valid_T[:, None], float("nan")).requires_grad_()
    weights = weights_TX(route(router, x_TD, valid_T))
    require_finite(weights[valid_T], "gates of valid tokens")
    if not weights.requires_grad:
        return
    torch.autograd.backward((weights * normal(*weights.shape, seed=5))[valid_T].sum())
    for name, parameter in router.named_parameters():
        if parameter.grad is not None:
            require_finite(parameter.grad, f"gradient of '{name}' with NaN in padding")
    if x_TD.grad is not None:
        require_finite(x_TD.grad[valid_T], "gradient of valid tokens with NaN in padding")


def check_extreme_logits(case: Case) -> None:
    """Keeps gates and gradients finite when logits are huge and all of one sign (renormalising could give 0/0)."""
    for sign in (1.0, -1.0):
        router = case.build()
        with torch.no_grad():
            for parameter in router.parameters():
                if parameter.ndim >= 2:
                    parameter.fill_(1.0)
        x_TD = torch.full((6, case.dims.dim), sign * 1e5).requires_grad_()
        weights = weights_TX(route(router, x_TD))
        what = f"when all logits are near {sign * 1e5 * case.dims.dim:.0e}"
        require_finite(weights, f"gates {what}")
        if weights.requires_grad:
            torch.autograd.backward(weights.sum())
            assert x_TD.grad is not None
            require_finite(x_TD.grad, f"gradients {what}")


def check_nan_stays_with_its_token(case: Case) -> None:
    """Confines a NaN to its own token: other tokens' gates stay finite and, in token choice, unchanged."""
    router, x_TD = case.build().eval(), normal(9, case.dims.dim)
    others = torch.arange(9) != 4
    before = route(router, x_TD)
    x_TD[4] = float("nan")
    after = route(router, x_TD)
    if case.spec_as(RouterSpec).form == "token_choice" and case.spec_as(RouterSpec).causal:
        require_equal(weights_TX(after)[others], weights_TX(before)[others], "gates of other tokens", tolerance=1e-6)
    elif _dispatch_free(after):
        require_finite(weights_TX(after)[others], "gates of other tokens")
    if isinstance(after, TokenChoice):
        inside = bool(((after.expert_TK >= 0) & (after.expert_TK < case.dims.num_experts)).all())
        require(inside, found=f"experts {after.expert_TK[4].tolist()} for a NaN token", expected="valid experts")


def _dispatch_free(routing: Routing) -> bool:
    """False if tokens are averaged in slots, where a NaN necessarily reaches all of them."""
    return getattr(routing, "dispatch_TEP", None) is None


def check_form(case: Case) -> None:
    """Returns the form of routing that its spec claims, with ``valid_T`` in it.

    The claim decides which dispatchers and balancers are compatible. Without the mask, padding would count as load.
    """
    router, valid_T = case.build(), torch.tensor([True, False, True])
    routing = route(router, normal(3, case.dims.dim), valid_T)
    require(
        routing.form == case.spec_as(RouterSpec).form,
        found=f"{type(routing).__name__} (form '{routing.form}')",
        expected=f"the claim form = '{case.spec_as(RouterSpec).form}'",
    )
    same = routing.valid_T is not None and torch.equal(routing.valid_T, valid_T)
    require(same, found=f"routing.valid_T = {routing.valid_T}", expected=f"{valid_T}, as given")


def check_active(case: Case) -> None:
    """Returns from ``spec.active(E)`` the experts per token, from which active parameters are counted."""
    E = case.dims.num_experts
    active = case.spec_as(RouterSpec).active(E)
    routing = route(case.build(), normal(3 * E, case.dims.dim))
    most = E if not isinstance(routing, TokenChoice) else routing.expert_TK.shape[1]
    require(
        math.isfinite(active) and 0 < active <= most,
        found=f"active({E}) = {active}",
        expected=f"more than 0 and at most {most}",
    )


def check_lists_all(case: Case) -> None:
    """Lists every expert for each token if it claims so (``lists_all``), otherwise the choices of a token.

    Capacities count the columns of a routing, and first choices are its first column.
    """
    E, spec = case.dims.num_experts, case.spec_as(RouterSpec)
    routing = route(case.build(), normal(3 * E, case.dims.dim))
    assert isinstance(routing, TokenChoice)
    K, found = routing.expert_TK.shape[1], f"expert_TK of {routing.expert_TK.shape[1]} columns, {E} experts"
    if spec.lists_all:
        require(K == E, found=found, expected=f"{E} columns (or no claim lists_all)")
    else:
        require(K < E or spec.active(E) == E, found=found, expected="fewer columns (or the claim lists_all = True)")


def check_bias_chooses_only(case: Case) -> None:
    """Uses a selection bias to choose experts and for nothing else, never in a gate or a score (``takes_bias``).

    A bias in the gates would affect training; balancing without a loss depends on keeping it out.
    """
    E, x_TD = case.dims.num_experts, normal(9, case.dims.dim, dtype=torch.float64)
    router = case.build().double().eval()
    plain = route(router, x_TD)
    for size in (1e-2, 1e-4, 1e-6, 1e-8):
        nudged = route(router, x_TD, bias_E=size * normal(E, seed=3))
        if torch.equal(chosen_TE(nudged), chosen_TE(plain)):
            require_equal(weights_TX(nudged), weights_TX(plain), f"gates under a bias of {size:g}", tolerance=1e-12)
            break
    favourite = int(chosen_TE(plain).sum(0).argmin())
    bias_E = torch.zeros(E)
    bias_E[favourite] = 1e3
    bias_E.requires_grad_()
    biased = route(router, x_TD, bias_E=bias_E)
    for name in ("logits_TE", "scores_TE"):
        require_equal(getattr(biased, name), getattr(plain, name), f"{name} under a bias")
    before, after = (int(r.load_E()[favourite]) for r in (plain, biased))
    require(
        after > before,
        found=f"load of expert {favourite} goes from {before} to {after} of 9 tokens under a bias of 1000",
        expected="more tokens (or the claim takes_bias = False)",
    )
    weights = weights_TX(biased)
    top = float(weights.detach().abs().max())
    require(top < 100, found=f"a gate of {top:.4g} under a bias of 1000", expected="gates from unbiased scores")
    if weights.requires_grad:
        torch.autograd.backward((weights * normal(*weights.shape, seed=5)).sum())
    reached = bias_E.grad is not None and bool(bias_E.grad.any())
    require(not reached, found="a gradient from the gates to the bias", expected="none")


def check_bias_is_ignored(case: Case) -> None:
    """Ignores a selection bias, or raises ``MoekitError``, if it does not claim ``takes_bias``."""
    router, x_TD = case.build().eval(), normal(9, case.dims.dim)
    plain = tensors_in(route(router, x_TD))
    try:
        biased = tensors_in(route(router, x_TD, bias_E=10 * normal(case.dims.num_experts, seed=3)))
    except MoekitError:
        return
    for name, value in plain.items():
        require_equal(biased[name], value, f"{name} under a bias, without the claim takes_bias = True,")


def check_causal(case: Case) -> None:
    """Routes a token independently of later ones, as it claims (``causal``). Decoders require such routers.

    Otherwise the choice of experts leaks information about the tokens that a language model is to predict.
    """
    router, x_TD = case.build(), normal(10, case.dims.dim)
    changed_TD = x_TD.clone()
    changed_TD[6:] = 5 * normal(4, case.dims.dim, seed=8)
    for training in (False, True):
        router.train(training)
        before, after = (_seeded_route(router, x, seed=4) for x in (x_TD, changed_TD))
        require_equal(
            weights_TX(after)[:6],
            weights_TX(before)[:6],
            f"gates of tokens before the changed ones, in {'training' if training else 'eval'} mode",
            tolerance=1e-6,
        )
    cut = _seeded_route(router.eval(), x_TD[:6], seed=4)
    full = _seeded_route(router, x_TD, seed=4)
    require_equal(weights_TX(full)[:6], weights_TX(cut), "gates with later tokens present", tolerance=1e-6)


_SAMPLES = 64


def check_compile_in_training(case: Case) -> None:
    """Compiles in training mode too, into one graph, with eager mode's results for the same seed."""
    router, x_TD = case.build(), normal(7, case.dims.dim)
    valid_T = torch.arange(7) % 3 != 1
    torch.compiler.reset()
    compiled = torch.compile(lambda x: _outputs(router, x, valid_T), backend="aot_eager", fullgraph=True)
    with seeded(3):
        expected = _outputs(router, x_TD, valid_T)
    with warnings.catch_warnings(), seeded(3):
        warnings.simplefilter("ignore")  # the compiler warns about its own code
        found = compiled(x_TD)
    torch.compiler.reset()
    for name, value in expected.items():
        require_equal(found[name], value, f"compiled {name}", tolerance=1e-5)


def check_own_loss(case: Case) -> None:
    """Has, if any, an own loss that is 0-d, fp32 at least, independent of padding's content, and differentiable.

    The gradient must reach a parameter; without one the loss would train nothing.
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
    nan_TD = x_TD.masked_fill(~valid_T[:, None], float("nan"))
    padded = _own_loss(router, nan_TD, valid_T)
    assert padded is not None
    require_equal(padded.value, term.value, "own_loss with NaN in padding", tolerance=1e-6)
    in_bf16 = _own_loss(router.bfloat16(), nan_TD.bfloat16(), valid_T)
    assert in_bf16 is not None
    dtype = in_bf16.value.dtype
    require(dtype == torch.float32, found=f"own_loss.value is {dtype} for bf16 weights", expected="float32")
    require(padded.value.requires_grad, found="own_loss without a gradient", expected="one to a parameter")
    torch.autograd.backward(padded.value)
    for name, parameter in router.float().named_parameters():
        if parameter.grad is not None:
            require_finite(parameter.grad, f"gradient of own_loss to '{name}'")


def check_smooth_load(case: Case) -> None:
    """Estimates the expected load in training, as it claims (``gives_smooth_load``), and not in evaluation.

    ``smooth_load_E`` is fp32 at least, counts only valid tokens, has a gradient (unless every expert is chosen), and
    its mean over many samples of the noise is about the mean load.
    """
    E, router = case.dims.num_experts, case.build()
    valid_T = torch.arange(4 * E) % 4 != 1
    x_TD = normal(4 * E, case.dims.dim).masked_fill(~valid_T[:, None], float("nan"))
    smooth_E, load_E = torch.zeros(E), torch.zeros(E)
    for seed in range(_SAMPLES):
        routing = _seeded_route(router, x_TD, valid_T, seed=seed)
        given = routing.smooth_load_E
        if given is None:
            require(False, found="smooth_load_E = None in training", expected="a tensor (or no such claim)")
            return
        require(
            given.shape == (E,) and given.dtype == torch.float32,
            found=f"smooth_load_E of shape {tuple(given.shape)}, {given.dtype}",
            expected=f"({E},), float32",
        )
        smooth_E, load_E = smooth_E + given.detach() / _SAMPLES, load_E + routing.load_E() / _SAMPLES
        if seed == 0 and not bool(chosen_TE(routing)[valid_T].all()):
            _require_gradient(router, given)
    require_finite(smooth_E, "smooth_load_E with NaN in padding")
    apart_E, mean = (smooth_E - load_E).abs(), load_E.mean().item()
    e = int(apart_E.argmax())
    require(
        apart_E[e].item() <= 0.4 * mean,
        found=f"over {_SAMPLES} samples smooth_load_E of expert {e} is {smooth_E[e]:.4g}, its load {load_E[e]:.4g}",
        expected="about the same",
    )
    in_eval = route(router.eval(), x_TD, valid_T).smooth_load_E
    require(in_eval is None, found="a smooth_load_E in evaluation", expected="None, since there is no noise")


def check_no_smooth_load(case: Case) -> None:
    """Gives no ``smooth_load_E``, even in training, as it claims; balancers that need one rely on the claim."""
    for training in (True, False):
        given = route(case.build().train(training), normal(5, case.dims.dim)).smooth_load_E
        require(given is None, found="a smooth_load_E", expected="None (or the claim gives_smooth_load = True)")


def check_reads_tokens(case: Case) -> None:
    """Routes by token ids, as it claims (``needs_tokens``), and raises ``MoekitError`` without them."""
    router, x_TD = case.build().eval(), normal(NUM_IDS, case.dims.dim)
    try:
        router(x_TD)
    except MoekitError:
        pass
    else:
        require(False, found="a routing without token ids", expected="MoekitError (or the claim needs_tokens = False)")
    one = router(x_TD, token_T=torch.arange(NUM_IDS))
    other = router(x_TD, token_T=torch.zeros(NUM_IDS, dtype=torch.int64))
    differs = not torch.equal(weights_TX(one), weights_TX(other))
    require(differs, found="the same routing for other token ids", expected="one that depends on them")


def check_ignores_tokens(case: Case) -> None:
    """Does not read token ids, as it claims: some models pass none."""
    router, x_TD = case.build().eval(), normal(9, case.dims.dim)
    with_ids, without = (tensors_in(router(x_TD, token_T=ids)) for ids in (torch.arange(9), None))
    for name, value in without.items():
        require_equal(with_ids[name], value, f"{name} with token ids")


def _require_gradient(router: nn.Module, smooth_load_E: Tensor) -> None:
    require(smooth_load_E.requires_grad, found="smooth_load_E without a gradient", expected="one to the weights")
    weight_E = normal(*smooth_load_E.shape, seed=5)
    torch.autograd.backward((smooth_load_E * weight_E).sum())
    grads = {n: p.grad for n, p in router.named_parameters() if p.grad is not None}
    for name, gradient in grads.items():
        require_finite(gradient, f"gradient of smooth_load_E to '{name}'")
    trained = any(bool(gradient.any()) for gradient in grads.values())
    require(trained, found="a gradient of 0 from smooth_load_E to every weight", expected="one that trains")


def _seeded_route(router: nn.Module, x_TD: Tensor, valid_T: Tensor | None = None, *, seed: int = 0) -> Routing:
    with seeded(seed):
        return route(router, x_TD, valid_T)


def _own_loss(router: nn.Module, x_TD: Tensor, valid_T: Tensor) -> LossTerm | None:
    return _seeded_route(router, x_TD, valid_T).own_loss


def _outputs(router: nn.Module, x_TD: Tensor, valid_T: Tensor) -> dict[str, Tensor]:
    return routing_tensors(route(router, x_TD, valid_T))

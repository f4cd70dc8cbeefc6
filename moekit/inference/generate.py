"""Generating text with a trained model, token by token: the continuation of a prompt, or the target of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from moekit.contracts import Generate, Model, ModelOutput, Source, Tokenizer
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.training.module import LitMoE
from moekit.training.run.folder import RUNS, checkpoint_of

DEFAULT_CONTEXT = 1024


def load_run(run: str, root: Path = RUNS) -> LitMoE:
    """The trained module of a run, in evaluation mode on the CPU; the tokenizer of its data is loaded.

    Args:
        run: a run folder, a checkpoint (also a ``.ckpt`` file of Lightning), or a name, for its latest run in ``root``.
        root: folder of all runs.

    Raises:
        CheckpointError: there is no such run, or its checkpoint is damaged or not of moekit.
    """
    return LitMoE.load_from_checkpoint(checkpoint_of(run, root)).eval()


def sample(
    model: Model,
    prompt: Tensor,
    *,
    tokens: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    context: int = DEFAULT_CONTEXT,
    cached: bool | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Continues one prompt, int64 ``[S]``. Options and errors as of ``continuations``."""
    steps = continuations(
        model, prompt[None], tokens=tokens, temperature=temperature, top_p=top_p, context=context, cached=cached,
        generator=generator,
    )  # fmt: skip
    return (int(token_B) for token_B in steps)


@torch.inference_mode()
def continuations(
    model: Model,
    prompts: Tensor,
    *,
    tokens: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    context: int = DEFAULT_CONTEXT,
    cached: bool | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Continues B prompts of one length, one token of each at a time.

    With a cache, each token is read once until the texts are longer than ``context``. Then the window moves with every
    token, and all of it is read again: the cache depends on tokens that are no longer in the window.

    Args:
        model: a language model, in evaluation mode.
        prompts: int64 ``[B, S]``, at least one token each.
        tokens: how many to generate.
        context: the model reads at most this many of the last tokens.
        temperature, top_p, generator, cached: as in ``next_token`` and ``start_decoding``.

    Yields:
        int64 ``[B]``: the next token of each text.

    Raises:
        MoekitError: the prompts are empty.
    """
    if not prompts.shape[1]:
        raise MoekitError("the prompt is empty: give at least one character")
    decode = start_decoding(model, cached=cached)
    texts_BS = new_BS = prompts
    for _ in range(tokens):
        whole = texts_BS.shape[1] <= context
        logits_BV = decode(new_BS, None) if whole else model(texts_BS[:, -context:]).y[:, -1]
        choice_B = next_token(logits_BV.float(), temperature=temperature, top_p=top_p, generator=generator)
        new_BS = choice_B[:, None]
        texts_BS = torch.cat([texts_BS, new_BS], dim=1)
        yield choice_B


@torch.inference_mode()
def targets(
    model: Model,
    source: Source,
    *,
    start: int,
    end: int,
    tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    cached: bool | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Generates the targets of B sources, one token of each at a time, until all have ended.

    The sources are encoded once. A target that has ended is masked as padding, so that it uses no expert's capacity.

    Args:
        model: one that takes pairs, in evaluation mode.
        start, end: the first and the last token of every target.
        tokens: how many to generate at most.
        temperature, top_p, generator, cached: as in ``sample``; the generator is on the model's device.

    Yields:
        int64 ``[B]``: the next token of each target; ``end`` for those that ended before.
    """
    device = next(model.parameters()).device
    source = Source(source.tokens.to(device), None if source.valid is None else source.valid.to(device))
    decode = start_decoding(model, source, cached=cached)
    choice_B = torch.full((len(source.tokens),), start, device=device)
    active_B = torch.ones_like(choice_B, dtype=torch.bool)
    for _ in range(tokens):
        logits_BV = decode(choice_B[:, None], active_B[:, None]).float()
        choice_B = next_token(logits_BV, temperature=temperature, top_p=top_p, generator=generator)
        choice_B = choice_B.where(active_B, end)
        yield choice_B
        active_B = choice_B != end
        if not active_B.any():
            return


def answer(
    model: Model,
    tokenizer: Tokenizer,
    source: Tensor,
    *,
    tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    cached: bool | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """The target of one source, int64 ``[S]``, token by token, without its end token. Options as in ``targets``.

    Raises:
        MoekitError: the tokenizer has no such token.
    """
    end = end_of(tokenizer)
    steps = targets(
        model, Source(source[None]), start=end, end=end, tokens=tokens, temperature=temperature, top_p=top_p,
        cached=cached, generator=generator,
    )  # fmt: skip
    return (int(token_B) for token_B in steps if int(token_B) != end)


def end_of(tokenizer: Tokenizer) -> int:
    """The token that ends a target.

    Raises:
        MoekitError: the tokenizer has none.
    """
    if tokenizer.end is None:
        raise MoekitError(f"{type(tokenizer).__name__} names no token that ends a target: 'end' must return it")
    return tokenizer.end


def greedy(model: Model, tokenizer: Tokenizer | None) -> Generate:
    """What an evaluator generates with: the most likely targets, or the most likely continuation.

    Targets need a tokenizer with an end: without one, the function raises ``MoekitError``.
    """

    def generate(given: Source | Tensor, *, max_tokens: int) -> list[Tensor]:
        if isinstance(given, Tensor):
            prompt = given.to(next(model.parameters()).device)
            return [torch.tensor(list(sample(model, prompt, tokens=max_tokens, temperature=0)), dtype=torch.int64)]
        if tokenizer is None:
            raise MoekitError("the data has no tokenizer, so no target of a source can be generated")
        end = end_of(tokenizer)
        steps = list(targets(model, given, start=end, end=end, tokens=max_tokens))
        if not steps:
            return [torch.empty(0, dtype=torch.int64) for _ in given.tokens]
        rows_BS = torch.stack(steps, dim=1).cpu()
        return [row_S[: int((row_S != end).sum())] for row_S in rows_BS]  # after the first end come only others

    return generate


def next_token(
    logits_X: Tensor, *, temperature: float, top_p: float, generator: torch.Generator | None = None
) -> Tensor:
    """int64 ``[B]``: samples one token per row with temperature and nucleus (Holtzman et al. 2020, section 3.1).

    Args:
        logits_X: ``[V]`` or ``[B, V]``.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: samples from the fewest tokens whose probabilities sum to at least this.
        generator: the only source of randomness.
    """
    logits_BV = logits_X.reshape(-1, logits_X.shape[-1])
    if temperature == 0:
        return logits_BV.argmax(-1)
    probs_BV, order_BV = (logits_BV / temperature).softmax(-1).sort(descending=True)
    # A token is kept if those before it sum to less than top_p; so the most likely one always is.
    probs_BV = probs_BV.where(probs_BV.cumsum(-1) - probs_BV < top_p, 0)
    return order_BV.gather(1, torch.multinomial(probs_BV, 1, generator=generator))[:, 0]


def stream(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Yields text as tokens arrive; the bytes of an incomplete character wait for the rest of it.

    If it never comes, they are dropped: the text ends with a whole character.
    """
    seen: list[int] = []
    length = 0
    for token in ids:
        seen.append(token)
        text = tokenizer.decode(torch.tensor(seen))
        final = len(text.rstrip("\ufffd"))  # as which incomplete characters are decoded
        if final > length:
            yield text[length:final]
            length = final


# ---- decoding: a model gets only the new tokens, whether it has a cache or must read earlier ones again --------------

DecodeStep = Callable[[Tensor, Tensor | None], Tensor]
"""``(tokens_BS, valid_BS) -> logits_BV``: takes new tokens, returns the logits of the token after the last one."""


def may_drop(model: Model) -> bool:
    """Whether the model may drop pairs beyond a capacity, so that the tokens of one call affect each other.

    True for a layer that was built without a spec, since its dispatcher is unknown.
    """
    layers = [module for module in model.modules() if isinstance(module, MoELayer)]
    return any(layer.spec is None or not layer.spec.dispatcher.dropless for layer in layers)


def start_decoding(model: Model, source: Source | None = None, *, cached: bool | None = None) -> DecodeStep:
    """Starts a text, or the targets of a source.

    Args:
        model: in evaluation mode.
        source: of the targets; encoded here, once.
        cached: whether to use the model's cache (``Model.start_cache``); None: only if the output stays the same, which
            it does unless pairs ``may_drop``. A model without a cache reads all tokens again in every step.
    """
    cache = model.start_cache(source) if cached or (cached is None and not may_drop(model)) else None
    if cache is None:
        return _without_cache(model, source)
    return lambda tokens_BS, valid_BS: model.decode(tokens_BS, cache, valid=valid_BS).y[:, -1]


def _without_cache(model: Model, source: Source | None) -> DecodeStep:
    run: Callable[[Tensor, Tensor | None], ModelOutput]
    run = (lambda tokens, valid: model(tokens, valid=valid)) if source is None else model.given(source)
    steps: list[tuple[Tensor, Tensor | None]] = []

    def decode(tokens_BS: Tensor, valid_BS: Tensor | None) -> Tensor:
        steps.append((tokens_BS, valid_BS))
        valid = None
        if any(mask is not None for _, mask in steps):
            valid = torch.cat([torch.ones_like(t, dtype=torch.bool) if m is None else m for t, m in steps], dim=1)
        return run(torch.cat([t for t, _ in steps], dim=1), valid).y[:, -1]

    return decode

"""Sampling from a trained model, token by token: going on from a prompt, or writing the target of a source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from moekit.contracts import Data, Model, Source
from moekit.errors import MoekitError
from moekit.inference.decoding import start_decoding
from moekit.training.module import LitMoE
from moekit.training.run.folder import RUNS, checkpoint_of

DEFAULT_CONTEXT = 1024


def load_run(run: str, root: Path = RUNS) -> LitMoE:
    """The trained module of a run, in evaluation mode on the CPU; its data can encode and decode.

    Args:
        run: a run folder, a checkpoint, or a name, meaning its latest run below ``root``.
        root: folder of all runs.

    Raises:
        CheckpointError: there is no such run, or its checkpoint is damaged or no checkpoint of moekit.
    """
    return LitMoE.load_from_checkpoint(checkpoint_of(run, root)).eval()


@torch.inference_mode()
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
    """Draws tokens one after the other.

    With a cache each token is read once, until the text is longer than ``context``. From then on the window moves with
    every token, and all of it is read again: nothing that was kept is right any more, since it was made from tokens
    that have left the window.

    Args:
        model: a language model, in evaluation mode.
        prompt: int64 ``[S]``, at least one token.
        tokens: how many to draw.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: draws from the fewest tokens whose probabilities add up to at least this.
        context: the model sees at most so many tokens back.
        cached: whether the model keeps what it has read; None: where that changes no answer (``reading_on``).
        generator: all randomness comes from it.

    Raises:
        MoekitError: an empty prompt.
    """
    if not len(prompt):
        raise MoekitError("the prompt is empty: give at least one character")
    read_on = start_decoding(model, cached=cached)
    ids_S = new_S = prompt
    for _ in range(tokens):
        within = len(ids_S) <= context
        logits_BV = read_on(new_S[None], None) if within else model(ids_S[None, -context:]).y[:, -1]
        choice = draw(logits_BV.float(), temperature=temperature, top_p=top_p, generator=generator)
        ids_S, new_S = torch.cat([ids_S, choice]), choice
        yield int(choice)


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
    """Writes the targets of sources, one token of each at a time; ends early when all are ended.

    The sources are read once. A target that has ended is padding to the others' model: it takes no expert's capacity.

    Args:
        model: one that takes pairs, in evaluation mode.
        source: B sequences.
        start: the token that a target starts with.
        end: the token that ends it.
        tokens: how many to draw at most.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: draws from the fewest tokens whose probabilities add up to at least this.
        cached: whether the model keeps what it has read; None: where that changes no answer (``reading_on``).
        generator: all randomness comes from it; it lies on the model's device.

    Yields:
        int64 ``[B]``: the next token of each; ``end`` for those that have ended before.
    """
    device = next(model.parameters()).device
    source = Source(source.tokens.to(device), None if source.valid is None else source.valid.to(device))
    read_on = start_decoding(model, source, cached=cached)
    choice_B = torch.full((len(source.tokens),), start, device=device)
    going_B = torch.ones_like(choice_B, dtype=torch.bool)
    for _ in range(tokens):
        logits_BV = read_on(choice_B[:, None], going_B[:, None]).float()
        choice_B = draw(logits_BV, temperature=temperature, top_p=top_p, generator=generator).where(going_B, end)
        yield choice_B
        going_B = choice_B != end
        if not going_B.any():
            return


def answer(
    model: Model,
    data: Data,
    source: Tensor,
    *,
    tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    cached: bool | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """The target of one source, token by token, until it ends.

    Args:
        model: one that takes pairs, in evaluation mode.
        data: says which token ends a target, and starts it.
        source: int64 ``[S]``.
        tokens, temperature, top_p, cached, generator: as in ``targets``.

    Raises:
        MoekitError: the data names no such token.
    """
    end = data.end_token()
    if end is None:
        raise MoekitError(f"{type(data).__name__} names no token that ends a target: end_token() is to return it")
    written = targets(
        model,
        Source(source[None]),
        start=end,
        end=end,
        tokens=tokens,
        temperature=temperature,
        top_p=top_p,
        cached=cached,
        generator=generator,
    )
    return (token for token in (int(choice_B) for choice_B in written) if token != end)


def translate(model: Model, source: Source, *, start: int, end: int, max_tokens: int) -> list[Tensor]:
    """The targets of sources, the likeliest token each time: int64 on the CPU, without ``start`` and ``end``.

    Args:
        model: one that takes pairs, in evaluation mode.
        source: B sequences.
        start: the token that a target starts with.
        end: the token that ends it.
        max_tokens: where a target is broken off.
    """
    steps = list(targets(model, source, start=start, end=end, tokens=max_tokens))
    if not steps:
        return [torch.empty(0, dtype=torch.int64) for _ in source.tokens]
    written_BS = torch.stack(steps, dim=1).cpu()
    return [row_S[: int((row_S != end).sum())] for row_S in written_BS]  # after its end a row holds nothing else


def draw(logits_X: Tensor, *, temperature: float, top_p: float, generator: torch.Generator | None = None) -> Tensor:
    """int64 ``[B]``: one token for each row, by temperature and nucleus (Holtzman et al. 2020, section 3.1).

    Args:
        logits_X: ``[V]``, or a row for each of B.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: draws from the fewest tokens whose probabilities add up to at least this.
        generator: all randomness comes from it.
    """
    logits_BV = logits_X.reshape(-1, logits_X.shape[-1])
    if temperature == 0:
        return logits_BV.argmax(-1)
    probs_BV, order_BV = (logits_BV / temperature).softmax(-1).sort(descending=True)
    # A token stays while those before it add up to less than top_p, so the likeliest always does.
    probs_BV = probs_BV.where(probs_BV.cumsum(-1) - probs_BV < top_p, 0)
    return order_BV.gather(1, torch.multinomial(probs_BV, 1, generator=generator))[:, 0]


def stream(data: Data, ids: Iterable[int]) -> Iterator[str]:
    """Text as tokens arrive. The bytes of an unfinished character wait until it is whole."""
    seen: list[int] = []
    text, told = "", 0
    for token in ids:
        seen.append(token)
        text = data.decode(torch.tensor(seen))
        # An unfinished character comes out as one U+FFFD at the end; all that stands before it is final.
        final = len(text) - text.endswith("\ufffd")
        if final > told:
            yield text[told:final]
            told = final
    if len(text) > told:
        yield text[told:]

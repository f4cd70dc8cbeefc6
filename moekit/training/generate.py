"""Sampling from a trained language model, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from moekit.contracts import Data, Model
from moekit.errors import CheckpointError, MoekitError
from moekit.training.checkpoint import read_checkpoint
from moekit.training.folder import RUNS, RunFolder
from moekit.training.module import LitMoE

DEFAULT_CONTEXT = 1024


def load_run(run: str, root: Path = RUNS) -> LitMoE:
    """The trained module of a run, in evaluation mode on the CPU; its data can encode and decode.

    Args:
        run: a run folder, a checkpoint file, or a name, meaning its latest run below ``root``.
        root: folder of all runs.

    Raises:
        CheckpointError: there is no such run, or its checkpoint is truncated or no checkpoint of moekit.
    """
    path = Path(run) if Path(run).is_file() else RunFolder.find(run, root).last
    contents = read_checkpoint(path)
    module = LitMoE(contents["hyper_parameters"]["spec"])
    try:
        module.load_state_dict(contents["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the model that its own spec describes\n  {error}") from error
    module.on_load_checkpoint(contents)
    return module.eval()


@torch.inference_mode()
def sample(
    model: Model,
    prompt: Tensor,
    *,
    tokens: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    context: int = DEFAULT_CONTEXT,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Draws tokens one after the other.

    Args:
        model: a language model, in evaluation mode.
        prompt: int64 ``[S]``, at least one token.
        tokens: how many to draw.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: draws from the fewest tokens whose probabilities add up to at least this.
        context: the model sees at most so many tokens back.
        generator: all randomness comes from it.

    Raises:
        MoekitError: an empty prompt.
    """
    if not len(prompt):
        raise MoekitError("the prompt is empty: give at least one character")
    ids_S = prompt
    for _ in range(tokens):
        logits_V = model(ids_S[None, -context:]).y[0, -1].float()
        choice = draw(logits_V, temperature=temperature, top_p=top_p, generator=generator)
        ids_S = torch.cat([ids_S, choice])
        yield int(choice)


def draw(logits_V: Tensor, *, temperature: float, top_p: float, generator: torch.Generator | None = None) -> Tensor:
    """int64 ``[1]``: one token, by temperature and nucleus (Holtzman et al. 2020, section 3.1)."""
    if temperature == 0:
        return logits_V.argmax().reshape(1)
    probs_V, order_V = (logits_V / temperature).softmax(-1).sort(descending=True)
    # A token stays while those before it add up to less than top_p, so the likeliest always does.
    probs_V = probs_V.where(probs_V.cumsum(-1) - probs_V < top_p, 0)
    return order_V[torch.multinomial(probs_V, 1, generator=generator)]


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

"""Tiny random models made by ``transformers`` itself, and what they compute: what imports are compared with."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from moekit.extras import require
from moekit_hf.format import FormatSpec

TOKENS = (2, 24)

CHOICES: Mapping[str, Callable[[Any], Tensor]] = {
    "Llama4Router": lambda output: output[0].nonzero()[:, 1].view(len(output[0]), -1),
    "SwitchTransformersTop1Router": lambda output: output[2].flatten(0, 1).argmax(-1, keepdim=True),
}
"""How to read the experts off what a router returns: from scores that are 0 for others; from logits."""


def transformers() -> Any:
    """The package, silent and without a network.

    Raises:
        MissingPackage: it is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    require("hf", "a comparison with transformers", "transformers")
    package: Any = importlib.import_module("transformers")
    package.logging.set_verbosity_error()
    package.logging.disable_progress_bar()
    return package


def make(family: FormatSpec, config: Mapping[str, Any], seed: int = 0) -> Any:
    """A model of the family with random weights, in which no norm, bias or buffer has a value that hides mistakes."""
    package = transformers()
    described = package.AutoConfig.for_model(
        family.model_type, **{**config, "pad_token_id": None}
    )  # its row would get no gradient
    model = getattr(package, family.auto).from_config(described, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if id(b) in saved)]:
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 2:
                tensor.copy_(noise * 1.5 * tensor.shape[-1] ** -0.5)
            else:
                tensor.add_(0.2 * noise)
    return model


@contextmanager
def saved(model: Any, values: Mapping[str, Tensor] | None = None) -> Iterator[Path]:
    """The folder that ``transformers`` writes, in the layout of the hub; ``values`` replace those of the model."""
    with TemporaryDirectory(prefix="moekit-hf-") as folder:
        path = Path(folder) / "theirs"
        model.save_pretrained(path, **({} if values is None else {"state_dict": values}))
        yield path


def tokens(vocab: int) -> Tensor:
    """Random tokens, int64 ``[2, 24]``."""
    return torch.randint(vocab, TOKENS, generator=torch.Generator().manual_seed(1))


def source_of(ids_BS: Tensor) -> Tensor:
    """What an encoder reads, for a decoder that reads these tokens: the same backwards, without the last two."""
    return ids_BS[:, :-2].flip(1)


def run(model: Any, ids_BS: Tensor) -> Any:
    """What a model of theirs returns for these tokens; an encoder-decoder also reads ``source_of`` them."""
    if model.config.is_encoder_decoder:
        return model(input_ids=source_of(ids_BS), decoder_input_ids=ids_BS)
    return model(ids_BS)


def with_gradients(model: Any, ids_BS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradient of every saved tensor for the mean squared logit; zeros for buffers."""
    logits = run(model, ids_BS).logits
    logits.square().mean().backward()
    every = model.state_dict(keep_vars=True)
    return logits.detach(), {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in every.items()}


def chosen_experts(model: Any, ids_BS: Tensor) -> list[Tensor]:
    """The experts of every token, sorted, of each mixture in order: what the routers return as int64 ``[T, K]``.

    Others return something else, see ``CHOICES``.
    """
    found: list[Tensor] = []

    def watch(module: Any, inputs: Any, output: Any) -> None:
        if (choice := CHOICES.get(type(module).__name__)) is not None:
            found.append(choice(output))
            return
        for each in output if isinstance(output, tuple) else (output,):
            if isinstance(each, Tensor) and each.dtype == torch.int64 and each.ndim == 2:
                found.append(each.sort(-1).values)

    hooks = [module.register_forward_hook(watch) for module in model.modules()]
    try:
        with torch.no_grad():
            run(model, ids_BS)
    finally:
        for hook in hooks:
            hook.remove()
    return found

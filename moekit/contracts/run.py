"""The three contracts that make a run: model, objective, data; and the values that pass between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moekit.cache import Cache
from moekit.contracts.layer import LayerReport
from moekit.errors import MoekitError


class Source(NamedTuple):
    """What a target is made from: the sequence that an encoder reads.

    Attributes:
        tokens: ``[B, S]`` int64; its S is its own.
        valid: bool ``[B, S]``, False for padding, which comes last; None when all count.
    """

    tokens: Tensor
    valid: Tensor | None = None


class Batch(NamedTuple):
    """What data yields and an objective reads. A named tuple, so Lightning moves it between devices.

    Attributes:
        inputs: ``tokens_BS`` int64, or ``x_TD`` float cases.
        targets: ``tokens_BS`` int64 (the next tokens), or ``d_TO`` float.
        valid: bool, shape of the tokens or cases; None when all count.
        num_bytes: 0-d, bytes of text that the valid targets spell; None where there is no text.
        domain: int64 ``[B]``, which kind of text a sequence is; None where unknown.
        source: what the targets are made from (``DataSpec.yields = "pairs"``); None where inputs alone do.
    """

    inputs: Tensor
    targets: Tensor
    valid: Tensor | None = None
    num_bytes: Tensor | None = None
    domain: Tensor | None = None
    source: Source | None = None


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """What a model returns.

    Attributes:
        y: ``logits_BSV`` of the next token, or ``y_TO``.
        reports: each MoE layer's report, by the layer's module name inside the model.
        future: logits of later tokens (multi-token prediction): entry k - 1 has shape ``[B, S - k, V]`` and
            predicts, at position i, the token k places past the next; empty outside training.
        of_source: names of those reports whose layers read the source, not the target. Their losses are means over the
            source's tokens, and are weighted by the target's all the same.
    """

    y: Tensor
    reports: Mapping[str, LayerReport] = field(default_factory=dict)
    future: tuple[Tensor, ...] = ()
    of_source: frozenset[str] = frozenset()


class Model(nn.Module, ABC):
    """Built as ``Target(spec)``."""

    @abstractmethod
    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        """Runs on a batch's inputs; ``valid`` is False for padding."""

    def on(self, batch: Batch) -> ModelOutput:
        """Runs on a batch. To be overridden by models that read more of it than inputs and ``valid``."""
        output: ModelOutput = self(batch.inputs, valid=batch.valid)
        return output

    def given(self, source: Source) -> Callable[[Tensor, Tensor | None], ModelOutput]:
        """``(inputs, valid) -> output`` for targets of one source. To be overridden where the source is read once."""
        return lambda inputs, valid: self.on(Batch(inputs, inputs, valid, source=source))

    def start_cache(self, source: Source | None = None) -> Cache | None:
        """What ``decode`` is to be called with: nothing read yet but the source, if there is one.

        None where there is no ``decode``, as here; whoever generates then has all tokens read again for each new one.
        """
        return None

    def decode(self, inputs: Tensor, cache: Cache, *, valid: Tensor | None = None) -> ModelOutput:
        """Reads the tokens that follow those in the cache, and adds them to it.

        Answers as ``forward`` does on all of them at once, to rounding, where each token is computed on its own. A
        dispatcher that drops pairs beyond a capacity sees only what is read together, and may drop others.

        Args:
            inputs: ``tokens_BS`` int64, S new positions of B sequences, the same in every call.
            cache: from ``start_cache``.
            valid: bool ``[B, S]``, False for padding, behind which a sequence has no more tokens.

        Returns:
            ``y`` and the reports of these positions.

        Raises:
            MoekitError: this model keeps nothing.
        """
        raise MoekitError(f"{type(self).__name__} has no cache to decode with: start_cache() returns None")

    def embeddings(self) -> tuple[nn.Parameter | None, nn.Parameter | None]:
        """The input embedding and the output head (the same one twice when tied), for counting parameters."""
        return None, None

    def stack(self) -> Sequence[nn.Module]:
        """The parts that repeat, each called as a module, in order: what is sharded and compiled one by one.

        What belongs to none of them is sharded as a whole. To be overridden by models of blocks.
        """
        return ()

    def extra_parts(self) -> Mapping[str, nn.Module]:
        """Parts used in training alone (multi-token prediction), which published counts leave out."""
        return {}


@dataclass(frozen=True, kw_only=True)
class LossSum:
    """A loss as a sum, so that accumulation and sharding weigh every token alike.

    Attributes:
        total: 0-d, differentiable: the sum over what counts.
        count: 0-d: the number of tokens or cases summed over.
        metrics: 0-d sums to be logged, each with the denominator it is divided by.
    """

    total: Tensor
    count: Tensor
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """What a model is trained for. Built as ``Target(spec)``."""

    @abstractmethod
    def forward(self, output: ModelOutput, batch: Batch, *, progress: float = 0.0) -> LossSum:
        """The loss of one batch, without the balancers' terms (they are in ``output.reports``).

        Args:
            output: what the model made of the batch.
            batch: targets, and which of them count.
            progress: the share of the training run that lies behind, 0 to 1; for weights that change on the way.
        """


class Data(ABC):
    """What a model is trained on. Built as ``Target(spec)``; nothing is read before ``prepare``."""

    @abstractmethod
    def prepare(self) -> None:
        """Reads and checks what it needs; called once, before the first loader.

        Raises:
            DataError: a file is missing, unreadable or empty; the message names it.
        """

    @abstractmethod
    def train_batch(self, generator: torch.Generator) -> Batch:
        """Draws one batch; all randomness comes from ``generator``, so that it can be drawn again."""

    @abstractmethod
    def validation_batches(self) -> Iterator[Batch]:
        """The validation set, always in the same order."""

    def describe(self) -> Mapping[str, str]:
        """What a person wants to know of it at the start of a run: sizes, files, what was left out."""
        return {}

    def domain_names(self) -> Sequence[str]:
        """What the numbers in ``Batch.domain`` stand for, in order; empty where nothing is labelled."""
        return ()

    def encode(self, text: str) -> Tensor:
        """Text as tokens, int64 ``[S]``; needs ``prepare`` or ``load_state`` where the vocabulary is learnt.

        Raises:
            MoekitError: this data is not text.
        """
        raise MoekitError(f"{type(self).__name__} holds no text: it cannot turn a prompt into tokens")

    def example(self) -> str:
        """A text that ``encode`` takes, to be shown to a person who asks what to try."""
        return "The "

    def decode(self, ids: Tensor) -> str:
        """Tokens, int64 ``[S]``, as text; what is not UTF-8 comes out as U+FFFD.

        Raises:
            MoekitError: this data is not text.
        """
        raise MoekitError(f"{type(self).__name__} holds no text: it cannot turn tokens into words")

    def end_token(self) -> int | None:
        """The token that ends a target made from a source; what a decoder is given first, too. None where none does."""
        return None

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep for ``encode`` and ``decode`` to work without the data: plain values only."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what ``state`` gave; before ``prepare`` or instead of it."""
        return None

    def scores(self, model: Model) -> Mapping[str, float]:
        """Figures of the trained model that are no mean over tokens (BLEU), measured once, at the end of a run."""
        return {}

    def picture(self, model: Model, folder: Path) -> list[Path]:
        """Draws what the trained model does with this data, where there is something to see."""
        return []

"""Text of a data set of Hugging Face's, read in order."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import final

import torch
from torch import Tensor

import moekit
from moekit.contracts import Batch, Data, Place, Tokenizer
from moekit.errors import DataError, MoekitError
from moekit.registry import build
from moekit.seeds import seed_of
from moekit_data.corpus import hash_of
from moekit_data.hf_dataset import HfDataset
from moekit_data.hf_dataset.lanes import FORMAT, Bookmarks, Lane
from moekit_data.hf_dataset.opening import State, documents, library, local_files, open_split, sample_of, shared_part
from moekit_data.text_files.store import cannot_write, folder, key
from moekit_data.windows import end_of, window_batch


@final
class HfDatasetData(Data):
    """A stream of documents, divided into as many lanes as a step has micro-batches.

    A micro-batch takes its windows from its own lane, so that each document is read by one rank, and every token is
    seen once before the stream starts again. A lane is read in blocks, whose windows are shuffled. The batch of a step
    is a function of the data set and of the place of the batch: any number of ranks, and a resumed run, see the same.

    *Shapes*: ``inputs`` and ``targets`` are ``tokens_BS`` int64, targets one token ahead; ``num_bytes`` the bytes of
    text that the targets spell.
    """

    def __init__(self, spec: HfDataset) -> None:
        self.spec = spec
        self.tokenizer: Tokenizer = build(spec.tokenizer)
        self._validation_S: Tensor | None = None
        self._lanes: dict[tuple[int, int], Lane] = {}
        self._block = -(-spec.shuffle_windows // spec.batch) * spec.batch  # windows
        self._ramp: tuple[tuple[float, ...], list[int]] = ((), [0])
        self._fingerprint = ""

    def prepare(self) -> None:
        """Opens the data set, learns the tokens (unless a checkpoint had them), and reads the validation set.

        Raises:
            DataError: ``datasets`` is not installed, there is no such data set, too little text in it, or rows of it
                would both train and validate.
        """
        if self._validation_S is not None:
            return
        if part := shared_part(self.spec):
            raise DataError(
                f"rows of '{part}' would train and validate: split '{self.spec.split}', validation_split "
                f"'{self.spec.validation_split}'\n  expected parts that share no row (option data.validation_split)"
            )
        if not self.tokenizer.spelling:
            self.tokenizer.train(self._to_learn_from())
        self._validation_S = self._read_validation()
        self._fingerprint = self._checksum()

    def train_batch(self, generator: torch.Generator) -> Batch:
        """Windows from the start of the stream, chosen at random; in a run, batches have a place."""
        return self.partial_batch(generator, 1.0)

    def partial_batch(self, generator: torch.Generator, share: float) -> Batch:
        """That share of ``batch`` windows, rounded, but at least one."""
        block = self._lane(1, 0).block(0)
        rows = torch.randint(self._block, (self._count(share),), generator=generator)
        return self._as_batch(self._windows(block, rows))

    def batch_at(self, place: Place, generator: torch.Generator, share: float = 1.0) -> Batch:
        """The next windows of the micro-batch's lane, in the shuffled order of their block.

        Raises:
            DataError: the lane has no documents, or one is not text.
        """
        lane, found = self._lane(place.micros, place.micro), []
        at = self._windows_before(place)
        end = at + self._count(share)
        while at < end:  # a batch that is not whole may end in the next block
            number, first = divmod(at, self._block)
            rows = self._order(number, place.micro)[first : first + end - at]
            found.append(self._windows(lane.block(number), rows))
            at += len(rows)
        return self._as_batch(torch.cat(found))

    def validation_batches(self) -> Iterator[Batch]:
        """The first windows of the documents that validate."""
        tokens = self._ready()
        rows = torch.arange((len(tokens) - 1) // self.spec.seq)
        return (self._as_batch(self._windows(tokens, some)) for some in torch.split(rows, self.spec.batch))

    def describe(self) -> Mapping[str, str]:
        """What is read, how it is validated, and the tokens."""
        spec, count = self.spec, (len(self._ready()) - 1) // self.spec.seq
        held = f"split {spec.validation_split}" if spec.validation_split else f"{spec.validation:.0%} of its documents"
        return {
            "text": f"{spec.path}, split {spec.split}, {'streamed' if spec.streaming else 'read from a copy'}",
            "validation": f"{count:,} windows of {held}",
            "tokens": self.tokenizer.describe(),
        }

    def fingerprint(self) -> str:
        """A checksum of the start of the stream, the validation set, and names, sizes and samples of local files."""
        return self._fingerprint

    def load_state(self, state: Mapping[str, object]) -> None:
        """Restores the tokens; after ``prepare`` it reads the text again.

        Raises:
            DataError: the state is of another kind of token, or damaged.
        """
        if dict(state) == self.state():
            return
        super().load_state(state)
        if self._validation_S is not None:
            self._validation_S, self._lanes = None, {}
            self.prepare()

    def _count(self, share: float) -> int:
        return max(round(share * self.spec.batch), 1)

    def _windows_before(self, place: Place) -> int:
        """Windows of the micro-batch's lane in all earlier steps."""
        if self._ramp[0] != place.ramp:
            self._ramp = place.ramp, list(accumulate(map(self._count, place.ramp), initial=0))
        short = min(place.step, len(place.ramp))
        return self._ramp[1][short] + (place.step - short) * self.spec.batch

    def _order(self, number: int, micro: int) -> Tensor:
        """The order of a block's windows."""
        if self.spec.shuffle_windows == 1:
            return torch.arange(self._block)
        return torch.randperm(self._block, generator=torch.Generator().manual_seed(seed_of(0, "block", number, micro)))

    def _windows(self, tokens: Tensor, rows: Tensor) -> Tensor:
        return tokens[rows[:, None] * self.spec.seq + torch.arange(self.spec.seq + 1)].long()

    def _as_batch(self, windows: Tensor) -> Batch:
        end = end_of(self.tokenizer) if self.spec.marks_documents() else None
        return window_batch(windows, self.tokenizer.num_bytes_V(), end)

    def _ready(self) -> Tensor:
        if self._validation_S is None:
            raise MoekitError(f"{type(self).__name__} has read nothing yet: call prepare() first")
        return self._validation_S

    def _lane(self, lanes: int, lane: int) -> Lane:
        self._ready()
        if (lanes, lane) not in self._lanes:
            about = FORMAT, self._fingerprint, repr(self.spec), self.tokenizer.state(), library().__version__
            times = [each.stat().st_mtime_ns for each in local_files(self.spec)]  # bookmarks of other text are wrong
            name = key(*about, times, lanes, lane)
            root = folder(self.spec.cache)
            try:
                bookmarks = Bookmarks(root / "streams" / f"{name}.jsonl")
            except OSError as error:
                raise cannot_write(root, error) from error

            def reader(state: State | None) -> Iterator[tuple[State, Tensor]]:
                stream = open_split(self.spec, self.spec.split, lanes, lane)
                for begins, text in documents(self.spec, self.spec.split, stream, state):
                    if not self._validates(text):
                        yield begins, self.tokenizer.stream([text]).to(torch.int32)

            self._lanes[lanes, lane] = Lane(reader, self._block * self.spec.seq, bookmarks)
        return self._lanes[lanes, lane]

    def _validates(self, text: bytes) -> bool:
        return self.spec.validation_split is None and hash_of(text) < self.spec.validation

    def _to_learn_from(self) -> Iterator[bytes]:
        left = round(self.spec.learn_megabytes * 1e6)
        for _, text in documents(self.spec, self.spec.split, open_split(self.spec, self.spec.split)):
            if not self._validates(text):
                left -= len(text)
                yield text
            if left <= 0:
                return

    def _read_validation(self) -> Tensor:
        split = self.spec.validation_split or self.spec.split
        need, found = self.spec.validation_windows * self.spec.seq + 1, [torch.zeros(0, dtype=torch.int32)]
        for _, text in documents(self.spec, split, open_split(self.spec, split)):
            if self.spec.validation_split is not None or self._validates(text):
                found.append(self.tokenizer.stream([text]).to(torch.int32))
                if sum(map(len, found)) >= need:
                    break
        tokens = torch.cat(found)[:need]
        if len(tokens) <= self.spec.seq:
            raise DataError(
                f"{self.spec.path}, split '{split}': {len(tokens)} tokens to validate with, "
                f"a window needs {self.spec.seq + 1}\n  give more text, or a smaller data.seq"
            )
        return tokens

    def _named(self) -> list[str | None]:
        """What names the data set."""
        spec = self.spec
        return [os.path.basename(spec.path), spec.name, spec.revision, spec.split, spec.validation_split]

    def _checksum(self) -> str:
        files = [[each.name, each.stat().st_size, sample_of(each)] for each in local_files(self.spec)]
        text = json.dumps([self._named(), files, super().fingerprint(), moekit.__version__.partition(".")[0]])
        return hashlib.sha256(text.encode()).hexdigest()

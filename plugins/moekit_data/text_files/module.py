"""Text by domain from a user's own files."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import final

import moekit
from moekit.errors import DataError
from moekit_data.corpus import skipped_duplicates
from moekit_data.text import TextData, TokenDomain, Tokenised
from moekit_data.text_files import TextFiles, store
from moekit_data.text_files.faults import Reading
from moekit_data.text_files.files import Segment, find, segments
from moekit_data.text_files.jobs import BOTH, SKIP, TRAIN, VALIDATION, ListTexts, TokeniseTexts, cut
from moekit_data.text_files.progress import Bar
from moekit_data.text_files.reading import read
from moekit_data.text_files.splitting import Plan, split
from moekit_data.text_files.workers import Workers

SMALL = 32_000_000
"""Bytes up to which one process reads a corpus: others would take longer to start."""


@final
class TextFilesData(TextData):
    """A user's own text of any size, tokenised once into a cache that is mapped into memory.

    A text is a record, a text file, or a passage of about 64 KiB of a long one. A hash of the text decides whether it
    trains or validates: it stays in its split when files are added, moved or renamed, and so do its copies, of which
    the first counts. With a ``validation_path``, all of ``path`` trains, except copies of validation text. Without it,
    a domain of a single text gives the end of it to validation.
    """

    def __init__(self, spec: TextFiles) -> None:
        super().__init__(spec)
        self.spec: TextFiles = spec
        self._how = Reading(spec.encoding, spec.text_key, spec.domain_key)

    def tokenised(self) -> Tokenised:
        """Every domain of ``path``, in order of name, from the cache if it is there.

        Raises:
            DataError: a file is missing, unreadable, binary or malformed; all is empty; ``validation_path`` has a
                domain that ``path`` lacks; the cache cannot be written to.
        """
        root = store.folder(self.spec.cache)
        held_out = self._segments(self.spec.validation_path) if self.spec.validation_path else []
        given = self._segments(self.spec.path)
        stamp = self._stamp([*held_out, *given])
        if (known := self._known(root, stamp)) is not None:
            return known
        with store.alone(root, stamp):
            if (known := self._known(root, stamp)) is not None:
                return known
            with self._workers([*held_out, *given]) as workers:
                plan = self._plan(held_out, given, workers)
                self._learn(root, plan)
                place = self._place(root, plan.fingerprint)
                with store.alone(root, place.name):  # files elsewhere may hold the same text
                    if (known := self._opened(place)) is None:
                        try:
                            self._write(place, plan, workers)
                        except OSError as error:
                            raise store.cannot_write(root, error) from error
                        known = self._opened(place)
            store.remember(root, stamp, plan.fingerprint)
        if known is None:
            raise DataError(f"the tokenised text in {root} cannot be read back\n  expected a folder: option data.cache")
        return known

    def _segments(self, name: str) -> list[Segment]:
        path, codec = Path(name).expanduser(), codecs.lookup(self.spec.encoding).name
        try:
            found = find(path, self.spec.suffixes)
            return [each for file, domain in found for each in segments(file, domain, codec)]
        except OSError as error:
            where = error.filename or path
            raise DataError(
                f"cannot read {where}: {error.strerror or error}\n  expected a readable text file"
            ) from error

    def _stamp(self, parts: list[Segment]) -> str:
        """A checksum of what decides the texts and their splits, without reading the files."""
        files = []
        for each in parts:
            if each.start == 0:
                about = os.stat(each.path)
                files.append([str(each.path.resolve()), each.domain, about.st_size, about.st_mtime_ns])
        spec = self.spec
        share = spec.validation if spec.validation_path is None else spec.validation_path
        return store.key(files, share, spec.encoding, spec.text_key, spec.domain_key)

    def _known(self, root: Path, stamp: str) -> Tokenised | None:
        """The corpus of files that have not changed; None if it is not in the cache."""
        fingerprint = store.remembered(root, stamp)
        if not isinstance(fingerprint, str):
            return None
        if not self.tokenizer.spelling and (state := store.remembered(root, self._learnt(fingerprint))):
            self.tokenizer.load_state(state)
        return self._opened(self._place(root, fingerprint)) if self.tokenizer.spelling else None

    def _opened(self, place: Path) -> Tokenised | None:
        """The corpus from the cache; None if it is not there."""
        found = store.opened(place)
        if found is None:
            return None
        domains = [
            TokenDomain(
                kept.name, train, held, kept.num_bytes, kept.num_texts, skipped_duplicates(kept.duplicates)
            )
            for kept, train, held in found.domains
        ]  # fmt: skip
        return Tokenised(domains, found.notes, found.fingerprint)

    def _learn(self, root: Path, plan: Plan) -> None:
        """Learns the tokens, unless they are known."""
        if not self.tokenizer.spelling:
            self.tokenizer.train(self._to_learn_from(plan))
            store.remember(root, self._learnt(plan.fingerprint), self.tokenizer.state())

    def _learnt(self, fingerprint: str) -> str:
        """The name of what the tokenizer learns from this text, and from the files that its options name."""
        spec = self.spec.tokenizer
        named = [each for each in vars(spec).values() if isinstance(each, str) and os.path.isfile(each)]
        files = [[os.path.abspath(each), os.path.getsize(each), os.stat(each).st_mtime_ns] for each in named]
        return store.key(fingerprint, repr(spec), files, self.spec.learn_megabytes, moekit.__version__)

    def _place(self, root: Path, fingerprint: str) -> Path:
        """The folder of this text in these tokens."""
        kind, state = type(self.tokenizer), self.tokenizer.state()
        library = sys.modules.get("tokenizers")
        versions = [moekit.__version__, getattr(library, "__version__", "") if state else ""]
        return root / store.key(fingerprint, f"{kind.__module__}.{kind.__qualname__}", repr(self.spec.tokenizer),
                                state, versions)  # fmt: skip

    def _plan(self, held_out: list[Segment], given: list[Segment], workers: Workers) -> Plan:
        parts = [*held_out, *given]
        with self._bar("reading", parts) as bar:
            listed = []
            for segment, found in zip(parts, workers.run(ListTexts(each, self._how) for each in parts), strict=True):
                listed.append(found)
                bar.add(segment.size)
        names = self.spec.path, self.spec.validation_path
        return split(parts, listed, len(held_out), self.spec.validation, names)

    def _to_learn_from(self, plan: Plan) -> Iterator[bytes]:
        """Training text, of segments at equal distances if there is more of it than ``learn_megabytes``."""
        limit = round(self.spec.learn_megabytes * 1e6)
        trains_N = (plan.fate_N == TRAIN) | (plan.fate_N == BOTH)
        edges = list(zip(plan.first, plan.first[1:], strict=False))
        useful = [i for i, (a, b) in enumerate(edges) if trains_N[a:b].any()]
        every = max(1, -(-int(plan.size_N[trains_N].sum()) // limit))
        for i in useful[::every]:
            first = plan.first[i]
            for number, (_, text) in enumerate(read(plan.segments[i], self._how)):
                if trains_N[first + number]:
                    part = cut(text, plan.share)[0] if plan.fate_N[first + number] == BOTH else text
                    limit -= len(part)
                    yield part
                    if limit <= 0:
                        return

    def _write(self, place: Path, plan: Plan, workers: Workers) -> None:
        vocab = max(len(self.tokenizer.spelling), self.spec.tokenizer.vocab)
        dtype = "<u1" if vocab <= 1 << 8 else "<u2" if vocab <= 1 << 16 else "<i4"
        writer = store.Writer(place, plan.domains, dtype)
        useful = [
            i for i in range(len(plan.segments)) if (plan.fate_N[plan.first[i] : plan.first[i + 1]] != SKIP).any()
        ]
        jobs = (
            TokeniseTexts(
                plan.segments[i], self._how, plan.fate_N[plan.first[i] : plan.first[i + 1]],
                plan.ends_N[plan.first[i] : plan.first[i + 1]], plan.share, dtype, writer.part(i),
            )
            for i in useful
        )  # fmt: skip
        try:
            workers.use(self.tokenizer)
            with self._bar("tokenising", [plan.segments[i] for i in useful]) as bar:
                for i, runs in zip(useful, workers.run(jobs), strict=True):
                    writer.add(writer.part(i), runs)
                    bar.add(plan.segments[i].size)
            about = {
                name: (
                    (plan.bytes_of(d, TRAIN), plan.bytes_of(d, VALIDATION)),
                    (plan.texts_of(d, TRAIN), plan.texts_of(d, VALIDATION)),
                    plan.duplicates[d],
                )
                for d, name in enumerate(plan.domains)
            }
            writer.publish(plan.fingerprint, about, plan.notes)
        finally:
            writer.discard()

    def _workers(self, parts: list[Segment]) -> Workers:
        most = self.spec.processes or min(os.cpu_count() or 1, 16)
        return Workers(min(most, len(parts)) if sum(each.size for each in parts) > SMALL else 1)

    def _bar(self, what: str, parts: list[Segment]) -> Bar:
        size = sum(each.size for each in parts)
        return Bar(f"{what} {self.spec.path}", size, shown=size > SMALL)

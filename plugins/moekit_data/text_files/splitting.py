"""Which texts are skipped, train or validate: a function of the texts alone, not of their files' names or order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moekit.errors import DataError
from moekit_data.corpus import count
from moekit_data.text_files.files import Segment
from moekit_data.text_files.jobs import BOTH, SKIP, TRAIN, VALIDATION, Listed


@dataclass(frozen=True)
class Plan:
    """What happens to every text.

    Attributes:
        domains: the names, in order.
        segments: those of the validation files first, if there are any.
        domain_N: the number of each text's domain.
        size_N: bytes.
        fate_N: ``SKIP``, ``TRAIN``, ``VALIDATION`` or ``BOTH``.
        ends_N: whether a document ends with this text.
        first: the number of each segment's first text; one more entry than segments.
        duplicates: per domain, how many exact copies are skipped.
        share: of a text of ``BOTH`` that validates.
        fingerprint: a checksum of the texts and their splits.
        notes: what was skipped.
    """

    domains: list[str]
    segments: list[Segment]
    domain_N: NDArray[Any]
    size_N: NDArray[Any]
    fate_N: NDArray[np.int8]
    ends_N: NDArray[np.bool_]
    first: list[int]
    duplicates: list[int]
    share: float
    fingerprint: str
    notes: dict[str, str]

    def bytes_of(self, domain: int, split: int) -> int:
        """Bytes of a domain in ``TRAIN`` or ``VALIDATION``."""
        mine = self.domain_N == domain
        whole = int(self.size_N[mine & (self.fate_N == split)].sum())
        halved = int(self.size_N[mine & (self.fate_N == BOTH)].sum())
        held = halved - round(halved * (1 - self.share))
        return whole + (held if split == VALIDATION else halved - held)

    def texts_of(self, domain: int, split: int) -> int:
        """Texts of a domain in a split."""
        return int(((self.domain_N == domain) & ((self.fate_N == split) | (self.fate_N == BOTH))).sum())


def split(
    segments: Sequence[Segment], listed: Sequence[Listed], held_out: int, share: float, names: tuple[str, str | None]
) -> Plan:
    """The plan.

    Args:
        segments: those of validation files first.
        listed: the texts of each.
        held_out: how many segments are of validation files; 0 if a share validates.
        share: of the text that validates, if there are no such files.
        names: of the training and of the validation files, for messages.

    Raises:
        DataError: no text at all, or none but copies of validation text; a domain that only validates.
    """
    domains = sorted({name for part in listed for name in part.domains})
    number = {name: i for i, name in enumerate(domains)}
    rows = np.concatenate([part.rows for part in listed])
    maps = [np.array([number[name] for name in part.domains], dtype=np.int64) for part in listed]
    domain_N = np.concatenate([each[part.rows["domain"]] for each, part in zip(maps, listed, strict=True)])
    first = np.cumsum([0, *(len(part.rows) for part in listed)]).tolist()
    is_held_N = np.arange(len(rows)) < first[held_out]
    is_text_N = rows["size"] > 0
    for name, some in zip(names, (is_text_N & ~is_held_N, is_text_N & is_held_N), strict=True):
        if name is not None and not some.any():
            raise DataError(f"no text in {name}: all of it is empty\n  expected UTF-8 text")
    kept_N = _first_of_each(rows["digest"]) & is_text_N
    if not (kept_N & ~is_held_N).any():
        raise DataError(f"all text of {names[0]} is also in {names[1]}")
    _check_domains(domains, domain_N[kept_N & is_held_N], domain_N[kept_N & ~is_held_N], names)
    fraction_N = rows["digest"][:, 0] / 2.0**64
    validates_N = is_held_N if held_out else fraction_N < share
    fate_N = np.where(kept_N, np.where(validates_N, VALIDATION, TRAIN), SKIP).astype(np.int8)
    if not held_out:
        for domain in range(len(domains)):
            _both_splits(np.flatnonzero(kept_N & (domain_N == domain)), fate_N, fraction_N)
    copies = np.bincount(domain_N[is_text_N & ~kept_N], minlength=len(domains)).tolist()
    digest = hashlib.sha256()
    for part in (*domains, rows["digest"][kept_N], domain_N[kept_N], fate_N[kept_N]):
        raw = part.encode() if isinstance(part, str) else np.ascontiguousarray(part).astype("<u8").tobytes()
        digest.update(len(raw).to_bytes(8) + raw)
    return Plan(
        domains=domains, segments=list(segments), domain_N=domain_N, size_N=rows["size"], fate_N=fate_N,
        ends_N=_ends(segments, first, fate_N), first=first, duplicates=copies, share=share,
        fingerprint=digest.hexdigest(), notes=_blank(segments, first, is_text_N),
    )  # fmt: skip


def _first_of_each(digest_NX: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each text is the first of its copies."""
    order = np.lexsort((digest_NX[:, 1], digest_NX[:, 0]))  # stable
    sorted_NX = digest_NX[order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (sorted_NX[1:] != sorted_NX[:-1]).any(axis=1)
    out = np.empty(len(order), dtype=bool)
    out[order] = is_new
    return out


def _blank(segments: Sequence[Segment], first: Sequence[int], is_text_N: NDArray[np.bool_]) -> dict[str, str]:
    """What is said of blank texts, and of files that have nothing else."""
    useful = {s.path: False for s in segments}
    for segment, a, b in zip(segments, first, first[1:], strict=False):
        useful[segment.path] |= bool(is_text_N[a:b].any())
    notes = [f"{count(blank, 'blank text')} skipped"] if (blank := int((~is_text_N).sum())) else []
    if empty := [path for path, has_text in useful.items() if not has_text]:
        notes.append(f"{count(len(empty), 'file')} without text, such as {empty[0]}")
    return {"skipped": "; ".join(notes)} if notes else {}


def _both_splits(texts: NDArray[Any], fate_N: NDArray[np.int8], fraction_N: NDArray[Any]) -> None:
    """Gives a domain without validation, or without training, one text of it; the end of a single text."""
    fates = set(fate_N[texts].tolist())
    if len(texts) == 1:
        fate_N[texts] = BOTH
    elif fates == {TRAIN}:
        fate_N[texts[fraction_N[texts].argmin()]] = VALIDATION
    elif fates == {VALIDATION}:
        fate_N[texts[fraction_N[texts].argmax()]] = TRAIN


def _ends(segments: Sequence[Segment], first: Sequence[int], fate_N: NDArray[np.int8]) -> NDArray[np.bool_]:
    """A document ends with a record; with the last passage of a file, and where the next one is in another split."""
    ends_N = np.ones(len(fate_N), dtype=bool)
    for i, segment in enumerate(segments):
        if segment.form == "text":
            last = first[i + 1]
            continues = i + 1 < len(segments) and segments[i + 1].path == segment.path and segments[i + 1].start > 0
            stop = last if continues and last < len(fate_N) else last - 1
            inside = np.arange(first[i], max(stop, first[i]))
            if len(inside):
                ends_N[inside] = fate_N[inside] != fate_N[inside + 1]
    return ends_N


def _check_domains(domains: list[str], held: NDArray[Any], given: NDArray[Any], names: tuple[str, str | None]) -> None:
    if unknown := sorted({domains[i] for i in np.unique(held)} - {domains[i] for i in np.unique(given)}):
        raise DataError(
            f"{names[1]} has text of {', '.join(unknown)}, but {names[0]} has none\n"
            f"  expected its domains: {', '.join(sorted({domains[i] for i in np.unique(given)}))} "
            "(subfolders, or 'domain' of a record)"
        )

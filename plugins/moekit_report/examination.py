"""What a trained model does with some text: loads by sequence, the first choice of every token, typical tokens."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from moekit.contracts import Batch, Data, Model, Tokenizer
from moekit.errors import DataError, MoekitError
from moekit.files import read_regular
from moekit_report.routing.sums import Sent, load_by, sent_of

LARGEST = 1 << 26  # bytes of a text file that are read


@dataclass(kw_only=True)
class Examination:
    """Of N sequences of S tokens.

    Attributes:
        domains: names of the domains.
        domain_N: the domain of each sequence.
        tokens_NS: the tokens.
        load_NE: of each layer, the load of each expert in each sequence.
        first_NS: of each layer that reads these tokens, the expert with the highest gate; -1 for none.
    """

    domains: Sequence[str]
    domain_N: np.ndarray
    tokens_NS: np.ndarray
    load_NE: dict[str, np.ndarray]
    first_NS: dict[str, np.ndarray]


@dataclass
class _Seen:
    domain: list[np.ndarray] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    loads: dict[str, list[np.ndarray]] = field(default_factory=dict)
    first: dict[str, list[np.ndarray]] = field(default_factory=dict)


@torch.no_grad()
def examine(model: Model, batches: Iterable[Batch], domains: Sequence[str], *, sequences: int = 256) -> Examination:
    """Runs a model over batches of text.

    Args:
        model: in evaluation mode.
        batches: of tokens, all of one length.
        domains: names of the domains that ``Batch.domain`` indexes; empty for one unnamed domain.
        sequences: how many to read at least, or all that there are.

    Raises:
        MoekitError: there is no batch of tokens, or no layer with sparse routing.
    """
    seen, count = _Seen(), 0
    for batch in batches:
        if batch.inputs.is_floating_point():
            raise MoekitError("the data is not text, so there are no tokens to examine")
        tokens_BS = batch.inputs
        B, S = tokens_BS.shape
        domain_B = torch.zeros(B, dtype=torch.int64) if batch.domain is None else batch.domain
        seen.domain.append(domain_B.numpy())
        seen.tokens.append(tokens_BS.numpy())
        output = model.on(batch)
        for name, report in output.reports.items():
            if report.routing.form != "soft":
                sent = sent_of(report.routing)
                seen.loads.setdefault(name, []).append(_load_BE(sent, B))
                if len(sent.sent_TE) == B * S and name not in output.of_source:
                    seen.first.setdefault(name, []).append(sent.first_T().reshape(B, S).numpy())
        count += B
        if count >= sequences:
            break
    if not seen.loads:
        why = "no layer has sparse routing" if count else "there is no text to examine"
        raise MoekitError(why)
    return Examination(
        domains=list(domains) or ["text"],
        domain_N=np.concatenate(seen.domain),
        tokens_NS=np.concatenate(seen.tokens),
        load_NE={name: np.concatenate(some) for name, some in seen.loads.items()},
        first_NS={name: np.concatenate(some) for name, some in seen.first.items()},
    )


def _load_BE(sent: Sent, num_sequences: int) -> np.ndarray:
    T = len(sent.sent_TE)
    unit_T = torch.arange(num_sequences).repeat_interleave(T // num_sequences)
    return np.asarray(load_by(unit_T, num_sequences, sent).numpy())


def text_batches(paths: Sequence[Path], tokenizer: Tokenizer, *, seq: int, batch: int = 8) -> Iterator[Batch]:
    """Windows of a reader's own files, the domains being the files.

    Raises:
        DataError: a file cannot be read, is not UTF-8, or is shorter than a window.
    """
    windows: list[tuple[int, torch.Tensor]] = []
    for number, path in enumerate(paths):
        try:
            text = read_regular(path, LARGEST).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
        ids_S = tokenizer.encode(text)
        if len(ids_S) < seq:
            raise DataError(f"{path} has {len(ids_S)} tokens; a window needs {seq}\n  expected a longer text")
        windows += [(number, ids_S[i : i + seq]) for i in range(0, len(ids_S) - seq + 1, seq)]
    order = sorted(range(len(windows)), key=lambda i: _rank(windows, i))
    for start in range(0, len(order), batch):
        some = [windows[i] for i in order[start : start + batch]]
        tokens_BS = torch.stack([ids_S for _, ids_S in some])
        yield Batch(tokens_BS, tokens_BS, domain=torch.tensor([number for number, _ in some]))


def _rank(windows: Sequence[tuple[int, torch.Tensor]], i: int) -> tuple[int, int]:
    """Windows of all files in turn."""
    number = windows[i][0]
    return i - next(j for j, (other, _) in enumerate(windows) if other == number), number


def validation_batches(data: Data, sequences: int) -> Iterator[Batch]:
    """The validation set of prepared data; ``sequences`` bounds the number of batches."""
    return islice(data.validation_batches(), sequences)


@dataclass(frozen=True, kw_only=True)
class Typical:
    """A token that an expert takes more often than others do.

    Attributes:
        text: of the token.
        before, after: the text around one of its occurrences.
        count: how often the expert was its first choice.
        times: how many times its share in the expert's tokens is its share in all tokens.
    """

    text: str
    before: str
    after: str
    count: int
    times: float


def typical_tokens(
    found: Examination, spelling: Sequence[bytes], *, each: int = 6, least: int = 3, around: int = 12
) -> dict[str, list[list[Typical]]]:
    """Of every layer and expert, the tokens that are most typical: those that add most to its G statistic.

    Args:
        found: what was examined.
        spelling: the bytes that each token spells.
        each: how many tokens of an expert.
        least: occurrences that a token needs.
        around: tokens of context on each side.
    """
    ids_T = found.tokens_NS.ravel()
    V, S = int(ids_T.max()) + 1, found.tokens_NS.shape[1]
    out: dict[str, list[list[Typical]]] = {}
    for name, first_NS in found.first_NS.items():
        first_T = first_NS.ravel()
        keep = first_T >= 0
        E = found.load_NE[name].shape[1]
        count_EV = np.bincount(first_T[keep] * V + ids_T[keep], minlength=E * V).reshape(E, V)
        share_V = count_EV.sum(0) / max(count_EV.sum(), 1)
        out[name] = []
        for e in range(E):
            with np.errstate(divide="ignore", invalid="ignore"):
                times_V = count_EV[e] / max(count_EV[e].sum(), 1) / share_V
                gain_V = np.where((count_EV[e] >= least) & (times_V > 1), count_EV[e] * np.log(times_V), 0.0)
            best = [int(v) for v in np.argsort(-gain_V, kind="stable")[:each] if gain_V[v] > 0]
            tokens = []
            for v in best:
                n, s = divmod(int(np.flatnonzero((ids_T == v) & (first_T == e))[0]), S)
                row = found.tokens_NS[n]
                tokens.append(
                    Typical(
                        text=_text([v], spelling),
                        before=_text(row[max(0, s - around) : s], spelling),
                        after=_text(row[s + 1 : s + 1 + around], spelling),
                        count=int(count_EV[e, v]),
                        times=float(times_V[v]),
                    )
                )
            out[name].append(tokens)
    return out


def pieces(ids: Iterable[int], spelling: Sequence[bytes]) -> list[str]:
    """The text of each token; a character that several tokens spell is at the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(spelling[i] if 0 <= i < len(spelling) else b"") for i in ids]


def _text(ids: Iterable[int], spelling: Sequence[bytes]) -> str:
    raw = b"".join(spelling[i] if 0 <= i < len(spelling) else b"" for i in ids)
    return raw.decode("utf-8", errors="replace")


def passages(found: Examination, spelling: Sequence[bytes], *, each: int = 1) -> list[Mapping[str, object]]:
    """The first sequences of every domain, token by token: texts, and the first choice in every layer."""
    out: list[Mapping[str, object]] = []
    for number, domain in enumerate(found.domains):
        for n in np.flatnonzero(found.domain_N == number)[:each]:
            first = {name: first_NS[n].tolist() for name, first_NS in found.first_NS.items()}
            out.append({"domain": domain, "tokens": pieces(found.tokens_NS[n].tolist(), spelling), "first": first})
    return out

"""Sentences and names use the field's terms: a list of private expressions that went, each with what to say instead.

``docs/conventions.md`` has the glossary. Names count too: ``test_a_run_goes_on`` reads as a sentence.
``python tests/unit/test_plain_words.py [PATH ...]`` lists what is found.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

INSTEAD = {
    r"(go|goes|gone|going|went) on": "resume, continue",
    r"lies|(?:lie|lay|lying) (?:in|on|over|beside|behind|where|there)": "is, is stored, is located",
    r"sick(?:ness)?": "non-finite (NaN or infinite)",
    r"twins?": "dense baseline",
    r"strangers?": "third party",
    r"whoever": "the caller, the user, code that ...",
    r"(?<!its )patience(?![\"=}])": "timeout",  # an option of Lightning's EarlyStopping
    r"crew": "thread pool",
    r"(?:left|leaves?|leaving) out": "skipped, omitted; of an argument: 'default: ...'",
    r"told": "reported, printed, passed, given",
    r"tells": "reports, says, prints",
    r"dealt": "distributed, sharded",
    r"drawn": "initialised, sampled, plotted",
    r"(?:the )?first process(?:es)?": "rank 0",
    r"computed again": "recomputed",
    r"(?:take|in) turns": "interleaved, alternate",
    r"at hand": "available, current",
    r"by some hand": "through a writer",
    r"puts? off": "defers",
    r"(?:lies|lie|lay) behind|share of the (?:training )?run": "fraction of training completed",
    r"sets? out": "is dispatched",
    r"asked for": "requested",
    r"beside": "next to, in addition to",
    r"stands(?! for)": "is, is written",
    r"(?<!there )is no(?= (?!longer|later|wider|more|less|matter))": "is not a",
    r"cut up": "sharded",
    r"nobody|anybody|everybody": "no rank, no user, every caller",
}
PATTERNS = {re.compile(rf"(?<![a-z])(?:{words})(?![a-z])", re.IGNORECASE): say for words, say in INSTEAD.items()}

ALLOWED = {
    "tests/unit/test_plain_words.py": "the list",
    "docs/by_hand.zh.md": "Chinese",
    "docs/conventions.md": "the glossary",
    "CHANGELOG.md": "history",
}
"""Files that may use them, each with the reason."""


def sources() -> Iterator[Path]:
    """Every tracked file of code or prose."""
    listed = subprocess.run(["git", "ls-files", "*.py", "*.md", "*.yaml"], cwd=ROOT, capture_output=True, text=True)
    yield from (ROOT / name for name in listed.stdout.splitlines() if name not in ALLOWED and (ROOT / name).is_file())


def matches(text: str) -> Iterator[tuple[int, str, str]]:
    """Where each expression is in a text, the expression, and what to say instead."""
    words = text.replace("_", " ")
    for pattern, say in PATTERNS.items():
        yield from ((match.start(), match[0], say) for match in pattern.finditer(words))


def findings(path: Path) -> Iterator[str]:
    """``file:line: 'expression' (what to say instead): the line``."""
    text = path.read_text(encoding="utf-8")
    for start, expression, say in sorted(matches(text)):
        number = text.count("\n", 0, start)
        line = text.split("\n")[number].strip()
        yield f"{path.relative_to(ROOT)}:{number + 1}: '{expression}' (say: {say}): {line}"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the list of tracked files")
def test_sentences_and_names_use_the_glossary() -> None:
    found = [finding for path in sources() for finding in findings(path)]
    assert not found, f"{len(found)} private expressions:\n" + "\n".join(found[:40])


def test_the_lint_sees_an_expression_in_a_sentence_and_in_a_name() -> None:
    for line in ("A run goes on from it.", "def test_a_run_goes_on():", "It Lies here", "this is no bound"):
        assert list(matches(line)), line
    assert not list(matches("what applies, belongs inside, relies on it and stands for it; there is no more"))


if __name__ == "__main__":
    wanted = [Path(name).resolve() for name in sys.argv[1:]] or [ROOT]
    for source in sources():
        if any(source.is_relative_to(place) for place in wanted):
            print("\n".join(findings(source)), end="\n" if any(findings(source)) else "")

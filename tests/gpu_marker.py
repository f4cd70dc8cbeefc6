"""Whether a run of pytest asks for the tests that need a GPU."""

from __future__ import annotations


def wants_gpu(arguments: list[str]) -> bool:
    """Whether pytest's command line selects the tests marked ``gpu``: the last ``-m`` counts."""
    marks = [
        after if word == "-m" else word[2:]
        for word, after in zip(arguments, [*arguments[1:], ""], strict=False)
        if word[:2] == "-m"
    ]
    return bool(marks) and "gpu" in marks[-1].split() and "not gpu" not in marks[-1]

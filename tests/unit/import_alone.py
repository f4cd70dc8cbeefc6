"""Imports each module by itself: a fork for each, from a process that has loaded other libraries and no moekit.

Run as ``python import_alone.py PRELOAD MODULES`` (names joined by commas); prints, as JSON, for each module why it
could not be imported (empty when it could) and which of the heavy libraries it brought in.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

HEAVY = ("torch", "lightning", "numpy", "omegaconf", "rich", "matplotlib", "tokenizers")


def import_in_fork(name: str) -> tuple[str, list[str]]:
    """Why ``name`` cannot be imported by itself, and the heavy libraries that came with it."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            importlib.import_module(name)
            said = ""
        except BaseException:
            said = traceback.format_exc()
        with os.fdopen(writing, "w") as pipe:
            json.dump((said, [library for library in HEAVY if library in sys.modules]), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    error, heavy = json.loads(answer or '["it ended the process", []]')
    return error, heavy


if __name__ == "__main__":
    preload, names = ([name for name in words.split(",") if name] for words in sys.argv[1:3])
    for library in preload:
        importlib.import_module(library)
    assert not any(name.partition(".")[0].startswith("moekit") for name in sys.modules)
    print(json.dumps({name: import_in_fork(name) for name in names}))

"""Imports each module by itself, from a process that has loaded other libraries and no moekit.

A module is imported in a fork of the process that has imported its package and nothing else: whoever imports it alone
imports that package first, so it finds the same.

Run as ``python import_alone.py PRELOAD MODULES`` (names joined by commas); prints, as JSON, for each module why it
could not be imported (empty when it could) and which of the heavy libraries it brought in.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback

HEAVY = ("torch", "lightning", "numpy", "omegaconf", "rich", "matplotlib", "tokenizers")
Found = dict[str, tuple[str, list[str]]]


def package_of(name: str, names: list[str]) -> str:
    """The innermost package of ``name`` that is asked for too; empty when there is none."""
    package = name.rpartition(".")[0]
    return package if package in names or not package else package_of(package, names)


def import_in_fork(name: str, within: dict[str, list[str]]) -> Found:
    """Why ``name`` cannot be imported, and the heavy libraries that came with it; the same of what lies within it."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            importlib.import_module(name)
            said = ""
        except BaseException:
            said = traceback.format_exc()
        found: Found = {name: (said, [library for library in HEAVY if library in sys.modules])}
        for inner in within.get(name, ()):
            found |= import_in_fork(inner, within)
        with os.fdopen(writing, "w") as pipe:
            json.dump(found, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    ended: Found = {name: ("it ended the process", [])}
    return json.loads(answer) if answer else ended


if __name__ == "__main__":
    preload, names = ([name for name in words.split(",") if name] for words in sys.argv[1:3])
    for library in preload:
        importlib.import_module(library)
    assert not any(name.partition(".")[0].startswith("moekit") for name in sys.modules)
    gc.freeze()  # a collection in a fork would copy every page
    within: dict[str, list[str]] = {}
    for name in names:
        within.setdefault(package_of(name, names), []).append(name)
    found: Found = {}
    for name in within.get("", ()):
        found |= import_in_fork(name, within)
    print(json.dumps(found))

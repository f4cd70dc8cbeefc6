"""Imports each module by itself, from a process that has loaded other libraries and no moekit.

Each module is imported in a fork of a process that has imported its package and nothing else, as Python also imports
the package first.

Run as ``python import_alone.py PRELOAD MODULES``, with names joined by commas. It prints, as JSON, the error of each
module (empty if it can be imported) and the heavy libraries that it imports.
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
    """The innermost package of ``name`` among ``names``; empty if there is none."""
    package = name.rpartition(".")[0]
    return package if package in names or not package else package_of(package, names)


def import_in_fork(name: str, within: dict[str, list[str]]) -> Found:
    """The error on importing ``name``, and the heavy libraries it imports; the same for the modules within it."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            importlib.import_module(name)
            error = ""
        except BaseException:
            error = traceback.format_exc()
        found: Found = {name: (error, [library for library in HEAVY if library in sys.modules])}
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

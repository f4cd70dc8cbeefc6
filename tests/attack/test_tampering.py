"""Files of a run that were damaged or replaced at random: each command ends with a message, or with the right weights.

The slow versions take 200 tamperings.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import check
from tiny_runs import OFTEN, assert_same, only_run, prepare

from moekit.cli import main

Damage = Callable[[Path, random.Random], object]


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes() or b"x")
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(max(1, path.stat().st_size))])


def append(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 50)))


def junk(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(rng.randrange(200)))


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def replaced(make: Callable[[Path], object]) -> Damage:
    def damage(path: Path, rng: random.Random) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: tuple[Damage, ...] = (
    *(flip, cut, append, junk, delete),
    *(replaced(make) for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"))),
    replaced(lambda path: path.symlink_to(path.name)),
)


ODD = (None, "x", "", [], {}, -1, 0, 1.5, 10**30, float("inf"), float("nan"), True, "\ud800", [[1]], [1, 2, 3])


def json_value(path: Path, rng: random.Random) -> None:
    """Another value somewhere in a JSON file."""
    if path.suffix != ".json":
        return flip(path, rng)
    found = json.loads(path.read_text())
    node, key = rng.choice(list(places(found)))
    if isinstance(node, dict) and rng.random() < 0.3:
        del node[key]
    else:
        node[key] = rng.choice(ODD)
    path.write_text(json.dumps(found))


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from places(node[key])


def csv_cell(path: Path, rng: random.Random) -> None:
    """Another text in a cell of a CSV file."""
    if path.suffix != ".csv":
        return append(path, rng)
    lines = [line.split(",") for line in path.read_text().split("\n")]
    line = rng.choice(lines)
    line[rng.randrange(len(line))] = rng.choice(("x", "", "nan", "inf", "1e400", "-1", '"', "\0", "é", ",,"))
    path.write_text("\n".join(map(",".join, lines)))


def array(path: Path, rng: random.Random) -> None:
    """Another array in a file of tables."""
    if path.suffix != ".npz":
        return junk(path, rng)
    with np.load(path) as saved:
        arrays = {name: saved[name] for name in saved.files}
    name = rng.choice(sorted(arrays))
    column = arrays.pop(name)
    odd = (np.zeros(0), np.array(3), column[:-1], np.stack([column, column]), np.array(["x"]), None)
    if (other := odd[rng.randrange(len(odd))]) is not None:
        arrays[name] = other
    np.savez(path, **arrays)


CONTENTS: tuple[Damage, ...] = (json_value, csv_cell, array)
READERS = (
    *(
        ["report", "run", "--no-model"],
        ["report", "run", "--no-model", "--json"],
        ["report", "run", "--sequences", "1"],
    ),
    *(["compare", "run"], ["compare", "run", "whole", "--json"], ["compare", "run", "whole", "--to", "out.html"]),
    *(["eval", "run"], ["watch", "run", "--once"], ["ls", "runs", "--out", "."], ["generate", "run", "The "]),
    *(["export", "run", "out.safetensors"], ["prune", "run"], ["params", "run/spec.yaml"]),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of four steps, and the same run continued to eight."""
    folder, before = prepare(tmp_path_factory.mktemp("tampering")), Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", "tiny.yaml", "trainer.max_steps=4", *OFTEN, "--out", "first"]) == 0
        shutil.copytree("first", "whole")
        assert main(["train", "--resume", str(only_run(Path("whole"))), "trainer.max_steps=8", *OFTEN]) == 0
    finally:
        os.chdir(before)
    return only_run(folder / "first"), only_run(folder / "whole")


@pytest.mark.parametrize("number", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_a_tampered_run_is_refused_or_resumes_to_the_same_weights(
    runs: tuple[Path, Path], number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, whole = runs
    root = first.parents[2]
    monkeypatch.chdir(root)
    rng, resumed = random.Random(number), 0
    for i in range(number):
        copy = Path(shutil.copytree(first, root / "copies" / str(i), symlinks=True))
        file = rng.choice(sorted(p for p in copy.rglob("*") if p.is_file() and p.name != "spec.yaml"))
        rng.choice(DAMAGES)(file, rng)
        code = main(["train", "--resume", str(copy), "trainer.max_steps=8", *OFTEN])
        said = capsys.readouterr()
        assert code in (0, 2) and "Traceback" not in said.out + said.err, (file, said)
        if code == 0:
            resumed += 1
            assert_same(copy, whole)
        else:
            assert said.err.startswith("error: "), (file, said)
        shutil.rmtree(copy)
    assert 0 < resumed < number


@pytest.mark.parametrize("number", [16, pytest.param(200, marks=pytest.mark.slow)])
def test_every_command_reads_a_tampered_run_or_says_what_is_damaged(
    runs: tuple[Path, Path], number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(runs[1], tmp_path / "run")
    shutil.copytree(runs[1].parents[2] / "text", tmp_path / "text")
    monkeypatch.chdir(tmp_path)
    rng = random.Random(number)

    def commands() -> Iterator[list[str]]:
        for _ in range(number):
            files = sorted(p for p in Path("run").rglob("*") if p.is_file() and not p.is_symlink())
            rng.choice((*DAMAGES, *CONTENTS, *CONTENTS, *CONTENTS))(rng.choice(files), rng)
            yield rng.choice(READERS)

    ended = check(tmp_path, commands())
    assert ended[0] > number / 4 and ended[2] > number / 20, ended

"""Files of a run that were damaged or replaced at random: each command ends with a message, or with the right weights.

The slow version takes 200 tamperings.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
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

"""Command lines with mistakes: each verb with its real options, over odd files, overrides and run folders, at random.

Each ends with its result or with a message: no traceback, nothing that waits. Most have one mistake or two, so that
they get beyond the parsing of arguments. The slow version takes 500.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from command_lines import (
    COUNT,
    ODD_RECIPES,
    ODD_RUNS,
    ON,
    RECIPES,
    RUN_PATHS,
    WHERE,
    Mistakes,
    check,
    prepared,
)
from tiny_runs import OFTEN


def argument_lists(rng: random.Random) -> Iterator[list[str]]:
    """Command lines without end; most have a mistake."""
    while True:
        words = Mistakes(rng)
        choose, overrides, options = words.choose, words.overrides, words.options
        verb = rng.choice(
            ("train", "train", "resume", "resume", "generate", "export", "config", "params", "plan", "rest")
        )
        recipe, run = choose(RECIPES, ODD_RECIPES), choose(RUN_PATHS, ODD_RUNS)
        small = ["trainer.max_steps=2", *OFTEN]
        if verb == "train":
            name = (("good",), ("", "..", "a/b", "/", "é", "a" * 300, "-"))
            yield ["train", recipe, *small, *overrides(), *options(out=WHERE, name=name, no_compare=ON)]
        elif verb == "resume":
            more = rng.choice([[], ["trainer.max_steps=3"], ["trainer.max_steps=1"]])
            yield ["train", "--resume", run, *more, *overrides(), *options(allow_changes=ON, no_compare=ON)]
        elif verb == "generate":
            prompt = choose(("The ", "", "a" * 50), ("é", "\udcff", "--", "-1", "a" * 5000))
            number = (("0", "0.5", "1"), ("-1", "x", "nan", "inf", "1e400", "2"))
            yield [
                *("generate", run, prompt, "--tokens", choose(("1", "5"), ("0", "-1", "x", "1.5", ""))),
                *options(temperature=number, top_p=number, cache=ON, no_cache=ON, seed=COUNT, out=WHERE),
            ]
        elif verb == "export":
            target = (("weights.safetensors",), ("folder.yaml", "/dev/full", "/proc/x", "no/such/folder/x", ""))
            out = [choose(*target)] if rng.random() < 0.5 else []
            yield ["export", run, *out, *options(runs=WHERE, format=(("one_file", "hf"), ("klingon", "", "é")))]
        elif verb == "config":
            only = (("model", "model.moe.router"), ("", "x", "model.moe.klingon", "model..x", "data.0", "\udcff"))
            what = choose(("print", "validate", "diff"), ("klingon", ""))
            two = [choose(RECIPES, ODD_RECIPES)] if what == "diff" and rng.random() < 0.5 else []
            yield ["config", what, recipe, *two, *overrides(), *options(only=only, json=ON)]
        elif verb == "params":
            yield ["params", recipe, *overrides(), *options(json=ON)]
        elif verb == "plan":
            yield [
                *("plan", recipe, "--devices", choose(("1", "8"), ("0", "-1", "x", "1e9", "999999999999"))),
                *overrides(),
                *options(
                    ep=(("1", "2", "1,2,4"), ("0", "3", "x", ",", "-1", "1,x")),
                    **dict.fromkeys(("batch", "sequence", "accumulate", "device_memory"), COUNT),
                    precision=(("bf16-mixed", "32-true"), ("x", "17", "")),
                    recompute=(("blocks", "none"), ("x", "")),
                    explain=ON,
                    json=ON,
                ),
            ]
        else:
            names = (
                ("topk", "router/topk", "tiny.yaml", "deepseek_v3"),
                ("", "/", "x/y/z", "klingon", "é", *ODD_RECIPES),
            )
            kind = (("router", "experts", "kinds", "recipes"), ("klingon", "", "é", "\udcff"))
            shape = (("8,4,4,4,2",), ("8,4,4,4,9", "0,1,1,1,1", "x", "1,2,3", "-8,4,4,4,2", ""))
            yield rng.choice(
                (
                    ["show", choose(*names), *options(kind=kind, doc=ON)],
                    ["ls", choose(*kind), *options(json=ON)],
                    ["plugins", choose(("--help",), ("--klingon", "x"))],
                    [
                        *(
                            "bench",
                            choose(("layer", "router", "dispatch"), ("x", "")),
                            "--rounds",
                            "1",
                            "--warmup",
                            "0",
                        ),
                        *("--shape", choose(*shape), "--device", choose(("cpu",), ("x", "cuda"))),
                        *options(dispatchers=(("loop",), ("x", "{use: loop, x: 1}", "{", "")), threads=COUNT, json=ON),
                    ],
                    [choose(("config", "train", "generate"), ("klingon", "", "-", "é", "--klingon"))],
                )
            )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("commands"))


@pytest.mark.parametrize("number", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_a_command_line_ends_with_a_result_or_a_message(
    root: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    ended = check(root, islice(argument_lists(random.Random(number)), number))
    assert ended[0] > number / 10 and ended[2] > number / 4, ended

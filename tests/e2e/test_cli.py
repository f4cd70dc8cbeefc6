"""The command in a process and folder of its own: output, exit code, broken plugins."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fake_plugins
import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
Install = Callable[..., None]

PLUGIN = """
from dataclasses import dataclass
from moekit import Component, RouterSpec, hookimpl, option

MOEKIT_API = 2

class Coin(RouterSpec):
    sides: int = option(2, "sides of the coin", ge=2)

@hookimpl
def moekit_components():
    return [Component(name="{name}", spec=Coin, target="{target}", summary="flips a coin", paper="Pascal 1654")]
"""


def python_path(site: Path) -> str:
    """``PYTHONPATH`` with the folder of a test's plugins in front."""
    return os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run("ls", "routers")``: the finished process. Plugins below ``tmp_path / "site"`` are installed."""

    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "work").mkdir(exist_ok=True)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MOEKIT_")}
        clean |= {"PYTHONPATH": python_path(tmp_path / "site"), "COLUMNS": "120", **env}
        command = [sys.executable, "-m", "moekit", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "work", env=clean, timeout=120)

    return run


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Installs a plugin, by default one that offers the router ``coin``."""

    def make(plugin: str, source: str = PLUGIN, *, version: str = "1.2", **changes: object) -> None:
        for key, value in {"name": "coin", "target": "a:B", **changes}.items():
            source = source.replace(f"{{{key}}}", str(value))
        fake_plugins.install(tmp_path / "site", plugin, source, version=version)

    return make


def recipe(folder: Path, router: str) -> str:
    """Writes a recipe with this router; returns its file name."""
    (folder / "work").mkdir(exist_ok=True)
    path = folder / "work" / "mine.yaml"
    path.write_text(
        "schema: 1\n"
        "model:\n"
        "  use: mixture\n"
        "  inputs: 2\n"
        "  outputs: 1\n"
        "  moe:\n"
        f"    router: {router}\n"
        "    experts: {use: linear, count: 4}\n"
        "    dispatcher: {use: loop}\n"
    )
    return path.name


def test_a_third_party_router_is_listed_shown_and_used(run: Run, install: Install, tmp_path: Path) -> None:
    install("acme")
    assert re.search(r"^  coin +flips a coin ", run("ls", "routers").stdout, re.MULTILINE)
    shown = run("show", "coin")
    assert "  plugin  acme (acme-moe 1.2)\n" in shown.stdout
    assert "  sides  int  2  >= 2  sides of the coin\n" in shown.stdout
    valid = run("config", "validate", recipe(tmp_path, "{use: coin, sides: 6}"))
    assert (valid.stdout, valid.stderr, valid.returncode) == ("mine.yaml: valid\n", "", 0)
    printed = run("config", "print", "mine.yaml", "--only", "model.moe.router", "model.moe.router.sides=8")
    assert printed.stdout == "use: coin\nsides: 8\n"


def test_a_mistake_in_a_third_party_router_has_its_place(run: Run, install: Install, tmp_path: Path) -> None:
    install("acme")
    done = run("config", "validate", recipe(tmp_path, "{use: coin, sides: 1}"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "at model.moe.router.sides  in mine.yaml, line 7" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_target_that_does_not_import_fails_only_when_built(run: Run, install: Install, tmp_path: Path) -> None:
    install("acme", target="nowhere.at_all:Coin")
    name = recipe(tmp_path, "{use: coin}")
    assert run("config", "validate", name).returncode == 0
    assert run("show", "coin").returncode == 0
    built = run("params", name)
    assert built.returncode == 2
    assert built.stderr == (
        "error: router 'acme/coin': cannot import its target 'nowhere.at_all:Coin'\n"
        "  ModuleNotFoundError: No module named 'nowhere'\n"
        "  while building model 'models/mixture'\n"
    )


def test_a_broken_plugin_is_reported_and_stops_nothing_unless_strict_or_disabled(
    run: Run, install: Install, tmp_path: Path
) -> None:
    install("broken", "import no_such_kernel")
    listed = run("ls", "routers")
    assert listed.returncode == 0
    assert "topk" in listed.stdout
    assert listed.stderr == "note: plugin 'broken' failed to load; see: moekit plugins\n"
    assert run("config", "validate", "deepseek_v3").returncode == 0
    plugins = run("plugins")
    assert plugins.returncode == 1
    assert "\nbroken failed: ModuleNotFoundError: No module named 'no_such_kernel'\n" in plugins.stdout
    traced = run("plugins", "--trace")
    assert "  Traceback (most recent call last):\n" in traced.stdout
    named = run("config", "validate", recipe(tmp_path, "{use: broken/coin}"))
    assert named.returncode == 2
    assert "plugin 'broken' (broken-moe 1.2) failed to load" in named.stderr
    missing = run("config", "validate", recipe(tmp_path, "{use: coin}"))
    assert (
        "note: plugin 'broken' failed to load (ModuleNotFoundError: No module named 'no_such_kernel')" in missing.stderr
    )
    strict = run("ls", MOEKIT_STRICT_PLUGINS="1")
    assert (strict.returncode, strict.stdout) == (2, "")
    assert strict.stderr == (
        "error: plugin 'broken' (broken-moe 1.2) cannot be used: "
        "ModuleNotFoundError: No module named 'no_such_kernel'\n"
    )
    disabled = run("plugins", MOEKIT_DISABLE_PLUGINS="broken")
    assert disabled.returncode == 0
    assert disabled.stdout.endswith("\ndisabled by MOEKIT_DISABLE_PLUGINS: broken\n")


VERB = """
from moekit import MoekitError, Verb, hookimpl

MOEKIT_API = 2
EXAMPLES = "  moekit {name} 3"

@hookimpl
def moekit_verbs():
    return [Verb(name="{name}", target=__name__, summary="keeps the score")]

def add_arguments(parser):
    parser.add_argument("points", type=int)

def run(args):
    if args.points < 0:
        raise MoekitError("the points are negative")
    print(6 // args.points)
    return 0
"""


def test_a_third_party_verb_of_one_file_runs_and_its_bugs_name_it(run: Run, install: Install) -> None:
    install("acme", VERB, name="score")
    assert re.search(r"\n  score +keeps the score ", run("help").stdout)
    assert run("help", "score").stdout.startswith("usage: moekit score [-h] points\n\nKeeps the score.\n")
    done = run("score", "3")
    assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)
    mistake = run("score", "--", "-1")
    assert (mistake.stderr, mistake.returncode) == ("error: the points are negative\n", 2)
    bug = run("score", "0")
    assert bug.stderr.startswith("Traceback (most recent call last):\n") and bug.returncode == 1
    assert bug.stderr.endswith("\nwhile running verb 'acme/score' (acme-moe 1.2)\n")


def test_a_third_party_verb_cannot_take_the_name_of_moekits_own(run: Run, install: Install) -> None:
    install("acme", VERB, name="train")
    listed = run("plugins")
    assert "\nacme failed: verb 'train' is one of moekit's own; give it another name\n" in listed.stdout
    assert listed.returncode == 1
    assert run("train", "--help").stdout.startswith("usage: moekit train ")


def test_a_namesake_affects_no_shipped_recipe_but_a_users_own_short_name(
    run: Run, install: Install, tmp_path: Path
) -> None:
    install("acme", name="topk")
    assert run("config", "validate", "deepseek_v3").returncode == 0
    own = ("config", "validate", "deepseek_v3", "model.moe.router={use: topk, top_k: 2}")
    unclear = run(*own)
    assert unclear.returncode == 2
    assert "acme/topk (acme-moe 1.2), routers/topk (moekit " in unclear.stderr
    skips = run(*own, MOEKIT_DISABLE_PLUGINS="acme")
    assert (skips.returncode, skips.stderr) == (0, "")


def test_mistakes_end_with_code_2_and_no_traceback(run: Run) -> None:
    for words in (
        ["lss"],
        ["ls", "rooters"],
        ["show", "topp"],
        ["config", "validate", "gone.yaml"],
        ["params", "topk"],
    ):
        done = run(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
    assert "Traceback" in run("ls", "rooters", MOEKIT_DEBUG="1").stderr


def test_a_reader_that_closes_early_gets_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "moekit", "ls"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_letter_that_the_terminal_lacks_becomes_a_question_mark(run: Run) -> None:
    done = run("show", "glu", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3?D?H parameters each" in done.stdout


def test_an_interrupt_ends_with_code_130(install: Install, tmp_path: Path) -> None:
    """The interrupt is sent while a plugin is imported, after that plugin has printed a line."""
    install("slow", "import time\nprint('reached', flush=True)\ntime.sleep(60)\n")
    env = {**os.environ, "PYTHONPATH": python_path(tmp_path / "site")}
    command = [sys.executable, "-m", "moekit", "ls"]
    # A shell starts background jobs with SIGINT ignored, and a suite in such a job would pass that on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "reached\n"
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "\ninterrupted\n")

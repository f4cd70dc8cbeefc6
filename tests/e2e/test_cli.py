"""The command as a person runs it: a process of its own, in a folder of its own; output, exit code, broken plugins."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

PLUGIN = """
from dataclasses import dataclass
from moekit import Component, RouterSpec, hookimpl, option

MOEKIT_API = {api}

@dataclass(frozen=True, kw_only=True)
class Coin(RouterSpec):
    sides: int = option(2, "sides of the coin", ge=2)

@hookimpl
def moekit_routers():
    return [Component(name="{name}", spec=Coin, target="{target}", summary="flips a coin", paper="Pascal 1654")]
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run("ls", "routers")``: the finished process; plugins written to ``tmp_path / site`` are installed."""

    def run(*words: str, way: tuple[str, ...] = ("-m", "moekit"), **env: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "work").mkdir(exist_ok=True)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MOEKIT_")}
        clean |= {"PYTHONPATH": str(tmp_path / "site"), "COLUMNS": "120", **env}
        command = [sys.executable, *way, *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "work", env=clean, timeout=120)

    return run


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., None]:
    """Installs a plugin that offers one router."""

    def make(
        plugin: str,
        *,
        version: str = "1.2",
        source: str = PLUGIN,
        name: str = "coin",
        api: int = 1,
        target: str = "a:B",
    ) -> None:
        info = tmp_path / "site" / f"{plugin}_moe-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plugin}-moe\nVersion: {version}\n\nRead me.\n")
        (info / "entry_points.txt").write_text(f"[moekit]\n{plugin} = {plugin}_moe\n")
        (tmp_path / "site" / f"{plugin}_moe.py").write_text(source.format(name=name, api=api, target=target))

    return make


def recipe(folder: Path, router: str) -> str:
    """Writes a recipe with a router of choice; returns its name."""
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


def test_a_strangers_router_is_listed_shown_and_used(run: Run, install: Callable[..., None], tmp_path: Path) -> None:
    install("acme")
    assert re.search(r"^  coin +flips a coin ", run("ls", "routers").stdout, re.MULTILINE)
    shown = run("show", "coin")
    assert "  plugin  acme (acme-moe 1.2)\n" in shown.stdout
    assert "  sides  int  2  >= 2  sides of the coin\n" in shown.stdout
    valid = run("config", "validate", recipe(tmp_path, "{use: coin, sides: 6}"))
    assert (valid.stdout, valid.stderr, valid.returncode) == ("mine.yaml: valid\n", "", 0)
    printed = run("config", "print", "mine.yaml", "--only", "model.moe.router", "model.moe.router.sides=8")
    assert printed.stdout == "use: coin\nsides: 8\n"


def test_a_strangers_mistake_is_told_where_it_stands(run: Run, install: Callable[..., None], tmp_path: Path) -> None:
    install("acme")
    done = run("config", "validate", recipe(tmp_path, "{use: coin, sides: 1}"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "at model.moe.router.sides  in mine.yaml, line 7" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_target_that_does_not_import_fails_only_when_built(
    run: Run, install: Callable[..., None], tmp_path: Path
) -> None:
    install("acme", target="nowhere.at_all:Coin")
    name = recipe(tmp_path, "{use: coin}")
    assert run("config", "validate", name).returncode == 0
    assert run("show", "coin").returncode == 0
    built = run("params", name)
    assert built.returncode == 2
    assert built.stderr == (
        "error: router 'acme/coin': cannot import its target 'nowhere.at_all:Coin'\n"
        "  ModuleNotFoundError: No module named 'nowhere'\n"
    )


def test_a_broken_plugin_stops_nothing_and_is_told(run: Run, install: Callable[..., None], tmp_path: Path) -> None:
    install("broken", source="import no_such_kernel")
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
    wanted = run("config", "validate", recipe(tmp_path, "{use: broken/coin}"))
    assert wanted.returncode == 2
    assert "plugin 'broken' (broken-moe 1.2) failed to load" in wanted.stderr
    missing = run("config", "validate", recipe(tmp_path, "{use: coin}"))
    assert (
        "note: plugin 'broken' failed to load (ModuleNotFoundError: No module named 'no_such_kernel')" in missing.stderr
    )


def test_a_strict_registry_stops_at_a_broken_plugin(run: Run, install: Callable[..., None]) -> None:
    install("broken", source="import no_such_kernel")
    done = run("ls", MOEKIT_STRICT_PLUGINS="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: plugin 'broken' (broken-moe 1.2) cannot be used: "
        "ModuleNotFoundError: No module named 'no_such_kernel'\n"
    )


def test_a_plugin_of_another_api_is_refused_with_both_numbers(run: Run, install: Callable[..., None]) -> None:
    install("future", api=9)
    done = run("plugins")
    assert done.returncode == 1
    assert "future       future-moe 1.2  9    failed\n" in done.stdout
    assert "future failed: was written for plugin API 9; this moekit supports API 1: MOEKIT_API = 1\n" in done.stdout


def test_a_plugin_can_be_left_out(run: Run, install: Callable[..., None]) -> None:
    install("broken", source="raise SystemExit('never imported')")
    done = run("plugins", MOEKIT_DISABLE_PLUGINS="broken")
    assert done.returncode == 0
    assert done.stdout.endswith("\ndisabled by MOEKIT_DISABLE_PLUGINS: broken\n")


def test_namesakes_are_chosen_by_plugin(run: Run, install: Callable[..., None], tmp_path: Path) -> None:
    install("acme")
    install("beta", version="0.3.1")
    assert run("ls", "routers").returncode == 0
    unclear = run("config", "validate", recipe(tmp_path, "{use: coin}"))
    assert unclear.returncode == 2
    assert (
        "router 'coin' is offered by 2 plugins: acme/coin (acme-moe 1.2), beta/coin (beta-moe 0.3.1)" in unclear.stderr
    )
    assert "at model.moe.router.use  in mine.yaml, line 7" in unclear.stderr
    chosen = run("config", "print", recipe(tmp_path, "{use: beta/coin}"), "--only", "model.moe.router")
    assert chosen.stdout == "use: beta/coin\nsides: 2\n"


def test_a_name_that_another_plugin_has_too_leaves_its_first_owner_alone(
    run: Run, install: Callable[..., None], tmp_path: Path
) -> None:
    install("acme", name="topk")
    assert run("config", "validate", "jacobs1991").returncode == 0
    unclear = run("config", "validate", "deepseek_v3")
    assert unclear.returncode == 2
    assert "acme/topk (acme-moe 1.2), routers/topk (moekit " in unclear.stderr
    skips = run("config", "validate", "deepseek_v3", MOEKIT_DISABLE_PLUGINS="acme")
    assert (skips.returncode, skips.stderr) == (0, "")


def test_mistakes_end_with_two_and_no_traceback(run: Run) -> None:
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


def test_a_reader_that_leaves_early_hears_nothing() -> None:
    command = f"{sys.executable} -m moekit ls | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_a_terminal_without_a_letter_shows_a_question_mark(run: Run) -> None:
    done = run("show", "glu", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3?D?H parameters each" in done.stdout


def test_interrupting_ends_with_130(tmp_path: Path) -> None:
    """The interrupt is sent when the plugin that is being imported says that it has been reached."""
    site = tmp_path / "site"
    (site / "slow_moe-1.0.dist-info").mkdir(parents=True)
    (site / "slow_moe-1.0.dist-info" / "METADATA").write_text("Name: slow-moe\nVersion: 1.0\n")
    (site / "slow_moe-1.0.dist-info" / "entry_points.txt").write_text("[moekit]\nslow = slow_moe\n")
    (site / "slow_moe.py").write_text("import time\nprint('reached', flush=True)\ntime.sleep(60)\n")
    env = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "moekit", "ls"]
    # A shell starts background jobs deaf to SIGINT, and a suite that runs in one would hand that on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "reached\n"
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "\ninterrupted\n")

"""``moekit completion``: what a shell offers at each place of a command line, and that its script asks correctly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moekit.cli import main
from moekit_doctor import completion
from moekit_doctor.completion import candidates

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("", ["train", "doctor", "bench"]),
        ("tr", ["train"]),
        ("--v", ["--version"]),
        ("train deepseek_v3-", ["deepseek_v3-671b"]),
        ("train --no-compare --out there deepseek_v3-", ["deepseek_v3-671b"]),
        ("train --na", ["--name"]),
        ("train deepseek_v3 model.moe.rou", ["model.moe.router."]),
        ("train deepseek_v3 seed=1 model.moe.router.top", ["model.moe.router.top_k="]),
        ("train deepseek_v3 model.moe.router.use=to", ["model.moe.router.use=topk"]),
        ("train deepseek_v3 model.moe.router.score=s", [f"model.moe.router.score={s}" for s in ("softmax", "sigmoid")]),
        ("train deepseek_v3 trainer.enable_progress_bar=t", ["trainer.enable_progress_bar=true"]),
        ("train deepseek_v3 model.moe.balancers.b", ["model.moe.balancers.bias."]),
        ("config val", ["validate"]),
        ("config print deepseek_v3 data.meg", ["data.megabytes="]),
        ("ls rou", ["routers"]),
        ("show router/topk", ["router/topk"]),
        ("check router/topk", ["router/topk"]),
        ("new rou", ["router"]),
        ("bench rou", ["router"]),
        ("help compl", ["completion"]),
        ("completion ba", ["bash"]),
        ("reproduce deepseek_v3", ["deepseek_v3"]),
    ],
)
def test_what_can_stand_next(line: str, some: list[str]) -> None:
    found = candidates(line.split(" "))
    assert set(some) <= set(found)
    assert all(each.startswith(line.split(" ")[-1]) for each in found)


def test_an_empty_line_offers_every_verb() -> None:
    assert candidates([]) == candidates([""]) and "train" in candidates([])


@pytest.mark.parametrize(
    "line",
    ["no_such_verb x", "train no_such_recipe model.", "train deepseek_v3 no.such.key", "new router n", "export "],
)
def test_nothing_is_offered_where_nothing_fits(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert candidates(line.split(" ")) == []


def test_runs_are_offered_by_name_and_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "switch" / "2026-01-01_00-00-00").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert candidates(["generate", ""]) == ["switch", "runs/switch/2026-01-01_00-00-00"]
    assert candidates(["generate", "switch", ""]) == []


def test_a_recipe_of_yours_in_a_file_gives_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("schema: 1\nextends: deepseek_v3\nmodel: {moe: {router: {top_k: 2}}}\n")
    assert candidates(["train", "mine.yaml", "model.moe.router.top_k"]) == ["model.moe.router.top_k="]


def test_words_are_printed_a_line_each_and_a_shell_alone_prints_its_script(capsys: Captured) -> None:
    assert main(["completion", "words", "moekit train  deepseek_v3-6"]) == 0
    assert capsys.readouterr().out == "deepseek_v3-671b\n"
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        assert "moekit completion words" in capsys.readouterr().out
    assert main(["completion", "words"]) == 2 and main(["completion", "bash", "x"]) == 2
    assert "completion takes a shell alone, or 'words' with a line" in capsys.readouterr().err


DRIVERS = {
    "bash": 'source ./script; COMP_LINE=$1; COMP_POINT=${#1}; compopt() { echo compopt "$@"; }; _moekit; '
    'printf "%s\\n" "${COMPREPLY[@]}"',
    "zsh": 'compdef() { :; }; compadd() { echo compadd "$@"; }; _files() { echo files; }; source ./script; '
    'words=("${(@s: :)1}"); CURRENT=$#words; _moekit',
    "fish": "source ./script; complete -C $argv[1]",
}
SHOWN = {
    "bash": "compopt -o nospace\nmodel.moe.router.top_k=\n",
    "zsh": "compadd -S  -- model.moe.router.top_k=\n",
    "fish": "model.moe.router.top_k=\n",
}
SAID = 'import sys; open("asked", "w").write(repr(sys.argv[1:])); print("model.moe.router.top_k=")'


@pytest.mark.parametrize("shell", list(DRIVERS))
def test_the_script_of_a_shell_asks_with_the_line_so_far(shell: str, tmp_path: Path, capsys: Captured) -> None:
    """A ``moekit`` that writes down its arguments replaces the command."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    command = tmp_path / "bin" / "moekit"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\n{SAID}\n")
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    key = "moekit train deepseek_v3 model.moe.router."
    extra = [] if shell == "fish" else [shell]
    for typed in (key, "moekit train "):
        done = subprocess.run(
            [shell, "-c", DRIVERS[shell], *extra, typed], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "asked").read_text() == repr(["completion", "words", typed]), shell
        assert typed != key or SHOWN[shell] in done.stdout


def test_the_scripts_need_no_more_than_the_verb_and_completion_imports_no_torch() -> None:
    code = "import sys; from moekit_doctor.completion import candidates; candidates(['train', 'deepseek_v3', 'm'])"
    done = subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], capture_output=True)
    assert done.returncode == 0 and completion.RUNS == Path("runs")

"""The start-up time of a command is near the least that it could take (``benchmarks/startup.py``), and what it imports.

A ratio that is too high is measured again before it counts.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from startup import FLOOR, PASS, SCRIPT, compiled, ratios

TRIES = 4
STARTS = {"script": [SCRIPT], "module": [sys.executable, "-m", "moekit"]}


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return compiled(str(tmp_path_factory.mktemp("compiled")))


def test_the_first_page_takes_at_most_three_times_a_bare_python(env: dict[str, str]) -> None:
    found = ratios({name: [*command, "--help"] for name, command in STARTS.items()}, PASS, env, limit=3.0, tries=TRIES)
    assert {name: ratio for name, ratio in found.items() if ratio > 3.0} == {}


def test_listing_and_validating_take_at_most_half_more_than_their_imports(env: dict[str, str]) -> None:
    commands = {words: [*STARTS["script"], *words.split()] for words in ("ls", "config validate deepseek_v3")}
    found = ratios(commands, FLOOR, env, limit=1.5, tries=TRIES)
    assert {words: ratio for words, ratio in found.items() if ratio > 1.5} == {}


HEAVY = ("torch", "lightning", "numpy", "rich", "matplotlib", "tokenizers")


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "--version",
        "ls",
        "ls routers --json",
        "show topk",
        "show topk --doc",
        "show decoder",
        "show deepseek_v3",
        "plugins",
        "config print deepseek_v3",
        "config validate deepseek_v3 jacobs1991",
        "config diff jacobs1991 deepseek_v3",
        "config schema",
        "params --help",
        "help",
        "help plan",
        "bench --help",
        "train --help",
        "generate --help",
    ],
)
def test_verbs_that_need_no_torch_import_none(words: str) -> None:
    code = (
        "import sys; from moekit.cli import main; code = main(sys.argv[1:]);"
        f"print(code, sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert done.stdout


def test_a_list_of_recipes_imports_no_omegaconf() -> None:
    code = "import sys; from moekit.cli import main; main(['ls', 'recipes']); sys.exit('omegaconf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_first_page_imports_next_to_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); from moekit.cli import main; main(['--help']);"
        "print(sorted(set(sys.modules) - before), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "['__future__', 'moekit', 'moekit.cli', 'moekit.cli.core', 'moekit.lazy']"


def test_python_m_moekit_prints_the_same_as_the_script() -> None:
    assert Path(SCRIPT).is_file()
    for words in (["--help"], ["ls", "routers"]):
        outputs = [
            subprocess.run([*command, *words], capture_output=True, text=True, check=True).stdout
            for command in STARTS.values()
        ]
        assert outputs[0] == outputs[1]

"""What a command does and imports before it prints; its time is measured by ``benchmarks/startup.py``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from startup import FLOOR, SCRIPT

STARTS = {"script": [SCRIPT], "module": [sys.executable, "-m", "moekit"]}

COUNTED = """
import sys
calls = 0
def count(frame, event, arg):
    global calls
    calls += event in ("call", "c_call")
sys.setprofile(count)
{code}
sys.setprofile(None)
print(calls, file=sys.stderr)
"""


def calls(code: str) -> int:
    """Calls of functions, of Python and of C, while a new process runs code: as many each time, unlike seconds."""
    command = [sys.executable, "-c", COUNTED.format(code=code)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()[-1])


def test_a_command_calls_few_functions_more_than_importing_what_it_needs() -> None:
    """The first page imports none of it; the others load the plugins too, and print, or check a recipe."""
    most = {"--help": 0.01, "ls": 1.75, "config validate deepseek_v3": 2.5}
    floor = calls(FLOOR[-1])
    found = {words: calls(f"from moekit.cli import main; main({words.split()!r})") / floor for words in most}
    assert {words: ratio for words, ratio in found.items() if ratio > most[words]} == {}


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

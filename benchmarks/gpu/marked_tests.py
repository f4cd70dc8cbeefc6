"""The tests that are marked ``gpu``. In a rehearsal the same tests run on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

from gpu.case import Case, Result, Where

TESTS = Path(__file__).parents[2] / "tests"
MARK = "from devices import"


def cases(where: Where) -> Iterator[Case]:
    """One case for each file with such tests. Files run at the same time, each in a process of its own."""
    pool = ThreadPoolExecutor(where.size(4, 2))
    for path in sorted(TESTS.rglob("test_*.py")):
        if MARK in path.read_text(encoding="utf-8"):
            yield Case(name=str(path.relative_to(TESTS)), run=pool.submit(run, path, where).result)


def run(path: Path, where: Where) -> Result:
    """The outcome of a file, with the names of the tests that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = pytest(str(path), "-m", "gpu", f"--junitxml={report}", MOEKIT_TEST_DEVICE=where.device)
        if not report.exists():
            return Result(ok=False, note=done.stdout[-400:] + done.stderr[-400:])
        suite = next(ElementTree.parse(report).iter("testsuite"))
    numbers = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = [
        case.attrib["name"] for case in suite.iter("testcase") if {each.tag for each in case} & {"failure", "error"}
    ]
    first = next((each.attrib.get("message", "") for each in suite.iter("failure")), "")
    ran = numbers["tests"] > numbers["skipped"]
    return Result(
        ok=done.returncode == 0 and (ran or where.rehearsal),
        note=f"{', '.join(failed[:5])}: {first[:200]}" if failed else "" if ran else "skipped, every test",
        figures={**numbers, "failed": failed},
    )


def pytest(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs pytest in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=TESTS.parent, env=env, capture_output=True, text=True, check=False)

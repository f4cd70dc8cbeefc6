"""The release checklist, as a script. It writes files and builds packages; it neither tags nor uploads anything.

    python .ci/release.py prepare 0.2.0    version, date and changelog, to be reviewed and committed
    python .ci/release.py check            everything that must hold of a release; then builds and tries the packages

``check`` prints what is wrong and fails, or prints the commands that are left to a human.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
INIT, CITATION, CHANGELOG = "moekit/__init__.py", "CITATION.cff", "CHANGELOG.md"
VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
CITED = re.compile(r"^version: (.+)$", re.MULTILINE)
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
DATED = re.compile(r"(\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?) - (\d{4}-\d\d-\d\d)")


def git(root: Path, *words: str) -> str:
    """The output of git in a folder; empty if it fails."""
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def sections(changelog: str) -> dict[str, str]:
    """The text below each heading of the second level, in order."""
    parts = HEADING.split(changelog)
    return dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))


def prepare(root: Path, version: str, today: str) -> None:
    """Writes the version where it is stated, and turns what is unreleased in the changelog into its section.

    Raises:
        SystemExit: it is not a version, or nothing is unreleased.
    """
    if not DATED.fullmatch(f"{version} - {today}"):
        raise SystemExit(f"{version} is not a version; expected such as 0.2.0, or 0.2.0rc1")
    changelog = (root / CHANGELOG).read_text(encoding="utf-8")
    if not sections(changelog).get("Unreleased"):
        raise SystemExit(f"{CHANGELOG} has nothing below '## Unreleased'")
    changelog = changelog.replace("## Unreleased\n", f"## Unreleased\n\n## {version} - {today}\n", 1)
    (root / CHANGELOG).write_text(changelog, encoding="utf-8")
    init = (root / INIT).read_text(encoding="utf-8")
    (root / INIT).write_text(VERSION.sub(f'__version__ = "{version}"', init), encoding="utf-8")
    cited = CITED.sub(f"version: {version}", (root / CITATION).read_text(encoding="utf-8"))
    cited = re.sub(r"^date-released: .+$", f"date-released: {today}", cited, flags=re.MULTILINE)
    (root / CITATION).write_text(cited, encoding="utf-8")


def faults(root: Path) -> Iterator[str]:
    """What is wrong with a tree that is to be released, a line each."""
    version = stated(root)
    cited = CITED.search((root / CITATION).read_text(encoding="utf-8"))
    if cited is None or cited[1] != version:
        yield f"{CITATION} says version {cited[1] if cited else 'nothing'}, {INIT} {version}"
    yield from _changelog(root, version)
    if dirty := git(root, "status", "--porcelain"):
        yield f"{len(dirty.splitlines())} files are changed or new: commit them"
    if (branch := git(root, "branch", "--show-current")) != "main":
        yield f"the branch is '{branch}', not main"
    tagged, head = git(root, "rev-list", "-n", "1", f"v{version}"), git(root, "rev-parse", "HEAD")
    if tagged and tagged != head:
        yield f"the tag v{version} is another commit: raise the version"
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    remote = git(root, "remote", "get-url", "origin").removesuffix(".git")
    if remote.replace("git@github.com:", "https://github.com/") != urls["Source"]:
        yield f"pyproject.toml says that the source is at {urls['Source']}, and the remote 'origin' is '{remote}'"


def stated(root: Path) -> str:
    """The version of a tree."""
    found = VERSION.search((root / INIT).read_text(encoding="utf-8"))
    return found[1] if found else ""


def _changelog(root: Path, version: str) -> Iterator[str]:
    of = sections((root / CHANGELOG).read_text(encoding="utf-8"))
    first = next(iter(of), "")
    if first != "Unreleased":
        yield f"{CHANGELOG} begins with '## {first}', not '## Unreleased'"
    if of.get("Unreleased"):
        yield f"{CHANGELOG} has lines below '## Unreleased': python .ci/release.py prepare VERSION"
    released = [name for name in of if name != "Unreleased"]
    if not released or not (found := DATED.fullmatch(released[0])) or found[1] != version:
        newest = released[0] if released else "nothing"
        yield f"the newest section of {CHANGELOG} is '{newest}'; expected '{version} - YYYY-MM-DD'"
    elif not of[released[0]]:
        yield f"the section {released[0]} of {CHANGELOG} is empty"


def check() -> None:
    """Checks this tree, builds the packages into ``dist`` and tries them; prints what a human has to do.

    Raises:
        SystemExit: something is wrong.
    """
    if found := list(faults(ROOT)):
        raise SystemExit("\n".join(found))
    version, dist = stated(ROOT), ROOT / "dist"
    subprocess.run([ROOT / ".ci" / "packages"], check=True, env={**os.environ, "KEEP": str(dist)})
    print(f"\nmoekit {version} can be released:\n  .ci/run --all      must have passed on this commit")
    print(f"  git tag -a v{version} -m 'moekit {version}' && git push origin v{version}")
    print(f"  twine upload dist/moekit-{version}*")


def main(words: list[str]) -> None:
    """Runs one of the two.

    Raises:
        SystemExit: the words are none of them, or something is wrong.
    """
    if words == ["check"]:
        check()
    elif len(words) == 2 and words[0] == "prepare":
        prepare(ROOT, words[1], date.today().isoformat())
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])

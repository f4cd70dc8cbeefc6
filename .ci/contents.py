"""What a wheel and an sdist must hold: ``python .ci/contents.py TREE WHEEL SDIST`` prints what is wrong, and fails.

The sdist has every file that git tracks, so that its tests run; the wheel every file of the packages, all licences, and
a README without relative links, whose links name files of the tree.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

MADE = {"PKG-INFO"}
"""Files that a build adds to an sdist."""


def tracked(tree: Path) -> set[str]:
    """The files of a tree: those that git tracks; all, in a tree without git."""
    if (tree / ".git").exists():
        listed = subprocess.run(["git", "-C", str(tree), "ls-files"], check=True, capture_output=True, text=True)
        return {name for name in listed.stdout.splitlines() if (tree / name).is_file()}
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()} - MADE


def faults(tree: Path, wheel: Path, sdist: Path) -> Iterator[str]:
    """What is wrong with the two packages, a line each."""
    files = tracked(tree)
    with tarfile.open(sdist) as archive:
        found = {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()} - MADE
    yield from (f"the sdist lacks {name}" for name in sorted(files - found))
    yield from (f"the sdist has {name}, which git does not track" for name in sorted(found - files))
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name.partition("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(f"{info}/METADATA").decode()
        entries = archive.read(f"{info}/entry_points.txt").decode()
    packages = {name.removeprefix("plugins/") for name in files if name.startswith(("moekit/", "plugins/"))}
    yield from (f"the wheel lacks {name}" for name in sorted(packages - names))
    yield from (f"the wheel has {name}" for name in sorted(names - packages) if not name.startswith(info))
    licences = [name for name in files if Path(name).name in ("LICENSE", "NOTICE") or name.endswith(".LICENSE")]
    of_moekit = [name for name in licences if not name.startswith("examples/")]
    yield from (f"the wheel lacks the licence {n}" for n in of_moekit if f"{info}/licenses/{n}" not in names)
    modules = re.findall(r"^\w+ = (moekit_\w+)$", entries, re.MULTILINE)
    yield from (f"an entry point names {each}" for each in modules if f"{each}/__init__.py" not in names)
    offered = {name.partition("/")[0] for name in names if name.startswith("moekit_")}
    yield from (f"no entry point names {each}" for each in sorted(offered - {*modules}))
    yield from _links(tree, metadata)


def _links(tree: Path, metadata: str) -> Iterator[str]:
    version = re.search(r"^Version: (.+)$", metadata, re.MULTILINE)
    readme = metadata.partition("\n\n")[2]
    targets = re.findall(r"\]\(([^)\s]+)\)", readme) + re.findall(r"\b(?:src|srcset|href)=\"([^\"]+)\"", readme)
    if not targets or version is None:
        yield "the metadata has no README or no version"
        return
    ours = re.compile(
        rf"https://(?:github\.com|raw\.githubusercontent\.com)/moekit/moekit/(?:blob/)?v{version[1]}/(.*)"
    )
    for target in targets:
        if not target.startswith(("https://", "#")):
            yield f"README, as an index shows it, has a relative link: {target}"
        elif (of_tree := ours.fullmatch(target)) and not (tree / of_tree[1].partition("#")[0]).exists():
            yield f"README, as an index shows it, links to a file that is missing: {target}"
    if re.search(r"pip install[^\n]* -e ", readme):
        yield "README, as an index shows it, says pip install -e"


if __name__ == "__main__":
    found = list(faults(*map(Path, sys.argv[1:4])))
    sys.exit("\n".join(found) or None)

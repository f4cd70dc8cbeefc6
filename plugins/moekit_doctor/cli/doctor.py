"""``moekit doctor``: what is installed, what the machine has, and what is wrong or slow."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from moekit.cli import text
from moekit.errors import MoekitError
from moekit.registry import current

if TYPE_CHECKING:
    from moekit_doctor.finding import Finding

RANKS = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE")
"""Variables by which launchers say how many processes a machine gets."""

EXAMPLES = """\
  moekit doctor                     versions, extras, plugins, devices, threads, memory, the runs folder
  moekit doctor --processes 4       are there too many threads for four ranks?
  moekit doctor --out /data/runs    can that folder be written, and how fast?
  moekit doctor --json              for a bug report, or a program

The exit code is 1 if something stops moekit from working (fault), else 0. A note is about speed, or something omitted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--out", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="ranks on this machine (default: what the launcher says, or 1)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Looks at everything and prints it, faults and notes at the end. Returns 1 if there is a fault.

    Raises:
        MoekitError: the number of processes is not positive.
    """
    if args.processes is not None and args.processes < 1:
        raise MoekitError(f"--processes {args.processes}: expected 1 or more")
    processes = args.processes or _ranks()
    from moekit_doctor.software import software

    found = list(software(current()))
    if not any(each.level == "fault" and each.topic == "import torch" for each in found):
        from moekit_doctor.machine import machine

        found += machine(os.environ, processes)
    from moekit_doctor.disk import disk

    found += disk(Path(args.out))
    faults = sum(each.level == "fault" for each in found)
    if args.json:
        print(json.dumps({"faults": faults, "findings": [asdict(each) for each in found]}, indent=2))
    else:
        print("\n".join(lines(found)))
    return int(faults > 0)


def lines(found: list[Finding]) -> list[str]:
    """Everything that was looked at, by area; then faults and notes, each with what to do."""
    shown: list[str] = []
    width = max((len(each.topic) for each in found), default=0)
    for area, group in groupby(found, key=lambda each: each.area):
        rows = [(each.topic, each.value, each.advice if each.level == "ok" else each.level) for each in group]
        shown += [text.bold(area), *text.table(rows, fold=(1,), sizes=[width, *text.columns(rows)[1:]]), ""]
    for level, title in (("fault", "faults"), ("note", "notes")):
        of_level = [each for each in found if each.level == level]
        if of_level:
            shown.append(text.bold(title))
            for each in of_level:
                shown += [f"  {each.topic}: {each.value}", *([f"    {each.advice}"] if each.advice else [])]
            shown.append("")
    if all(each.level == "ok" for each in found):
        shown.append("nothing is wrong")
    return shown


def _ranks() -> int:
    """The processes that a launcher starts on this machine; 1 without one."""
    stated = (os.environ.get(name, "") for name in RANKS)
    return next((int(each) for each in stated if each.isdigit() and int(each) > 0), 1)

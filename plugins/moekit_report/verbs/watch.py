"""``moekit watch``: a run in the terminal while it trains."""

from __future__ import annotations

import argparse

EXAMPLES = """\
  moekit watch deepseek_v3                                the latest run of that name, until it is complete
  moekit watch runs/switch/2026-01-31_12-00-00 --once     print what there is, and end
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, or a name (its latest run)")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between looks (default: 2)")
    parser.add_argument("--once", action="store_true", help="print once and end")
    parser.add_argument("--out", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Shows the run until it is complete, or until Ctrl-C.

    Raises:
        MoekitError: there is no such run, or the interval is not positive.
    """
    import time

    from moekit import run as runs
    from moekit.screen import Screen
    from moekit_report.watching import check_interval, snapshot, view

    check_interval(args.every)
    found = runs.open(args.run, out=args.out)
    screen = Screen()
    seen = snapshot(found)
    if args.once or not screen.is_terminal:
        screen.print(view(seen, screen.width))
        return 0
    from rich.live import Live

    with Live(view(seen, screen.width), console=screen, refresh_per_second=4) as live:
        while not seen.is_complete:
            time.sleep(args.every)
            seen = snapshot(found)
            live.update(view(seen, screen.width))
    return 0

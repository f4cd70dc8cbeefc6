"""``moekit report``: what the experts of a run do, as one HTML file that loads nothing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

EXAMPLES = """\
  moekit report deepseek_v3                               the latest run of that name: report.html in its folder
  moekit report runs/switch/2026-01-31_12-00-00 --to switch.html
  moekit report deepseek_v3 --text mine.txt yours.txt     examine the model with your own text, each file a domain
  moekit report deepseek_v3 data.use=text_files data.path=mine  the same with a folder of texts for each domain
  moekit report deepseek_v3 --no-model                    only what was recorded in training
  moekit report deepseek_v3 --json > routing.json         the same as numbers
  moekit report atlas --pictures docs/images              experts by domains, light and dark, and a text for them
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a checkpoint, or a name (its latest run)")
    parser.add_argument("data", nargs="*", metavar="data.KEY=VALUE", help="options of the data to examine it with")
    parser.add_argument("--to", default="", metavar="FILE", help="where to write (default: report.html in the run)")
    parser.add_argument("--text", nargs="+", default=[], metavar="FILE", help="UTF-8 texts to examine the model with")
    parser.add_argument(
        "--sequences", type=int, default=256, metavar="N", help="sequences to examine at least (default: 256)"
    )
    parser.add_argument("--no-model", action="store_true", help="do not run the model: show what was recorded")
    parser.add_argument("--pictures", default="", metavar="DIR", help="also draw experts by domains, as SVG")
    parser.add_argument("--json", action="store_true", help="print JSON instead of writing a page")
    parser.add_argument("--out", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Writes the page.

    Raises:
        MoekitError: there is no such run, a text cannot be read, an argument is out of range, or matplotlib is missing.
    """
    from moekit.errors import MoekitError
    from moekit.extras import require

    if args.sequences < 1:
        raise MoekitError(f"--sequences {args.sequences}: expected 1 or more")
    given = "--text" if args.text else args.data[0] if args.data else ""
    if given and args.no_model:
        raise MoekitError(f"{given} examines the model, which --no-model forbids\n  expected one of the two")
    if args.text and args.data:
        raise MoekitError(f"--text and {args.data[0]} exclude each other\n  expected one")
    if args.pictures:
        require("plots", "--pictures", "matplotlib")

    from moekit import run as runs
    from moekit.files import replace_text
    from moekit_report.contents import contents
    from moekit_report.page import html_of

    found = runs.open(args.run, out=args.out)
    shown = contents(
        found,
        text=[Path(each) for each in args.text],
        data=args.data,
        sequences=args.sequences,
        model=not args.no_model,
    )
    if args.json:
        print(json.dumps(shown, indent=1))
        return 0
    path = Path(args.to) if args.to else found.path / "report.html"
    page = html_of(shown)
    replace_text(path, page)
    for finding in shown["findings"]:
        print(f"{finding['level']:8}{finding['text']}" + (f"\n        {finding['key']}" if finding["key"] else ""))
    for note in shown["notes"]:
        print(f"{'note':8}{note}")
    if args.pictures:
        from moekit_report.pictures import draw_of

        files, words = draw_of(Path(args.pictures), shown["domains"])
        print(f"wrote {', '.join(map(str, files))}: {words}")
    print(f"wrote {path} ({len(page.encode()) / 1e6:.1f} MB)")
    return 0

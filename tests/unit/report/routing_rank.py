"""Run in every rank by ``test_routing_statistics``: trains a recipe, given as JSON, into a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import moekit


def main(recipe: str, out: str) -> None:
    """Trains it."""
    moekit.train(json.loads(Path(recipe).read_text()), out=out, quiet=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""``moekit config schema``: a JSON schema of recipes with every installed plugin, for editors."""

from __future__ import annotations

import argparse

from moekit.cli import text
from moekit.registry import current
from moekit_testing.schema import recipe_schema

EXAMPLES = """\
  moekit config schema > recipe.schema.json

An editor with yaml-language-server (VS Code's YAML extension, for one) completes and checks a recipe that begins with
  # yaml-language-server: $schema=recipe.schema.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none: the schema is that of every recipe."""


def run(args: argparse.Namespace) -> int:
    """Prints the schema."""
    text.print_json(recipe_schema(current()), indent=1)
    return 0

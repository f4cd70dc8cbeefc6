"""``moekit check``: run the conformance checks of components, and print what became of each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moekit.cli.show import named
from moekit.component import Component
from moekit.errors import MoekitError, Problem, UnknownName, nearest
from moekit.registry import Registry, current

if TYPE_CHECKING:
    from moekit.spec.fields import Spec
    from moekit_testing.running import Result

EXAMPLES = """\
  moekit check router/mine                          every promise of a router and of its claims
  moekit check mine top_k=2 score=sigmoid           with these options
  moekit check --plugin acme                        every component of a plugin
  moekit check mine --only check_padding            one check alone; repeatable
  moekit check --plugin acme --json > checks.json   for machines

The exit code is 1 if a check fails. A check that is known to fail counts as a failure once it passes. Options without
a default are those of the first installed recipe that uses the component. In pytest: moekit_testing.parametrize_checks
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "names", nargs="*", default=[], metavar="NAME|key=value", help="name, kind/name or plugin/name; and options"
    )
    parser.add_argument("--plugin", metavar="NAME", help="every component of this plugin")
    parser.add_argument("--only", action="append", default=[], metavar="CHECK", help="only this check; repeatable")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Runs the checks and prints a table for each example of each component, or JSON. Returns 1 if one failed.

    Raises:
        MoekitError: nothing is named, or there is no such component, plugin, option or check.
    """
    names = [name for name in args.names if "=" not in name]
    options = [name for name in args.names if "=" in name]
    components = components_of(current(), names, args.plugin)
    examples = {} if not options else {_path(c): [_spec(c, options)] for c in _alone(components)}

    from moekit.screen import Screen, status_line
    from moekit_testing import report, running
    from moekit_testing.cases import examples_in_recipes

    _check_only(args.only, components)
    examples = examples or examples_in_recipes(components)
    screen = Screen()
    every: list[Result] = []
    with status_line(Screen(stderr=True)) as watch:
        for component in components:
            found = list(running.results(component, examples=examples, only=args.only, watch=watch))
            every += found
            if not args.json:
                report.show(screen, found)
    if args.json:
        json.dump(report.as_json(every), sys.stdout, indent=2)
        print()
    elif every:
        report.show_summary(screen, every)
    return int(any(result.status == "failed" for result in every))


def components_of(registry: Registry, names: Sequence[str], plugin: str | None) -> list[Component]:
    """The components of these names, and those of the plugin.

    Raises:
        MoekitError: there are none, a name is unknown, or the plugin is.
    """
    found = [c for name in names for c in _named(registry, name)]
    if plugin is not None:
        found += _of_plugin(registry, plugin)
    if not found:
        raise MoekitError("check needs the name of a component, or --plugin NAME\n  list them: moekit ls")
    return list({id(component): component for component in found}.values())


def _named(registry: Registry, name: str) -> list[Component]:
    found = [offer for offer in named(registry, name) if isinstance(offer, Component)]
    if not found:
        what = f"'{name}' is a recipe, and checks are of components\n  check it: moekit config validate {name}"
        raise MoekitError(what)
    return found


def _of_plugin(registry: Registry, name: str) -> list[Component]:
    found = {p.name: p for p in registry.plugins}
    names = {alias: p for p in registry.plugins for alias in (p.module, p.distribution) if alias}
    plugin = found.get(name) or names.get(name)
    if plugin is None:
        what, near = f"no plugin is named '{name}'", nearest(name, [*found, *names])
        raise UnknownName(Problem(what=what, nearest=near, list_with="moekit plugins"))
    if plugin.error is not None:
        raise MoekitError(f"plugin '{name}' failed to load: {plugin.error}\n  traceback: moekit plugins --trace")
    if not plugin.components:
        raise MoekitError(f"plugin '{name}' offers no component, so there is nothing to check\n  see: moekit plugins")
    return list(plugin.components)


def _alone(components: Sequence[Component]) -> Sequence[Component]:
    """One component, to which options can belong.

    Raises:
        MoekitError: there are several.
    """
    if len(components) > 1:
        found = ", ".join(_path(c) for c in components)
        raise MoekitError(f"options belong to one component, and {len(components)} are named: {found}")
    return components


def _spec(component: Component, options: Sequence[str]) -> Spec:
    from moekit.spec.layers import Merged
    from moekit.spec.loading import compose, parse_overrides

    registry = current()
    layers = parse_overrides([f"use={component.full_name}", *options], registry)
    return compose(Merged(registry, layers), component.kind, registry)


def _check_only(only: Sequence[str], components: Sequence[Component]) -> None:
    """Rejects names of checks that none of these kinds has."""
    from moekit_testing.running import names_of_checks

    known = sorted({name for component in components for name in names_of_checks(component.kind)})
    for name in only:
        if name not in known:
            what, near = f"no check of these components is named '{name}'", nearest(name, known)
            raise UnknownName(Problem(what=what, expected="" if near else f"one of {', '.join(known)}", nearest=near))


def _path(component: Component) -> str:
    return f"{component.kind}/{component.name}"

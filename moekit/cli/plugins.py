"""``moekit plugins``: list the installed plugins, what they offer, and why some cannot be used."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator

from moekit.cli import text
from moekit.errors import PluginError
from moekit.plugin import Plugin
from moekit.registry import Registry, current

SLOW = 1.0  # seconds of a plugin's import that are worth a note
EXAMPLES = """\
  moekit plugins                                      the exit code is 1 if one failed
  moekit plugins --trace                              with the tracebacks of those that failed
  MOEKIT_DISABLE_PLUGINS=acme moekit plugins          with one disabled
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--trace", action="store_true", help="print the traceback of each plugin that failed")


def run(args: argparse.Namespace) -> int:
    """Prints a table of plugins, then the failures. Returns 1 if there are any."""
    registry = current()
    header = ("plugin", "package", "API", "offers")
    rows = [
        header,
        *((p.name, p.origin, "-" if p.api is None else str(p.api), offers(registry, p)) for p in registry.plugins),
    ]
    head, *lines = text.table(rows, indent=0)
    print("\n".join([text.bold(head), *lines]))
    for plugin in registry.failed:
        print(f"\n{text.bold(f'{plugin.name} failed')}: {plugin.error}")
        if args.trace:
            print("\n".join(f"  {line}" for line in plugin.trace.rstrip().splitlines()))
    broken = list(_broken_specs(registry))
    slow = [p for p in registry.plugins if p.seconds > SLOW]
    torch = [p for p in registry.plugins if p.imports_torch]
    lines = [f"{text.bold(f'{plugin.name} is incomplete')}: {error}" for plugin, error in broken]
    lines += [f"note: importing {p.name} ({p.module}) takes {p.seconds:.1f} s, which slows every command" for p in slow]
    lines += [f"note: {p.name} ({p.module}) imports torch when plugins are listed: name its classes" for p in torch]
    print("".join(f"\n{line}\n" for line in lines), end="")
    if registry.failed and not args.trace:
        print("\ntracebacks: moekit plugins --trace")
    if registry.disabled:
        print(f"\ndisabled by MOEKIT_DISABLE_PLUGINS: {', '.join(registry.disabled)}")
    return 1 if registry.failed or broken else 0


def _broken_specs(registry: Registry) -> Iterator[tuple[Plugin, PluginError]]:
    """The plugins with a component whose spec cannot be imported or is invalid; each with the first such error."""
    for plugin in registry.plugins:
        try:
            for component in plugin.components:
                _ = component.spec_class
        except PluginError as error:
            yield plugin, error


def offers(registry: Registry, plugin: Plugin) -> str:
    """What a plugin offers, counted: ``7 balancers, 1 verb``."""
    if plugin.error is not None:
        return "failed"
    counts = Counter(component.kind for component in plugin.components)
    plurals = {kind.name: kind.plural for kind in registry.kinds.values()}
    words = [f"{counts[kind]} {kind if counts[kind] == 1 else plurals[kind]}" for kind in plurals if counts[kind]]
    others = {
        "kind": plugin.kinds,
        "recipe": plugin.recipes,
        "verb": plugin.verbs,
        "resolver": plugin.resolvers,
        "hook": plugin.hooks,
    }
    words += [f"{len(some)} {what}{'' if len(some) == 1 else 's'}" for what, some in others.items() if some]
    return ", ".join(words) or "nothing"

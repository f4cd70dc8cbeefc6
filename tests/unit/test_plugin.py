"""Plugins found, loaded, checked. Each broken one is a package on the path with its dist-info, and harms none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from moekit.discovery import installed
from moekit.errors import PluginError
from moekit.plugin import Plugin, load_plugin
from moekit.registry import Registry, discover

GOOD = """
from dataclasses import dataclass
from moekit import Component, hookimpl
from moekit.spec.kinds import BalancerSpec, RouterSpec

MOEKIT_API = 1

@dataclass(frozen=True, kw_only=True)
class Mine(RouterSpec):
    pass

@dataclass(frozen=True, kw_only=True)
class Even(BalancerSpec):
    pass

def mine(**changes):
    return Component(**{"name": "mine", "spec": Mine, "target": "nowhere.at_all:Mine", "summary": "mine", **changes})
"""
HOOK = """
@hookimpl
def moekit_routers():
    return [mine()]
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a fake distribution: a module and a dist-info whose entry point names it."""
    before = set(sys.modules)
    monkeypatch.delenv("MOEKIT_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("MOEKIT_STRICT_PLUGINS", raising=False)

    def make(
        source: str, *, plugin: str = "acme", dist: str = "acme-moe", version: str = "1.2", module: str = ""
    ) -> None:
        module = module or f"{dist.replace('-', '_')}_plugin"
        site = tmp_path / dist
        info = site / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[moekit]\n{plugin} = {module}\n")
        monkeypatch.syspath_prepend(site)

    yield make
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def found(name: str = "acme") -> Plugin:
    return next(p for p in installed() if p.name == name)


def test_a_plugin_is_found_by_its_entry_point(install: Install) -> None:
    install(GOOD + HOOK)
    plugin = found()
    assert (plugin.error, plugin.trace, plugin.api) == (None, "", 1)
    assert (plugin.distribution, plugin.version, plugin.module) == ("acme-moe", "1.2", "acme_moe_plugin")
    assert plugin.origin == "acme-moe 1.2"
    assert [c.full_name for c in plugin.components] == ["acme/mine"]
    assert Registry([plugin]).names("router") == ["mine"]


def test_first_party_plugins_come_by_the_same_way() -> None:
    plugins = {p.name: p for p in installed()}
    assert {"routers", "experts", "dispatchers", "balancers", "models", "objectives", "data", "papers"} <= set(plugins)
    assert {p.distribution for p in plugins.values()} >= {"moekit"}


BROKEN = {
    "import": ("import no_such_kernel", "ModuleNotFoundError: No module named 'no_such_kernel'"),
    "syntax": ("def (", "SyntaxError: invalid syntax (acme_moe_plugin.py, line 1)"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "no api": (
        (GOOD + HOOK).replace("MOEKIT_API = 1", ""),
        "states no MOEKIT_API; this moekit supports API 1: MOEKIT_API = 1",
    ),
    "other api": (
        (GOOD + HOOK).replace("MOEKIT_API = 1", "MOEKIT_API = 7"),
        "was written for plugin API 7; this moekit supports API 1: MOEKIT_API = 1",
    ),
    "argument": (
        GOOD + HOOK.replace("()", "(config)", 1),
        "hookimpl definition: moekit_routers(config) "
        "Argument(s) {'config'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "misspelt": (
        GOOD + HOOK.replace("moekit_routers", "moekit_router"),
        "unknown hook 'moekit_router'; did you mean 'moekit_routers'?",
    ),
    "unknown hook": (
        GOOD + HOOK.replace("moekit_routers", "moekit_zzzzzz"),
        "unknown hook 'moekit_zzzzzz'; hooks are moekit_routers, moekit_experts, moekit_dispatchers, moekit_balancers, "
        "moekit_attention, moekit_models, moekit_objectives, moekit_data, moekit_optimizers, moekit_schedules, "
        "moekit_recipes",
    ),
    "unmarked": (
        GOOD + HOOK.replace("@hookimpl", ""),
        "'moekit_routers' is not marked; write @moekit.hookimpl above it",
    ),
    "hook raises": (
        GOOD + HOOK.replace("return [mine()]", "return 1 / 0"),
        "hook moekit_routers raised ZeroDivisionError: division by zero",
    ),
    "generator raises": (
        GOOD + HOOK.replace("return [mine()]", "yield mine(); yield 1 / 0"),
        "hook moekit_routers raised ZeroDivisionError: division by zero",
    ),
    "no return": (
        GOOD + HOOK.replace("return [mine()]", "mine()"),
        "hook moekit_routers returned None; expected a list of Component",
    ),
    "no list": (
        GOOD + HOOK.replace("return [mine()]", "return mine()"),
        "hook moekit_routers raised TypeError: 'Component' object is not iterable",
    ),
    "no component": (
        GOOD + HOOK.replace("mine()]", "'mine']"),
        "hook moekit_routers: expected Component, got str",
    ),
    "other kind": (
        GOOD + HOOK.replace("mine()]", "mine(spec=Even)]"),
        "hook moekit_routers, component 'mine': its spec must be a subclass of RouterSpec, got Even",
    ),
    "no spec class": (
        GOOD + HOOK.replace("mine()]", "mine(spec='Mine')]"),
        "hook moekit_routers, component 'mine': its spec must be a subclass of RouterSpec, got 'Mine'",
    ),
    "undecorated spec": (
        GOOD + "class Bare(RouterSpec): pass\n" + HOOK.replace("mine()]", "mine(spec=Bare)]"),
        "hook moekit_routers, component 'mine': write @dataclass(frozen=True, kw_only=True) above its spec Bare",
    ),
    "undeclared option": (
        GOOD
        + "@dataclass(frozen=True, kw_only=True)\nclass Bare(Mine):\n    draws: int = 1\n"
        + HOOK.replace("mine()]", "mine(spec=Bare)]"),
        "hook moekit_routers, component 'mine': Bare.draws: declare it with option(), slot(), slots() or group()",
    ),
    "target": (
        GOOD + HOOK.replace("mine()]", "mine(target='my_package.router.MyRouter')]"),
        "hook moekit_routers, component 'mine': its target must be 'package.module:Class' or a class, "
        "got 'my_package.router.MyRouter'",
    ),
    "name": (
        GOOD + HOOK.replace("mine()]", "mine(name='my/router')]"),
        "hook moekit_routers, component 'my/router': a name is made of letters, digits, '_', '-' and '.'",
    ),
    "twice": (
        GOOD
        + "@dataclass(frozen=True, kw_only=True)\nclass Second(RouterSpec): pass\n"
        + HOOK.replace("mine()]", "mine(), mine(spec=Second)]"),
        "offers router 'mine' twice",
    ),
    "one spec for two": (
        GOOD + HOOK.replace("mine()]", "mine(), mine(name='again')]"),
        "router 'again' has the spec class Mine of router 'acme/mine'; each needs its own",
    ),
}


@pytest.mark.parametrize(("source", "why"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_kept_with_its_reason_and_stops_nothing(source: str, why: str, install: Install) -> None:
    install(source)
    registry = discover()
    (plugin,) = registry.failed
    assert plugin.error == why
    assert (plugin.name, plugin.origin, plugin.components) == ("acme", "acme-moe 1.2", ())
    assert plugin.trace.startswith("Traceback (most recent call last):")
    assert why.split(":")[0].split()[0] in plugin.trace
    assert {p.name for p in registry.plugins if p.error is None} >= {"routers", "papers"}


@pytest.mark.parametrize(("source", "why"), BROKEN.values(), ids=BROKEN)
def test_a_strict_registry_raises_at_once(
    source: str, why: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(source)
    monkeypatch.setenv("MOEKIT_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match="cannot be used") as error:
        discover()
    assert str(error.value) == f"plugin 'acme' (acme-moe 1.2) cannot be used: {why}"
    assert error.value.__cause__ is not None


def test_the_api_that_a_refused_plugin_states_is_known(install: Install) -> None:
    install((GOOD + HOOK).replace("MOEKIT_API = 1", "MOEKIT_API = 7"))
    assert found().api == 7


def test_strict_zero_is_not_strict(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("import no_such_kernel")
    monkeypatch.setenv("MOEKIT_STRICT_PLUGINS", "0")
    assert [p.name for p in discover().failed] == ["acme"]


def test_a_disabled_plugin_is_not_even_imported(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("raise RuntimeError")
    monkeypatch.setenv("MOEKIT_DISABLE_PLUGINS", " acme, gone,")
    registry = discover()
    assert not registry.failed
    assert registry.disabled == ("acme", "gone")
    assert "acme" not in {p.name for p in registry.plugins}


def test_a_lazy_target_that_does_not_import_stops_neither_listing_nor_its_spec(install: Install) -> None:
    install(GOOD + HOOK)
    component = found().components[0]
    assert component.spec() == component.spec()
    with pytest.raises(PluginError, match="cannot import its target") as error:
        component.load()
    assert str(error.value) == (
        "router 'acme/mine': cannot import its target 'nowhere.at_all:Mine'\n"
        "  ModuleNotFoundError: No module named 'nowhere'"
    )


def test_an_optional_hook_of_a_later_moekit_is_left_alone(install: Install) -> None:
    install(GOOD + HOOK + "\n@hookimpl(optionalhook=True)\ndef moekit_tokenizers():\n    return []\n")
    assert found().error is None


def test_two_distributions_cannot_share_a_plugin_name(install: Install) -> None:
    install(GOOD + HOOK, dist="zeta")
    install(GOOD + HOOK, dist="beta", version="0.3.1")
    first, second = (p for p in installed() if p.name == "acme")
    assert (first.origin, first.error) == ("beta 0.3.1", None)
    assert (second.origin, second.error) == ("zeta 1.2", "the name is taken by beta 0.3.1; uninstall it, or rename one")


def test_nobody_takes_the_name_of_a_first_party_plugin(install: Install) -> None:
    install(GOOD + HOOK, plugin="routers", dist="aaa")
    first, second = (p for p in installed() if p.name == "routers")
    assert (first.distribution, first.error) == ("moekit", None)
    assert (second.origin, second.components) == ("aaa 1.2", ())


BORROWED = """
from moekit import Component, hookimpl
from acme_moe_plugin import Mine

MOEKIT_API = 1

@hookimpl
def moekit_routers():
    return [Component(name="borrowed", spec=Mine, target="nowhere:Other", summary="another's options")]
"""


@pytest.mark.parametrize("borrower", ["aaa", "zzz"])
def test_a_borrowed_spec_class_stays_with_its_owner(borrower: str, install: Install) -> None:
    install(GOOD + HOOK)
    install(BORROWED, plugin=borrower, dist=borrower)
    assert found("acme").error is None
    assert found(borrower).error == (
        "router 'borrowed' has the spec class Mine of router 'acme/mine' (acme-moe 1.2); each needs its own"
    )


def test_load_plugin_names_the_plugin_and_keeps_the_cause() -> None:
    class empty:
        pass

    with pytest.raises(PluginError, match="states no MOEKIT_API") as error:
        load_plugin("empty", empty)
    assert str(error.value) == ("plugin 'empty': states no MOEKIT_API; this moekit supports API 1: MOEKIT_API = 1")


def test_where_a_plugin_comes_from() -> None:
    assert Plugin(name="acme", module="acme_moe").origin == "acme_moe"
    assert Plugin(name="acme", module="acme_moe", distribution="acme", version="1.0").origin == "acme 1.0"

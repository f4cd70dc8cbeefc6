"""Plugins are found by their entry points; one that fails is kept with its error and does not stop the others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_plugins
import pytest
from fake_plugins import KINDS
from pages import whole

from moekit.discovery import installed
from moekit.errors import PluginError
from moekit.plugin import Plugin
from moekit.registry import Registry, discover

GOOD = """
from dataclasses import dataclass
from moekit import Component, RouterSpec, hookimpl

MOEKIT_API = 2

class Mine(RouterSpec): pass

@hookimpl
def moekit_components():
    return [Component(name="mine", spec=Mine, target="nowhere.at_all:Mine", summary="mine")]
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with a plugin on the path, for one test."""
    before = set(sys.modules)
    monkeypatch.delenv("MOEKIT_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("MOEKIT_STRICT_PLUGINS", raising=False)

    def make(source: str, plugin: str = "acme", distribution: str = "acme-moe", version: str = "1.2") -> None:
        fake_plugins.install(tmp_path / distribution, plugin, source, distribution=distribution, version=version)
        monkeypatch.syspath_prepend(tmp_path / distribution)

    yield make
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def found(name: str = "acme") -> Plugin:
    return next(p for p in installed() if p.name == name)


def test_a_plugin_is_found_by_its_entry_point(install: Install) -> None:
    install(GOOD)
    plugin = found()
    assert (plugin.error, plugin.trace, plugin.api) == (None, "", 2)
    assert (plugin.distribution, plugin.version, plugin.module) == ("acme-moe", "1.2", "acme_moe_plugin")
    assert plugin.origin == "acme-moe 1.2"
    assert [c.full_name for c in plugin.components] == ["acme/mine"]
    assert Registry([KINDS, plugin]).names("router") == ["mine"]


def test_first_party_plugins_are_found_by_their_entry_points() -> None:
    plugins = {p.name: p for p in installed()}
    assert {"routers", "experts", "dispatchers", "balancers", "models", "objectives", "data", "papers"} <= set(plugins)
    assert {p.distribution for p in plugins.values()} >= {"moekit"}


@pytest.mark.parametrize(
    ("source", "why", "api"),
    [
        ("import no_such_kernel", "ModuleNotFoundError: No module named 'no_such_kernel'", None),
        ("def (", "SyntaxError: invalid syntax (acme_moe_plugin.py, line 1)", None),
        ("raise SystemExit(3)", "SystemExit: 3", None),
        ("class Odd(BaseException): pass\nraise Odd('no error')", "Odd: no error", None),
        ("MOEKIT_API = 7", "was written for plugin API 7; this moekit supports API 2: MOEKIT_API = 2", 7),
    ],
)
def test_a_broken_plugin_is_kept_with_its_error_and_stops_no_other_unless_strict(
    source: str, why: str, api: int | None, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(source)
    registry = discover()
    (plugin,) = registry.failed
    assert (plugin.name, plugin.origin, plugin.components) == ("acme", "acme-moe 1.2", ())
    assert (plugin.error, plugin.api) == (why, api)
    assert plugin.trace.startswith("Traceback (most recent call last):")
    assert why.split(":")[0].split()[0] in plugin.trace
    assert {p.name for p in registry.plugins if p.error is None} >= {"routers", "papers"}
    monkeypatch.setenv("MOEKIT_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match=whole(f"plugin 'acme' (acme-moe 1.2) cannot be used: {why}")) as error:
        discover()
    assert error.value.__cause__ is not None


def test_the_value_0_is_not_strict(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_target_that_cannot_be_imported_fails_only_when_loaded(install: Install) -> None:
    install(GOOD)
    component = found().components[0]
    assert component.spec_class() == component.spec_class()
    message = (
        "router 'acme/mine': cannot import its target 'nowhere.at_all:Mine'\n"
        "  ModuleNotFoundError: No module named 'nowhere'"
    )
    with pytest.raises(PluginError, match=whole(message)):
        component.load()


def test_two_distributions_cannot_share_a_plugin_name(install: Install) -> None:
    install(GOOD, distribution="zeta")
    install(GOOD, distribution="beta", version="0.3.1")
    first, second = (p for p in installed() if p.name == "acme")
    assert (first.origin, first.error) == ("beta 0.3.1", None)
    assert (second.origin, second.error) == ("zeta 1.2", "the name is taken by beta 0.3.1; uninstall it, or rename one")


def test_the_name_of_a_first_party_plugin_cannot_be_taken(install: Install) -> None:
    install(GOOD, plugin="routers", distribution="aaa")
    first, second = (p for p in installed() if p.name == "routers")
    assert (first.distribution, first.error) == ("moekit", None)
    assert (second.origin, second.components) == ("aaa 1.2", ())


BORROWED = """
from moekit import Component, hookimpl
from acme_moe_plugin import Mine

MOEKIT_API = 2

@hookimpl
def moekit_components():
    return [Component(name="borrowed", spec=Mine, target="nowhere:Other", summary="another's options")]
"""


@pytest.mark.parametrize("borrower", ["aaa", "zzz"])
def test_a_spec_class_stays_with_the_package_that_defines_it(borrower: str, install: Install) -> None:
    install(GOOD)
    install(BORROWED, plugin=borrower, distribution=borrower)
    assert found("acme").error is None
    assert found(borrower).error == (
        "router 'borrowed' has the spec class Mine of router 'acme/mine' (acme-moe 1.2); each needs its own"
    )


def test_a_verb_of_moekits_own_cannot_be_taken(install: Install) -> None:
    install(
        "from moekit import Verb, hookimpl\n"
        "MOEKIT_API = 2\n"
        "@hookimpl\n"
        "def moekit_verbs(): return [Verb(name=name, target='acme', summary='') for name in ('score', 'train')]\n"
    )
    plugin = found()
    assert plugin.error == "verb 'train' is one of moekit's own; give it another name"
    assert (plugin.origin, plugin.verbs) == ("acme-moe 1.2", ())


def test_an_entry_point_that_names_no_module_is_reported(install: Install, tmp_path: Path) -> None:
    install(GOOD)
    (tmp_path / "acme-moe" / "acme_moe-1.2.dist-info" / "entry_points.txt").write_text("[moekit]\nacme = ??\n")
    assert found().error == "its entry point is '??'; expected the name of a module"


def test_what_a_plugin_prints_at_import_goes_to_stderr(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(f"print('hello')\n{GOOD}")
    assert found().error is None
    assert capsys.readouterr() == ("", "hello\n")


def test_a_plugin_that_imports_torch_is_marked(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    install(f"import sys\nsys.modules['torch'] = sys\n{GOOD}")
    plugin = found()
    assert (plugin.error, plugin.imports_torch, plugin.seconds > 0) == (None, True, True)


KIND = """
from moekit import Component, Spec, hookimpl
from moekit.component import Kind

MOEKIT_API = 2

class RewardSpec(Spec):
    kind = "reward"

@hookimpl
def moekit_kinds():
    return [Kind(name="reward", spec=RewardSpec)]
"""


def test_the_name_of_a_kind_belongs_to_the_first_plugin(install: Install) -> None:
    install(KIND, plugin="acme", distribution="acme")
    install(KIND, plugin="beta", distribution="beta")
    assert found("acme").error is None
    assert found("beta").error == "kind 'reward' is offered by plugin 'acme' already"


def test_a_component_of_an_unknown_kind_fails_its_plugin(install: Install) -> None:
    install(GOOD.replace('Component(name="mine", spec=Mine', 'Component(kind="ruoter", name="mine", spec="a.b:Mine"'))
    assert found().error == "component 'mine': unknown kind 'ruoter'; did you mean 'router'?"

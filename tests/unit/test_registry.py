"""The registry: names, namesakes, unknown names, building, and temporary plugins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from fake_plugins import KINDS, module, plugin
from pages import cases, whole

from moekit import hookspecs, registry
from moekit.component import Component, RecipeFile
from moekit.errors import PluginError, UnknownName
from moekit.hookspecs import hookimpl
from moekit.plugin import HOOKS, Plugin
from moekit.registry import Registry, current, temporary
from moekit.spec.fields import option
from moekit.spec.kinds import RouterSpec


class Hash(RouterSpec):
    seed: int = option(0, "seed of the hash")


class OtherHash(RouterSpec):
    buckets: int = option(8, "buckets")


class Unregistered(RouterSpec):
    pass


class Built:
    """A target that keeps its arguments."""

    def __init__(self, spec: RouterSpec, *context: object) -> None:
        self.spec, self.context = spec, context


def router(name: str, spec: type[RouterSpec]) -> Component:
    return Component(name=name, spec=spec, target=Built, summary=f"the router {name}")


HASH = router("hash", Hash)
ACME = plugin("acme", "acme-moe", "1.2", components=[HASH])
BETA = plugin("beta", "beta", "0.3.1", components=[router("hash", OtherHash)])
RECIPES = [RecipeFile(name=f"r{n}", path=Path("r.yaml")) for n in range(21)]
BROKEN = Plugin(name="broken", module="b", distribution="broken-moe", version="2.0", error="ImportError: no triton")


def test_a_component_is_found_by_its_name_and_by_its_plugin() -> None:
    both = Registry([KINDS, ACME])
    assert both.get("router", "hash") is both.get("router", "acme/hash") is both.get("routers", "hash")
    assert both.names("router") == ["hash"]
    assert [c.full_name for c in both.components("router")] == ["acme/hash"]
    assert both.names("balancer") == []


def test_a_plugin_and_a_name_choose_among_namesakes() -> None:
    both = Registry([KINDS, ACME, BETA])
    assert both.get("router", "acme/hash").spec_class is Hash
    assert both.get("router", "beta/hash").spec_class is OtherHash
    assert both.use_name(Hash()) == "acme/hash"
    assert Registry([KINDS, ACME]).use_name(Hash()) == "hash"


MISTAKES = """
$ router/hash  # a name that two plugins offer
router 'hash' is offered by 2 plugins: acme/hash (acme-moe 1.2), beta/hash (beta 0.3.1)
  expected 'acme/hash' or 'beta/hash'
  list them: moekit plugins

$ router/hahs  # an unknown name
unknown router 'hahs' (installed: hash)
  did you mean 'hash'?
  list them: moekit ls routers
  note: plugin 'broken' failed to load (ImportError: no triton); see: moekit plugins
  note: MOEKIT_DISABLE_PLUGINS disables delta, gamma

$ router/acme/hahs  # an unknown name in a known plugin
unknown router 'acme/hahs' (installed: hash)
  did you mean 'acme/hash'?
  list them: moekit ls routers
  note: plugin 'broken' failed to load (ImportError: no triton); see: moekit plugins
  note: MOEKIT_DISABLE_PLUGINS disables delta, gamma

$ recipe/r_3  # an unknown name among many
unknown recipe 'r_3' (installed: 21 recipes)
  did you mean 'r3'?
  list them: moekit ls recipes
  note: plugin 'broken' failed to load (ImportError: no triton); see: moekit plugins
  note: MOEKIT_DISABLE_PLUGINS disables delta, gamma

$ balancer/nothing  # an unknown name where there is none
unknown balancer 'nothing' (installed: none)
  list them: moekit ls balancers
  note: plugin 'broken' failed to load (ImportError: no triton); see: moekit plugins
  note: MOEKIT_DISABLE_PLUGINS disables delta, gamma

$ router/broken/topk  # a name in a plugin that failed
router 'broken/topk' cannot be used: plugin 'broken' (broken-moe 2.0) failed to load
  ImportError: no triton
  see: moekit plugins

$ ruoter/hash  # an unknown kind
unknown kind 'ruoter' (kinds: routers, experts, dispatchers, balancers, attention, models, objectives, data, \
tokenizers, evaluators, exporters, converters, optimizers, schedules, callbacks, loggers, strategies)
  did you mean 'router'?
  list them: moekit ls
"""


@cases(MISTAKES)
def test_a_name_that_means_no_single_component_is_reported(given: str, expected: str) -> None:
    plugins = [KINDS, ACME, BETA, plugin("papers", recipes=RECIPES), BROKEN]
    with pytest.raises((UnknownName, PluginError), match=whole(expected)):
        kind, name = given.split("/", 1)
        registry = Registry(plugins, disabled=["gamma", "delta"])
        registry.recipe(name) if kind == "recipe" else registry.get(kind, name)


def test_a_recipe_may_have_a_folder_in_its_name() -> None:
    recipe = RecipeFile(name="base/small", path=Path("/somewhere/base/small.yaml"))
    found = Registry([plugin("papers", recipes=[recipe])])
    assert found.recipe("base/small") is found.recipe("papers/base/small")


def test_a_kind_is_named_in_the_singular_or_plural() -> None:
    registry = Registry([KINDS])
    assert len(registry.kinds) >= 10
    for name, kind in registry.kinds.items():
        assert registry.kind(name) is registry.kind(kind.plural) is kind


def test_a_component_is_built_by_the_class_of_its_spec() -> None:
    spec = OtherHash(buckets=4)
    built = Registry([KINDS, ACME, BETA]).build(spec, "dims", 3)
    assert isinstance(built, Built)
    assert built.spec is spec
    assert built.context == ("dims", 3)


def test_a_spec_that_no_plugin_registered_cannot_be_built() -> None:
    message = "no plugin registered a component with the spec class Unregistered; see: moekit plugins"
    with pytest.raises(PluginError, match=whole(message)):
        Registry([KINDS, ACME]).build(Unregistered())


def test_an_exception_of_a_target_names_its_component() -> None:
    class Broken:
        def __init__(self, spec: RouterSpec) -> None:
            raise ZeroDivisionError("nothing to divide by")

    failing = plugin("acme", components=[Component(name="hash", spec=Hash, target=Broken, summary="breaks")])
    with pytest.raises(ZeroDivisionError, match="nothing to divide by") as caught:
        Registry([KINDS, failing]).build(Hash())
    assert caught.value.__notes__ == ["while building router 'acme/hash'"]


def test_temporary_adds_a_plugin_for_a_block() -> None:
    before = current()
    with temporary(module("acme_moe", components=[HASH])) as during:
        assert current() is during
        assert during.get("router", "acme_moe/hash").spec_class is Hash
        assert isinstance(registry.build(Hash()), Built)
        assert len(during.components("router")) == len(before.components("router")) + 1
    assert current() is before


def test_temporary_takes_a_class_with_static_hooks() -> None:
    class acme:
        MOEKIT_API = 2

        @staticmethod
        @hookimpl
        def moekit_components() -> list[Component]:
            return [HASH]

    with temporary(acme) as during:
        assert during.get("router", "acme/hash").target is Built


def test_temporary_blocks_nest() -> None:
    outermost = current()
    with temporary(module("acme", components=[HASH])) as outer:
        with temporary(module("beta", components=[router("other", OtherHash)])) as inner:
            assert {"hash", "other"} <= set(inner.names("router"))
        assert current() is outer
        assert "other" not in outer.names("router")
    assert current() is outermost


def test_temporary_is_undone_by_an_exception() -> None:
    before = current()
    with pytest.raises(RuntimeError, match="inside"), temporary(module("acme", components=[HASH])):
        raise RuntimeError("inside")
    assert current() is before


def test_temporary_changes_nothing_if_a_plugin_is_rejected() -> None:
    before = current()
    with pytest.raises(PluginError, match="states no MOEKIT_API"), temporary(ModuleType("empty")):
        pass
    assert current() is before


def test_temporary_rejects_a_name_or_spec_class_that_is_taken() -> None:
    taken = "plugin 'beta': router 'mine' has the spec class Hash of router 'acme/hash' (acme); each needs its own"
    for rejected, message in (
        (module("acme"), "plugin 'acme': the name is taken by acme; uninstall it, or rename one"),
        (module("beta", components=[router("mine", Hash)]), taken),
    ):
        with (
            temporary(module("acme", components=[HASH])),
            pytest.raises(PluginError, match=whole(message)),
            temporary(rejected),
        ):
            pass


def test_every_installed_component_is_found_by_its_full_name() -> None:
    installed = current()
    assert not installed.failed
    for component in installed.components():
        assert installed.get(component.kind, component.full_name) is component
        assert installed.component_of(component.spec_class.__new__(component.spec_class)) is component


def test_every_hook_is_documented() -> None:
    assert len(HOOKS) == 11
    assert all(getattr(hookspecs, hook).__doc__ for hook in HOOKS)


def test_a_short_name_in_a_recipe_means_a_plugin_of_its_own_package_first() -> None:
    companion = plugin("acme_recipes", "acme-moe", "1.2")
    both = Registry([KINDS, ACME, BETA, companion])
    assert both.companions("acme_recipes") == {"acme", "acme_recipes"}
    assert both.get("router", "hash", home="acme_recipes").plugin == "acme"
    assert both.get("router", "hash", home="beta").plugin == "beta"
    with pytest.raises(UnknownName, match="is offered by 2 plugins"):
        both.get("router", "hash", home="papers")


def test_a_default_is_claimed_by_one_component() -> None:
    claims = [replace(router("hash", Hash), default=True), replace(router("other", OtherHash), default=True)]
    assert Registry([KINDS, ACME]).default("router") is None
    one = Registry([KINDS, plugin("acme", components=claims[:1])])
    assert one.default("routers") is one.get("router", "hash")
    with pytest.raises(UnknownName, match=r"2 routers claim to be the default: acme/hash .*, acme/other .*; name one"):
        Registry([KINDS, plugin("acme", components=claims)]).default("router")


def test_building_something_else_says_what_a_spec_is() -> None:
    with pytest.raises(PluginError, match=r"'topk' is of class str, not a spec; build takes a spec such as TopK"):
        Registry([KINDS, ACME]).build("topk")

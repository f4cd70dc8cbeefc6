"""The registry by name: snapshots, namesakes, unknown names, building, and plugins for the length of a block."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import ModuleType

import pytest

from moekit import registry
from moekit.component import Component
from moekit.errors import PluginError, UnknownName
from moekit.hookspecs import hookimpl
from moekit.plugin import Plugin, load_plugin
from moekit.registry import Registry, current, kind_named, temporary
from moekit.spec.fields import option
from moekit.spec.kinds import BalancerSpec, RouterSpec
from moekit.spec.recipe import KINDS, Recipe, plural


@dataclass(frozen=True, kw_only=True)
class Hash(RouterSpec):
    seed: int = option(0, "seed of the hash")


@dataclass(frozen=True, kw_only=True)
class OtherHash(RouterSpec):
    buckets: int = option(8, "buckets")


@dataclass(frozen=True, kw_only=True)
class Unregistered(RouterSpec):
    pass


class Built:
    """What a target builds: it keeps what it was given."""

    def __init__(self, spec: RouterSpec, *context: object) -> None:
        self.spec, self.context = spec, context


def router(name: str, spec: type[RouterSpec]) -> Component:
    return Component(name=name, spec=spec, target=Built, summary=f"the router {name}")


def module(name: str, *components: Component) -> ModuleType:
    """A plugin module that offers routers."""
    made = ModuleType(name)
    made.MOEKIT_API = 1  # type: ignore[attr-defined]
    made.moekit_routers = hookimpl(lambda: list(components))  # type: ignore[attr-defined]
    return made


ACME = load_plugin("acme", module("acme_moe", router("hash", Hash)), distribution="acme-moe", version="1.2")
BETA = load_plugin("beta", module("beta_moe", router("hash", OtherHash)), distribution="beta", version="0.3.1")
BROKEN = Plugin(
    name="broken", module="broken_moe", distribution="broken-moe", version="2.0", error="ModuleNotFoundError: no triton"
)


def message(error: pytest.ExceptionInfo[Exception]) -> str:
    return str(error.value)


def test_a_component_is_found_by_its_name_and_by_its_plugin() -> None:
    both = Registry([ACME])
    assert both.get("router", "hash") is both.get("router", "acme/hash") is both.get("routers", "hash")
    assert both.names("router") == ["hash"]
    assert [c.full_name for c in both.components("router")] == ["acme/hash"]
    assert both.names("balancer") == []


def test_namesakes_fail_only_when_their_name_is_used() -> None:
    both = Registry([ACME, BETA])
    with pytest.raises(UnknownName, match="is offered by 2 plugins") as error:
        both.get("router", "hash")
    assert message(error) == (
        "router 'hash' is offered by 2 plugins: acme/hash (acme-moe 1.2), beta/hash (beta 0.3.1)\n"
        "  expected 'acme/hash' or 'beta/hash'\n"
        "  list them: moekit plugins"
    )


def test_plugin_and_name_choose_among_namesakes() -> None:
    both = Registry([ACME, BETA])
    assert both.get("router", "acme/hash").spec is Hash
    assert both.get("router", "beta/hash").spec is OtherHash
    assert both.use_name(Hash()) == "acme/hash"
    assert Registry([ACME]).use_name(Hash()) == "hash"


def test_an_unknown_name_lists_choices_and_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown router") as error:
        Registry([ACME]).get("router", "hahs")
    assert message(error) == (
        "unknown router 'hahs' (installed: hash)\n  did you mean 'hash'?\n  list them: moekit ls routers"
    )


def test_too_many_names_are_counted() -> None:
    many = tuple(Component(name=f"r{n}", spec=Recipe, target="r.yaml", summary="", plugin="big") for n in range(21))
    with pytest.raises(UnknownName, match="unknown recipe") as error:
        Registry([Plugin(name="big", module="big", components=many)]).get("recipe", "r_3")
    assert message(error) == (
        "unknown recipe 'r_3' (installed: 21 recipes)\n  did you mean 'r3'?\n  list them: moekit ls recipes"
    )


def test_an_unknown_name_in_a_known_plugin_is_answered_by_full_name() -> None:
    with pytest.raises(UnknownName, match="unknown router") as error:
        Registry([ACME]).get("router", "acme/hahs")
    assert message(error) == (
        "unknown router 'acme/hahs' (installed: hash)\n  did you mean 'acme/hash'?\n  list them: moekit ls routers"
    )


def test_an_unknown_name_names_the_plugins_that_failed_and_those_left_out() -> None:
    with pytest.raises(UnknownName, match="unknown router") as error:
        Registry([BROKEN], disabled=["delta", "beta"]).get("router", "topk")
    assert message(error) == (
        "unknown router 'topk' (installed: none)\n"
        "  list them: moekit ls routers\n"
        "  note: plugin 'broken' failed to load (ModuleNotFoundError: no triton); see: moekit plugins\n"
        "  note: MOEKIT_DISABLE_PLUGINS disables beta, delta"
    )


def test_asking_a_failed_plugin_for_a_component_says_why_it_failed() -> None:
    with pytest.raises(PluginError, match="failed to load") as error:
        Registry([ACME, BROKEN]).get("router", "broken/topk")
    assert message(error) == (
        "router 'broken/topk' cannot be used: plugin 'broken' (broken-moe 2.0) failed to load\n"
        "  ModuleNotFoundError: no triton\n"
        "  see: moekit plugins"
    )


def test_a_recipe_may_have_a_folder_in_its_name() -> None:
    papers = ModuleType("papers")
    papers.MOEKIT_API = 1  # type: ignore[attr-defined]
    recipe = Component(name="base/small", spec=Recipe, target="/somewhere/base/small.yaml", summary="")
    papers.moekit_recipes = hookimpl(lambda: [recipe])  # type: ignore[attr-defined]
    found = Registry([load_plugin("papers", papers)])
    assert found.get("recipe", "base/small") is found.get("recipe", "papers/base/small")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_goes_by_its_singular_and_its_plural(kind: str) -> None:
    assert kind_named(kind) == kind_named(plural(kind)) == kind


def test_an_unknown_kind_lists_the_kinds() -> None:
    with pytest.raises(UnknownName, match="unknown kind") as error:
        current().names("ruoters")
    assert message(error) == (
        "unknown kind 'ruoters' (kinds: routers, experts, dispatchers, balancers, attention, models, objectives, data, "
        "optimizers, schedules, recipes)\n"
        "  did you mean 'routers'?\n"
        "  list them: moekit ls"
    )


def test_build_goes_by_the_class_of_the_spec() -> None:
    spec = OtherHash(buckets=4)
    built = Registry([ACME, BETA]).build(spec, "dims", 3)
    assert isinstance(built, Built)
    assert built.spec is spec
    assert built.context == ("dims", 3)


def test_build_refuses_a_spec_that_no_plugin_registered() -> None:
    with pytest.raises(PluginError, match="no plugin registered") as error:
        Registry([ACME]).build(Unregistered())
    assert message(error) == ("no plugin registered a component with the spec class Unregistered; see: moekit plugins")


def test_what_a_target_raises_tells_which_component_it_was() -> None:
    class Broken:
        def __init__(self, spec: RouterSpec) -> None:
            raise ZeroDivisionError("nothing to divide by")

    plugin = load_plugin("acme", module("acme_moe", Component(name="hash", spec=Hash, target=Broken, summary="breaks")))
    with pytest.raises(ZeroDivisionError, match="nothing to divide by") as caught:
        Registry([plugin]).build(Hash())
    assert caught.value.__notes__ == ["while building router 'acme/hash'"]


def test_temporary_adds_a_plugin_for_a_block() -> None:
    before = current()
    with temporary(module("acme_moe", router("hash", Hash))) as during:
        assert current() is during
        assert during.get("router", "acme_moe/hash").spec is Hash
        assert isinstance(registry.build(Hash()), Built)
        assert set(before.names("router")) < set(during.names("router"))
    assert current() is before
    assert "hash" not in before.names("router")


def test_temporary_takes_a_class_with_static_hooks() -> None:
    class acme:
        MOEKIT_API = 1

        @staticmethod
        @hookimpl
        def moekit_routers() -> list[Component]:
            return [router("hash", Hash)]

    with temporary(acme) as during:
        assert during.get("router", "acme/hash").target is Built


def test_temporary_blocks_nest() -> None:
    outermost = current()
    with temporary(module("acme", router("hash", Hash))) as outer:
        with temporary(module("beta", router("other", OtherHash))) as inner:
            assert {"hash", "other"} <= set(inner.names("router"))
        assert current() is outer
        assert "other" not in outer.names("router")
    assert current() is outermost


def test_temporary_is_undone_by_an_exception() -> None:
    before = current()
    with pytest.raises(RuntimeError, match="inside"), temporary(module("acme", router("hash", Hash))):
        raise RuntimeError("inside")
    assert current() is before


def test_temporary_changes_nothing_when_a_plugin_is_refused() -> None:
    before = current()
    with pytest.raises(PluginError, match="states no MOEKIT_API"), temporary(ModuleType("empty")):
        pass
    assert current() is before


def test_temporary_refuses_a_name_that_is_taken() -> None:
    with temporary(module("acme", router("hash", Hash))):
        with pytest.raises(PluginError, match="is taken") as error, temporary(module("acme")):
            pass
    assert message(error) == "plugin 'acme': the name is taken by acme; uninstall it, or rename one"


def test_temporary_refuses_a_spec_class_that_is_taken() -> None:
    with temporary(module("acme", router("hash", Hash))):
        with pytest.raises(PluginError, match="spec class") as error, temporary(module("beta", router("mine", Hash))):
            pass
    assert message(error) == (
        "plugin 'beta': router 'mine' has the spec class Hash of router 'acme/hash' (acme); each needs its own"
    )


def test_every_component_of_the_installed_plugins_is_found_again() -> None:
    installed = current()
    assert not installed.failed
    for component in installed.components():
        assert installed.get(component.kind, component.full_name) is component
        if component.spec is not Recipe:
            assert installed._by_spec[component.spec] is component


def test_every_hook_has_a_kind_and_every_kind_a_hook() -> None:
    from moekit import hookspecs

    hooks = {name for name in vars(hookspecs) if re.fullmatch("moekit_.*", name)}
    assert hooks == {f"moekit_{plural(kind)}" for kind in KINDS}
    for hook in hooks:
        assert getattr(hookspecs, hook).__doc__


def test_a_balancer_is_no_router() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Even(BalancerSpec):
        pass

    assert Component(name="even", spec=Even, target=Built, summary="").kind == "balancer"

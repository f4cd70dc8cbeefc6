"""The checks of a plugin when it is loaded."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from pages import cases, whole

from moekit.errors import PluginError
from moekit.plugin import Plugin, load_plugin

SOURCE = """
from dataclasses import dataclass
from moekit import Component, group, hookimpl, option, slot
from moekit.spec.kinds import BalancerSpec, RouterSpec

MOEKIT_API = 2

class Mine(RouterSpec): pass

class Second(RouterSpec): pass

class Even(BalancerSpec): pass

class Untyped(RouterSpec):
    where: 'Nowhere' = option(None, "nowhere")

class Handle(RouterSpec):
    file: object = option(None, "a file")

class BadDefault(RouterSpec):
    top_k: int = option(0, "none", ge=1)

class WrongSlot(RouterSpec):
    inner: BalancerSpec = slot("router", "another")

class WrongGroup(RouterSpec):
    inner: int = group("options")

class Undeclared(Mine):
    draws: int = 1

def mine(**changes):
    return Component(**{"name": "mine", "spec": Mine, "target": "nowhere.at_all:Mine", "summary": "mine", **changes})

@hookimpl
def moekit_components():
    return [mine()]
"""


def load(source: str) -> Plugin:
    """Loads a plugin of this source."""
    module = ModuleType("acme_moe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "acme_moe", module)
        exec(compile(source, "acme_moe.py", "exec", dont_inherit=True), module.__dict__)
        return load_plugin("acme", module)


def test_a_loaded_kind_has_a_plural() -> None:
    kinds = """
from moekit.component import Kind
@hookimpl
def moekit_kinds():
    return [Kind(name="reward", spec="acme.spec:Reward"), Kind(name="data", spec="acme.spec:Data", plural="data")]
"""
    plugin = load(SOURCE + kinds)
    assert [(each.plural, each.plugin) for each in plugin.kinds] == [("rewards", "acme"), ("data", "acme")]


def test_a_plugin_is_loaded_with_its_components() -> None:
    plugin = load(SOURCE)
    assert [c.full_name for c in plugin.components] == ["acme/mine"]
    assert (plugin.api, plugin.error, plugin.trace, plugin.module) == (2, None, "", "acme_moe")


OFFERS = """
$ return 1 / 0  # a hook that raises
plugin 'acme': hook moekit_components raised ZeroDivisionError: division by zero

$ yield mine(); yield 1 / 0  # a generator that raises
plugin 'acme': hook moekit_components raised ZeroDivisionError: division by zero

$ mine()  # no return
plugin 'acme': hook moekit_components returned None; expected a list of Component

$ return mine()  # no list
plugin 'acme': hook moekit_components raised TypeError: 'Component' object is not iterable

$ return ['mine']  # no component
plugin 'acme': hook moekit_components: expected Component, got str

$ return [mine(kind='router', spec=Even)]  # a spec of another kind
plugin 'acme': hook moekit_components, component 'mine': its spec must be a subclass of the spec of kind 'router', \
got Even

$ return [mine(spec='Mine')]  # a spec by its name, without a kind
plugin 'acme': hook moekit_components, component 'mine': it states no kind; write kind="router", for example

$ return [mine(kind='router', spec='Mine')]  # a spec by a name that cannot be imported
plugin 'acme': hook moekit_components, component 'mine': its spec must be 'package.module:Class' or a class, got \
'Mine'

$ return [mine(spec=3)]  # no spec class
plugin 'acme': hook moekit_components, component 'mine': it states no kind; write kind="router", for example

$ return [mine(paper=2024)]  # a paper that is a number
plugin 'acme': hook moekit_components, component 'mine': its paper must be text, got 2024

$ return [mine(summary=None)]  # no summary
plugin 'acme': hook moekit_components, component 'mine': its summary must be text, got None

$ return [mine(name=3)]  # a name that is a number
plugin 'acme': hook moekit_components, component '3': a name is made of letters, digits, '_', '-' and '.'

$ raise SystemExit(3)  # a hook that exits
plugin 'acme': hook moekit_components raised SystemExit: 3

$ return [mine(spec=Untyped)]  # an option of an unknown type
plugin 'acme': hook moekit_components, component 'mine': Untyped: cannot read the types of its fields: name \
'Nowhere' is not defined

$ return [mine(spec=Handle)]  # an option of a type that YAML lacks
plugin 'acme': hook moekit_components, component 'mine': Handle.file: an option of type <class 'object'>; int, \
float, bool, str, Literal, list, tuple and dict of these, and None, can be read from YAML

$ return [mine(spec=BadDefault)]  # a default out of range
plugin 'acme': hook moekit_components, component 'mine': BadDefault.top_k: its default 0 is not an integer >= 1

$ return [mine(spec=WrongSlot)]  # a slot with the type of another kind
plugin 'acme': hook moekit_components, component 'mine': WrongSlot.inner: a slot of kind 'router' with the type of \
kind 'balancer'

$ return [mine(spec=WrongGroup)]  # a group of another type
plugin 'acme': hook moekit_components, component 'mine': WrongGroup.inner: a group's type is one spec class, or that \
class | None

$ return [mine(spec=Undeclared)]  # an option that is not declared
plugin 'acme': hook moekit_components, component 'mine': Undeclared.draws: declare it with option(), slot(), slots() \
or \
group()

$ return [mine(target='my_package.router.MyRouter')]  # a target without a colon
plugin 'acme': hook moekit_components, component 'mine': its target must be 'package.module:Class' or a class, got \
'my_package.router.MyRouter'

$ return [mine(name='my/router')]  # a name with a slash
plugin 'acme': hook moekit_components, component 'my/router': a name is made of letters, digits, '_', '-' and '.'

$ return [mine(), mine(spec=Second)]  # a name offered twice
plugin 'acme': offers router 'mine' twice

$ return [mine(), mine(name='again')]  # one spec class for two components
plugin 'acme': router 'again' has the spec class Mine of router 'acme/mine'; each needs its own
"""


@cases(OFFERS)
def test_an_invalid_offer_is_rejected_with_the_reason(given: str, expected: str) -> None:
    with pytest.raises(PluginError, match=whole(expected)):
        load(SOURCE.replace("return [mine()]", given))


HOOKS = """
$ MOEKIT_API = 2 ->  # no API version
plugin 'acme': states no MOEKIT_API; this moekit supports API 2: MOEKIT_API = 2

$ MOEKIT_API = 2 -> MOEKIT_API = 7  # another API version
plugin 'acme': was written for plugin API 7; this moekit supports API 2: MOEKIT_API = 2

$ moekit_components() -> moekit_components(config)  # a hook with an argument
plugin 'acme': hookimpl definition: moekit_components(config) Argument(s) {'config'} are declared in the hookimpl \
but can \
not be found in the hookspec

$ moekit_components -> moekit_component  # a misspelt hook
plugin 'acme': unknown hook 'moekit_component'; did you mean 'moekit_components'?

$ moekit_components -> moekit_zzzzzz  # an unknown hook
plugin 'acme': unknown hook 'moekit_zzzzzz'; hooks are moekit_components, moekit_kinds, moekit_recipes, \
moekit_verbs, \
moekit_resolvers, moekit_recipe_loaded, moekit_module_built, moekit_run_starting, moekit_step_not_finite, \
moekit_step_ended, moekit_run_ended

$ @hookimpl ->  # a hook that is not marked
plugin 'acme': 'moekit_components' is not marked; write @moekit.hookimpl above it
"""


@cases(HOOKS)
def test_another_api_or_an_invalid_hook_is_rejected_with_the_reason(given: str, expected: str) -> None:
    before, after = given.split(" ->")
    with pytest.raises(PluginError, match=whole(expected)):
        load(SOURCE.replace(before, after.strip()))


def test_an_optional_hook_of_a_later_moekit_is_ignored() -> None:
    assert load(f"{SOURCE}\n@hookimpl(optionalhook=True)\ndef moekit_tokenizers(): return []\n").error is None


def test_the_origin_of_a_plugin_is_its_package_or_its_module() -> None:
    assert Plugin(name="acme", module="acme_moe").origin == "acme_moe"
    assert Plugin(name="acme", module="acme_moe", distribution="acme", version="1.0").origin == "acme 1.0"


def test_a_hook_that_wraps_others_is_rejected() -> None:
    source = SOURCE.replace("@hookimpl\n", "@hookimpl(wrapper=True)\n").replace("return [mine()]", "return (yield)")
    with pytest.raises(PluginError, match=r"'moekit_components' is a wrapper, which could stop other plugins"):
        load(source)

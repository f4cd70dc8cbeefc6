"""The checks of a plugin when it is loaded."""

from __future__ import annotations

from types import ModuleType

import pytest
from pages import cases, whole

from moekit.errors import PluginError
from moekit.plugin import Plugin, load_plugin

SOURCE = """
from dataclasses import dataclass
from moekit import Component, hookimpl
from moekit.spec.kinds import BalancerSpec, RouterSpec

MOEKIT_API = 1

@dataclass(frozen=True, kw_only=True)
class Mine(RouterSpec): pass

@dataclass(frozen=True, kw_only=True)
class Second(RouterSpec): pass

@dataclass(frozen=True, kw_only=True)
class Even(BalancerSpec): pass

class Undecorated(RouterSpec): pass

@dataclass(frozen=True, kw_only=True)
class Undeclared(Mine):
    draws: int = 1

def mine(**changes):
    return Component(**{"name": "mine", "spec": Mine, "target": "nowhere.at_all:Mine", "summary": "mine", **changes})

@hookimpl
def moekit_routers():
    return [mine()]
"""


def load(source: str) -> Plugin:
    """Loads a plugin of this source."""
    module = ModuleType("acme_moe")
    exec(compile(source, "acme_moe.py", "exec", dont_inherit=True), module.__dict__)
    return load_plugin("acme", module)


def test_a_plugin_is_loaded_with_its_components() -> None:
    plugin = load(SOURCE)
    assert [c.full_name for c in plugin.components] == ["acme/mine"]
    assert (plugin.api, plugin.error, plugin.trace, plugin.module) == (1, None, "", "acme_moe")


OFFERS = """
$ return 1 / 0  # a hook that raises
plugin 'acme': hook moekit_routers raised ZeroDivisionError: division by zero

$ yield mine(); yield 1 / 0  # a generator that raises
plugin 'acme': hook moekit_routers raised ZeroDivisionError: division by zero

$ mine()  # no return
plugin 'acme': hook moekit_routers returned None; expected a list of Component

$ return mine()  # no list
plugin 'acme': hook moekit_routers raised TypeError: 'Component' object is not iterable

$ return ['mine']  # no component
plugin 'acme': hook moekit_routers: expected Component, got str

$ return [mine(spec=Even)]  # a spec of another kind
plugin 'acme': hook moekit_routers, component 'mine': its spec must be a subclass of RouterSpec, got Even

$ return [mine(spec='Mine')]  # no spec class
plugin 'acme': hook moekit_routers, component 'mine': its spec must be a subclass of RouterSpec, got 'Mine'

$ return [mine(spec=Undecorated)]  # a spec that is not a dataclass
plugin 'acme': hook moekit_routers, component 'mine': write @dataclass(frozen=True, kw_only=True) above its spec \
Undecorated

$ return [mine(spec=Undeclared)]  # an option that is not declared
plugin 'acme': hook moekit_routers, component 'mine': Undeclared.draws: declare it with option(), slot(), slots() or \
group()

$ return [mine(target='my_package.router.MyRouter')]  # a target without a colon
plugin 'acme': hook moekit_routers, component 'mine': its target must be 'package.module:Class' or a class, got \
'my_package.router.MyRouter'

$ return [mine(name='my/router')]  # a name with a slash
plugin 'acme': hook moekit_routers, component 'my/router': a name is made of letters, digits, '_', '-' and '.'

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
$ MOEKIT_API = 1 ->  # no API version
plugin 'acme': states no MOEKIT_API; this moekit supports API 1: MOEKIT_API = 1

$ MOEKIT_API = 1 -> MOEKIT_API = 7  # another API version
plugin 'acme': was written for plugin API 7; this moekit supports API 1: MOEKIT_API = 1

$ moekit_routers() -> moekit_routers(config)  # a hook with an argument
plugin 'acme': hookimpl definition: moekit_routers(config) Argument(s) {'config'} are declared in the hookimpl but can \
not be found in the hookspec

$ moekit_routers -> moekit_router  # a misspelt hook
plugin 'acme': unknown hook 'moekit_router'; did you mean 'moekit_routers'?

$ moekit_routers -> moekit_zzzzzz  # an unknown hook
plugin 'acme': unknown hook 'moekit_zzzzzz'; hooks are moekit_routers, moekit_experts, moekit_dispatchers, \
moekit_balancers, moekit_attention, moekit_models, moekit_objectives, moekit_data, moekit_optimizers, \
moekit_schedules, moekit_recipes

$ @hookimpl ->  # a hook that is not marked
plugin 'acme': 'moekit_routers' is not marked; write @moekit.hookimpl above it
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

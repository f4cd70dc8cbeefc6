"""What does not belong where it stands, or is missing: overrides of the recipe ``small``, and the whole report."""

# ruff: noqa: E501 - messages stand here whole

from __future__ import annotations

import pytest

from moekit.errors import SpecError
from moekit.spec import validate

CASES: dict[str, tuple[list[str], str]] = {
    "unknown_component": (
        ["model.moe.router.use=pikc"],
        r"""
unknown router 'pikc' (installed: blend, pick)
  at model.moe.router.use  in command line
  did you mean 'pick'?
  list them: moekit ls routers
  note: plugin 'broken' failed to load (ImportError: no such luck); see: moekit plugins
""",
    ),
    "unknown_component_with_plugin": (
        ["model.moe.router=nobody/pick"],
        r"""
unknown router 'nobody/pick' (installed: blend, pick)
  at model.moe.router.use  in command line
  did you mean 'base/pick'?
  list them: moekit ls routers
  note: plugin 'broken' failed to load (ImportError: no such luck); see: moekit plugins
""",
    ),
    "component_of_a_broken_plugin": (
        ["model.moe.router.use=broken/thing"],
        r"""
router 'broken/thing' cannot be used: plugin 'broken' (moekit-broken) failed to load
  ImportError: no such luck
  see: moekit plugins
  at model.moe.router.use  in command line
""",
    ),
    "component_of_another_kind": (
        ["model.moe.experts.use=walk"],
        r"""
unknown expert 'walk' (installed: flat, wide)
  at model.moe.experts.use  in command line
  list them: moekit ls experts
  note: plugin 'broken' failed to load (ImportError: no such luck); see: moekit plugins
""",
    ),
    "unknown_option": (
        ["model.moe.router.topk=3"],
        r"""
router 'pick' has no option 'topk'
  at model.moe.router.topk  in command line
  did you mean 'top_k'?
  list them: moekit show pick
""",
    ),
    "unknown_option_of_a_group": (
        ["model.moe.ruoter=pick"],
        r"""
'model.moe' has no option 'ruoter'
  at model.moe.ruoter  in command line
  expected one of router, experts, dispatcher, shared, balancers
  did you mean 'router'?
""",
    ),
    "unknown_option_of_a_recipe": (
        ["modle.width=3"],
        r"""
a recipe has no option 'modle'
  at modle  in command line
  expected one of schema, requires, name, summary, paper, seed, model, objective, data, optimizer, schedule, start, stop, compare, non_finite, compile, checkpoints, trainer
  did you mean 'model'?
""",
    ),
    "trainer_option_outside_trainer": (
        ["max_steps=3"],
        r"""
a recipe has no option 'max_steps'
  at max_steps  in command line
  expected one of schema, requires, name, summary, paper, seed, model, objective, data, optimizer, schedule, start, stop, compare, non_finite, compile, checkpoints, trainer
  did you mean 'trainer.max_steps'?
""",
    ),
    "option_of_a_component_without_options": (
        ["model.moe.dispatcher.speed=3"],
        r"""
dispatcher 'walk' has no option 'speed'
  at model.moe.dispatcher.speed  in command line
  expected no option at all
""",
    ),
    "no_use": (
        ["model.moe.shared={hidden: 3}"],
        r"""
no 'use' says which expert this is
  at model.moe.shared  in command line
  expected use: <name>
  list them: moekit ls experts
""",
    ),
    "use_is_no_text": (
        ["model.moe.router.use=3"],
        r"""
use: 3 is no name
  at model.moe.router.use  in command line
  expected the name of a router
  list them: moekit ls routers
""",
    ),
    "use_is_an_interpolation": (
        ["model.moe.router.use=${name}"],
        r"""
use: '${name}' is an interpolation
  at model.moe.router.use  in command line
  expected the name of a router
  list them: moekit ls routers
""",
    ),
    "a_number_in_a_slot": (
        ["model.moe.router=3"],
        r"""
3 is no router
  at model.moe.router  in command line
  expected {use: <router>, ...}
  list them: moekit ls routers
""",
    ),
    "a_list_in_a_slot": (
        ["model.moe.router=[pick]"],
        r"""
a list is no router
  at model.moe.router  in command line
  expected {use: <router>, ...}
  list them: moekit ls routers
""",
    ),
    "slots_as_a_list": (
        ["model.moe.balancers=[{use: nudge, rate: 1}, fair, 3]"],
        r"""
a list where a named map of balancers belongs
  at model.moe.balancers  in command line
  expected {nudge: {use: nudge, ...}, fair: {use: fair, ...}, name: {use: ..., ...}}
""",
    ),
    "slots_as_a_name": (
        ["model.moe.balancers=nudge"],
        r"""
'nudge' where a named map of balancers belongs
  at model.moe.balancers  in command line
  expected {name: {use: <balancer>, ...}}
""",
    ),
    "name_of_an_entry": (
        ["model.moe.balancers={a b: nudge}"],
        r"""
'a b' is no name
  at model.moe.balancers.a b  in command line
  expected a letter, then letters, digits, '_' or '-'
""",
    ),
    "a_name_where_a_group_belongs": (
        ["model.head=wide"],
        r"""
'wide' where a mapping belongs
  at model.head  in command line
  expected options: depth, tied
""",
    ),
    "missing_option": (
        ["model.moe.router.top_k=null"],
        r"""
router 'pick' needs 'top_k'
  at model.moe.router.top_k  in command line
  expected top_k: an integer >= 1 and <= 8 (experts a token runs through)
  list them: moekit show pick
""",
    ),
    "missing_option_of_a_new_component": (
        ["model.moe.experts={use: wide, count: 2}", "model.moe.shared.use=wide"],
        r"""
expert 'wide' needs 'hidden'
  at model.moe.shared.hidden  in command line
  expected hidden: an integer >= 1 (width of the hidden layer)
  list them: moekit show wide
""",
    ),
    "missing_slot": (
        ["model=null"],
        r"""
a recipe needs 'model'
  at model  in command line
  expected model: {use: <model>, ...}
  list them: moekit ls models
""",
    ),
    "missing_slot_of_a_group": (
        ["model.moe.experts=null"],
        r"""
'model.moe' needs 'experts'
  at model.moe.experts  in command line
  expected experts: {use: <expert>, ...}
  list them: moekit ls experts
""",
    ),
    "missing_group": (
        ["model={use: porch}"],
        r"""
model 'porch' needs 'head'
  at model.head  in command line
  expected head: a mapping (the head)
  list them: moekit show porch
""",
    ),
    "left_open": (
        ["data.path=???"],
        r"""
path: the recipe leaves this open ('???')
  at data.path  in command line
  expected text or null
""",
    ),
    "slot_left_open": (
        ["data=???"],
        r"""
the recipe leaves this data open ('???')
  at data  in command line
  expected use: <name>
  list them: moekit ls data
""",
    ),
    "several": (
        ["model.moe.router.top_k=two", "model.widht=3", "data=nope"],
        r"""
3 problems

model 'tower' has no option 'widht'
  at model.widht  in command line
  did you mean 'width'?
  list them: moekit show tower

unknown data 'nope' (installed: cases, lines)
  at data.use  in command line
  list them: moekit ls data
  note: plugin 'broken' failed to load (ImportError: no such luck); see: moekit plugins

top_k: 'two' is not an integer
  at model.moe.router.top_k  in command line
  expected an integer >= 1 and <= 8
""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_whole_message(name: str) -> None:
    overrides, message = CASES[name]
    with pytest.raises(SpecError) as caught:
        validate("small", overrides)
    assert str(caught.value) == message.strip("\n")

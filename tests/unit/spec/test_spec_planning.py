"""What has no place in a spec, or is missing from it: the recipe ``small`` under overrides, and the whole report.

``docs/specs.md`` shows the most common mistakes; ``tests/docs/test_specs_page.py`` compares them.
"""

from __future__ import annotations

import pytest
from pages import cases
from spec_fakes import check_overrides

from moekit.errors import SpecError
from moekit.spec import load

REPORTS = r"""
$ model.moe.router.use=pikc  # unknown component
unknown router 'pikc' (installed: blend, pick)
  at model.moe.router.use  in command line
  did you mean 'pick'?
  list them: moekit ls routers
  note: plugin 'broken' failed to load (ImportError: no such luck); see: moekit plugins

$ model.moe.router=gone/pick  # unknown component with plugin
unknown router 'gone/pick' (installed: blend, pick)
  at model.moe.router.use  in command line
  did you mean 'base/pick'?
  list them: moekit ls routers
  note: plugin 'broken' failed to load (ImportError: no such luck); see: moekit plugins

$ model.moe.router.use=broken/thing  # component of a broken plugin
router 'broken/thing' cannot be used: plugin 'broken' (moekit-broken) failed to load
  ImportError: no such luck
  see: moekit plugins
  at model.moe.router.use  in command line

$ model.moe.experts.use=walk  # component of another kind
unknown expert 'walk' (installed: flat, wide)
  at model.moe.experts.use  in command line
  list them: moekit ls experts
  note: plugin 'broken' failed to load (ImportError: no such luck); see: moekit plugins

$ model.moe.shared=none  # unknown component in a slot that may be empty
unknown expert 'none' (installed: flat, wide)
  at model.moe.shared.use  in command line
  expected one of these, or null
  list them: moekit ls experts
  note: plugin 'broken' failed to load (ImportError: no such luck); see: moekit plugins

$ model.moe.ruoter=pick  # unknown option of a group
'model.moe' has no option 'ruoter'
  at model.moe.ruoter  in command line
  expected one of router, experts, dispatcher, shared, balancers, gate_on
  did you mean 'router'?

$ modle.width=3  # unknown option of a recipe
a recipe has no option 'modle'
  at modle  in command line
  did you mean 'model'?

$ max_steps=3  # trainer option outside trainer
a recipe has no option 'max_steps'
  at max_steps  in command line
  did you mean 'trainer.max_steps'?

$ model.moe.dispatcher.speed=3  # option of a component without options
dispatcher 'walk' has no option 'speed'
  at model.moe.dispatcher.speed  in command line
  expected no option at all

$ model.moe.router.use=3  # use is not text
use: 3 is not a name
  at model.moe.router.use  in command line
  expected the name of a router
  list them: moekit ls routers

$ 'model.moe.router=[pick]'  # a list in a slot
router: a list is not a component
  at model.moe.router  in command line
  expected {use: <router>, ...}
  list them: moekit ls routers

$ 'model.moe.balancers=[{use: nudge, rate: 1}, fair, 3]'  # slots as a list
a list where a named map of balancers belongs
  at model.moe.balancers  in command line
  expected {nudge: {use: nudge, ...}, fair: {use: fair, ...}, name: {use: ..., ...}}

$ model.moe.balancers=nudge  # slots as a name
'nudge' where a named map of balancers belongs
  at model.moe.balancers  in command line
  expected {name: {use: <balancer>, ...}}

$ 'model.moe.balancers={a b: nudge}'  # name of an entry
'a b' is not a valid name
  at model.moe.balancers.a b  in command line
  expected a letter, then letters, digits, '_' or '-'

$ model.head=wide  # a name where a group belongs
'wide' where a mapping belongs
  at model.head  in command line
  expected options: depth, tied

$ model.moe.router.top_k=null  # missing option
router 'pick' needs 'top_k'
  at model.moe.router.top_k  in command line
  expected top_k: an integer >= 1 and <= 8 (experts a token runs through)
  list them: moekit show pick

$ model=null  # missing slot
a recipe needs 'model'
  at model  in command line
  expected model: {use: <model>, ...}
  list them: moekit ls models

$ 'model={use: porch}'  # missing group
model 'porch' needs 'head'
  at model.head  in command line
  expected head: a mapping (the head)
  list them: moekit show porch

$ 'data=???'  # slot left open
the recipe leaves this data open ('???')
  at data  in command line
  expected use: <name>
  list them: moekit ls data

$ model.moe.router.top_k=two model.widht=3 data=nope  # several
3 problems

model 'tower' has no option 'widht'
  at model.widht  in command line
  did you mean 'width'?
  list them: moekit show tower

unknown data 'nope' (installed: cases, lines)
  at data.use  in command line
  expected one of these, or null
  list them: moekit ls data
  note: plugin 'broken' failed to load (ImportError: no such luck); see: moekit plugins

top_k: 'two' is not an integer
  at model.moe.router.top_k  in command line
  expected an integer >= 1 and <= 8
"""


@cases(REPORTS)
def test_a_name_that_is_unknown_or_missing_is_reported_whole(given: str, expected: str) -> None:
    check_overrides(given, expected)


def test_escaped_text_in_place_of_a_map_is_a_mistake_and_no_crash() -> None:
    said = r"'\$\{x\}' where a named map of callbacks belongs"
    with pytest.raises(SpecError, match=said):
        load({"extends": "small", "trainer": {"callbacks": r"\${x}"}})

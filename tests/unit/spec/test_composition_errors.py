"""Parts that do not fit together, interpolations, trainer options, plugins: the whole report of each."""

# ruff: noqa: E501 - messages stand here whole

from __future__ import annotations

import pytest

from moekit.errors import PluginError, SpecError
from moekit.spec import validate

CASES: dict[str, tuple[list[str], str]] = {
    "conflict_of_options": (
        ["model.moe.router.top_k=1", "model.moe.router.renormalize=true", "model.moe.router.score=sigmoid"],
        r"""
2 problems

top_k=1 with renormalize=true has no gradient
  at model.moe.router  in command line

top_k=1 with score=sigmoid is not wanted here
  at model.moe.router  in command line
""",
    ),
    "conflict_of_forms": (
        ["model.moe.router.use=blend"],
        r"""
2 problems

Blend routes by 'soft', but dispatcher Walk takes expert_choice, token_choice
  at model.moe  in command line

balancer 'bias' (Nudge) gives a selection bias, but router Blend takes none: balance by a loss, or choose another router
  at model.moe  in command line
""",
    ),
    "conflict_of_dispatcher": (
        ["model.moe.dispatcher.use=pour"],
        r"""
Pick routes by 'token_choice', but dispatcher Pour takes soft
  at model.moe  in command line
""",
    ),
    "conflict_of_model_and_data": (
        ["data=cases", "model.vocab=9"],
        r"""
data Cases yields 'cases', but model Tower takes 'tokens'; others: moekit ls data, moekit ls models
  in small.yaml
""",
    ),
    "interpolation_of_what_was_replaced": (
        ["data=cases"],
        r"""
cannot resolve '${data.vocab}': there is no 'data.vocab'
  at model.vocab  in small.yaml, line 7
  did you mean 'model.vocab'?
""",
    ),
    "conflict_of_model_and_objective": (
        ["model={use: stack}", "data=cases"],
        r"""
objective Next takes next_token, but model Stack gives 'mixture'
  in small.yaml
""",
    ),
    "interpolation_of_nothing": (
        ["model.vocab=${data.vocabb}"],
        r"""
cannot resolve '${data.vocabb}': there is no 'data.vocabb'
  at model.vocab  in command line
  did you mean 'data.vocab'?
""",
    ),
    "interpolation_that_cannot_be_read": (
        ["model.vocab=${data.vocab"],
        r"""
cannot read the interpolation '${data.vocab'
  at model.vocab  in command line
  expected '${path.to.option}', or '\${' for these characters themselves
""",
    ),
    "interpolation_in_a_circle": (
        ["model.vocab=${data.vocab}", "data.vocab=${model.vocab}"],
        r"""
2 problems

cannot resolve '${data.vocab}': Recursive interpolation detected
  at model.vocab  in command line

cannot resolve '${model.vocab}': Recursive interpolation detected
  at data.vocab  in command line
""",
    ),
    "interpolation_of_another_type": (
        ["model.vocab=${optimizer.lr}"],
        r"""
vocab: 0.003 (from ${optimizer.lr}) is not an integer
  at model.vocab  in command line
  expected an integer >= 1
""",
    ),
    "interpolation_of_an_unset_variable": (
        ["data.path=${oc.env:MOEKIT_UNSET_HERE}"],
        r"""
cannot resolve '${oc.env:MOEKIT_UNSET_HERE}': KeyError raised while resolving interpolation: "Environment variable 'MOEKIT_UNSET_HERE' not found"
  at data.path  in command line
""",
    ),
    "interpolation_without_a_resolver": (
        ["data.path=${nothing:1}"],
        r"""
cannot resolve '${nothing:1}': Unsupported interpolation type nothing
  at data.path  in command line
""",
    ),
    "trainer_option": (
        ["trainer.max_step=3"],
        r"""
the Trainer has no option 'max_step'
  at trainer.max_step  in command line
  expected an option of lightning.Trainer
  did you mean 'max_steps'?
""",
    ),
    "trainer_option_of_moekit": (
        ["trainer.logger=false"],
        r"""
trainer option 'logger' is not for a spec: moekit writes metrics.csv and TensorBoard files to the run's folder
  at trainer.logger  in command line
""",
    ),
    "schema": (
        ["schema=2"],
        r"""
written in spec format 2; this moekit reads format 1
  at schema  in command line
""",
    ),
    "schema_is_no_number": (
        ["schema=new"],
        r"""
schema: 'new' is not an integer
  at schema  in command line
  expected an integer >= 1 and <= 1
""",
    ),
    "requires_a_plugin_that_is_missing": (
        ["requires={other: '>=1'}"],
        r"""
this spec requires plugin 'other', which is not installed
  at requires.other  in command line
  list them: moekit plugins
""",
    ),
    "requires_a_broken_plugin": (
        ["requires={broken: '>=1'}"],
        r"""
this spec requires plugin 'broken', which failed to load: ImportError: no such luck
  at requires.broken  in command line
  list them: moekit plugins
""",
    ),
    "requires_another_version": (
        ["requires={base: '>=2'}"],
        r"""
this spec requires plugin 'base' >=2; version 1.4.0 is installed
  at requires.base  in command line
  list them: moekit plugins
""",
    ),
    "requires_nonsense": (
        ["requires={base: new}"],
        r"""
'new' is no version requirement
  at requires.base  in command line
  expected versions, such as '>=1.2,<2'
""",
    ),
    "requires_is_no_mapping": (
        ["requires=base"],
        r"""
requires: 'base' is not a mapping
  at requires  in command line
  expected a mapping to text
""",
    ),
}


def test_an_option_of_a_type_that_no_spec_can_hold() -> None:
    with pytest.raises(PluginError) as caught:
        validate({"model": {"use": "odd", "number": 3}})
    assert str(caught.value) == (
        "model 'odd', option 'number': an option cannot be of type <class 'complex'>: "
        "int, float, bool, str, Literal, list and dict are read"
    )


@pytest.mark.parametrize("name", CASES)
def test_the_whole_message(name: str) -> None:
    overrides, message = CASES[name]
    with pytest.raises(SpecError) as caught:
        validate("small", overrides)
    assert str(caught.value) == message.strip("\n")

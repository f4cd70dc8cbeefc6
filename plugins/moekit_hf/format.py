"""The kind ``format``: how one family of Hugging Face models is written, in both directions. Torch-free.

A family is one class in one file. It says which configurations are its own, what spec such a configuration describes
and back, and by one table which tensor of theirs is which region of ours. Both directions are plain mappings, as a
recipe has them below ``model:``, so that a family imports no other plugin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from moekit.errors import PluginError
from moekit.spec.fields import Spec
from moekit_hf.fields import Fields
from moekit_hf.rules import Ignored, Rule

Node = dict[str, Any]
"""A node of a recipe: ``use`` and options, as plain data."""

F = TypeVar("F", bound="FormatSpec")


class FormatSpec(Spec):
    """Base of the formats: one for each family.

    ``model_type`` is what its ``config.json`` says, ``architecture`` the class that loads it in ``transformers``, and
    ``auto`` the one that finds that class. ``source`` says where the family is described. ``pooled_balance`` is the
    weight of the balance loss that ``transformers`` trains with if ``config.json`` says ``output_router_logits`` and no
    ``router_aux_loss_coef``; None if its class has no such loss.
    """

    kind: ClassVar[str] = "format"
    model_type: ClassVar[str] = ""
    architecture: ClassVar[str] = ""
    auto: ClassVar[str] = "AutoModelForCausalLM"
    source: ClassVar[str] = ""
    pooled_balance: ClassVar[float | None] = None

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration is of this family: by its ``model_type``."""
        return config.get("model_type") == self.model_type

    def spec(self, fields: Fields) -> Node:
        """The model that a configuration describes, as the node ``model:`` of a recipe. Options may be omitted.

        Every field that it reads counts as understood; the caller refuses any other that could change the function.

        Raises:
            FormatError: the configuration asks for something that no option of a model expresses.
            PluginError: the format lacks this method.
        """
        raise self._lacks("spec(self, fields)")

    def config(self, model: Node) -> dict[str, Any]:
        """The fields of ``config.json`` that describe a model, given with every option.

        It need not look for options that the family lacks: the caller reads the result back with ``spec``, and
        refuses a model that differs from what comes out.

        Raises:
            PluginError: the format lacks this method.
        """
        raise self._lacks("config(self, model)")

    def rules(self, model: Node) -> Sequence[Rule]:
        """The table of tensors; a rule without a tensor in this model is not used.

        Raises:
            PluginError: the format lacks this method.
        """
        raise self._lacks("rules(self, model)")

    def tiny(self) -> Sequence[Mapping[str, Any]]:
        """Configurations of tiny models, one for each branch: the checks have ``transformers`` build them."""
        return ()

    def ignored(self, model: Node) -> Sequence[Ignored]:
        """Tensors that files of this family may have and no model of ours needs, each with the reason."""
        return ()

    def _lacks(self, method: str) -> PluginError:
        return PluginError(f"{type(self).__name__} lacks a method\n  expected {method} in that format")


def as_it_is(spec: F) -> F:
    """The target of every format: a format is plain data, and needs no building."""
    return spec

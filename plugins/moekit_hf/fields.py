"""Reading a ``config.json`` strictly: every field is understood, known to change nothing, or refused. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from moekit.errors import MoekitError
from moekit.spec.kinds import MOST_LAYERS

_T = TypeVar("_T", int, str)

INERT: Final[Mapping[str, str]] = {
    "_name_or_path": "where it came from",
    "_attn_implementation_autoset": "how transformers computes attention",
    "architectures": "the class in transformers; the family is found by model_type",
    "auto_map": "names code of the repository, which is never run",
    "attn_implementation": "how transformers computes attention",
    "model_type": "has chosen the family",
    "transformers_version": "which version wrote it",
    "torch_dtype": "the tensors have their own dtype",
    "dtype": "the tensors have their own dtype",
    "use_cache": "how transformers generates",
    "bos_token_id": "for generation",
    "eos_token_id": "for generation",
    "pad_token_id": "for generation",
    "decoder_start_token_id": "for generation",
    "initializer_range": "for a model without weights",
    "max_position_embeddings": "a bound for users; rotary positions have none",
    "output_router_logits": "whether it trains with a balance loss",
    "output_attentions": "what transformers returns",
    "output_hidden_states": "what transformers returns",
    "return_dict": "what transformers returns",
    "id2label": "for classifiers",
    "label2id": "for classifiers",
    "problem_type": "for classifiers",
    "tokenizer_class": "names the tokenizer's class",
    "pretraining_tp": "how the pre-training was sharded",
    "ep_size": "how the experts were sharded",
    "aux_loss_alpha": "for training",
    "seq_aux": "for training",
    "router_aux_loss_coef": "for training",
    "router_z_loss_coef": "for training",
    "num_nextn_predict_layers": "multi-token prediction, which transformers does not run",
    "num_mtp_layers": "multi-token prediction, which transformers does not run",
}
"""Fields that change no output of a model that has its weights, each with the reason."""


class FormatError(MoekitError):
    """A folder or model that a format cannot read or write; the message names the field or tensor."""


KINDS: Final = ((bool, "true or false"), ((int, float), "a finite number"), (str, "text"), (list, "a list"))


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind; a number must be finite, and true does not count as one."""
    if kind in (bool, str, list):
        return isinstance(value, kind)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class _Required:
    pass


_REQUIRED: Final = _Required()


class Fields:
    """The fields of a configuration. Each one that is read counts as understood.

    Args:
        config: the contents of ``config.json``.
        where: how messages name the file.
    """

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self.config, self.where = config, where
        self._read: set[str] = set()

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value of a field.

        Args:
            name: of the field.
            default: for a field that is missing or null; without one, the field must be there. The value must be of its
                kind: true or false, a number, text or a list. None leaves it open.

        Raises:
            FormatError: it is missing and has no default, or is of another kind.
        """
        value = self._value(name, default)
        kind = next(((kind, words) for kind, words in KINDS if isinstance(default, kind)), None)
        if kind is not None:
            self._check(name, value, _is(value, kind[0]), kind[1])
        return value

    def stated(self, name: str) -> Any:
        """The value of a field that must be there, but may be null: where null differs from what a missing one means.

        Raises:
            FormatError: it is missing.
        """
        return self.take(name, None) if name in self.config else self.take(name)

    def number(self, name: str, default: Any = _REQUIRED, *, least: int = 1) -> int:
        """A field that is a whole number of at least ``least``.

        Raises:
            FormatError: it is missing, or something else.
        """
        value = self._value(name, default)
        holds = isinstance(value, int) and not isinstance(value, bool) and value >= least
        self._check(name, value, holds, f"a whole number above {least - 1}" if least else "a whole number from 0 on")
        return int(value)

    def layers(self, name: str, default: Any = _REQUIRED) -> int:
        """A field that is a number of layers.

        Raises:
            FormatError: it is missing, or no number of layers that can be built.
        """
        value = self.number(name, default)
        self._check(name, value, value <= MOST_LAYERS, f"a number of layers up to {MOST_LAYERS:,}")
        return value

    def real(self, name: str, default: Any = _REQUIRED) -> float:
        """A field that is a finite number.

        Raises:
            FormatError: it is missing, or something else.
        """
        value = self._value(name, default)
        self._check(name, value, _is(value, float), "a finite number")
        return float(value)

    def listed(self, name: str, kind: type[_T], default: list[_T]) -> list[_T]:
        """A field that is a list of text or of whole numbers; true and false count as 1 and 0.

        Raises:
            FormatError: it is something else.
        """
        value = self._value(name, default)
        holds = isinstance(value, list) and all(isinstance(each, kind) for each in value)
        self._check(name, value, holds, f"a list of {'whole numbers' if kind is int else 'text'}")
        return [kind(each) for each in value]

    def either(self, *names: str) -> int:
        """A whole number above 0 that versions of ``transformers`` write under different names.

        Raises:
            FormatError: it is missing, or two names have different values.
        """
        given = {name: self.number(name) for name in names if self.config.get(name) is not None}
        if len(set(given.values())) != 1:
            raise FormatError(f"{self.where}: one value of {' or '.join(names)} is expected, not {given or 'none'}")
        return next(iter(given.values()))

    def demand(self, name: str, expected: Any, why: str, *, default: Any = None) -> None:
        """Refuses a configuration whose field has another value; ``default`` is what a missing one means.

        Raises:
            FormatError: with the reason ``why``.
        """
        value = self.take(name, default)
        if value != expected:
            raise FormatError(
                f"{self.where}: {name}={value!r} cannot be imported: {why}\n  expected {name}={expected!r}"
            )

    def nested(self, name: str) -> Fields | None:
        """A field that is itself a mapping; None if it is missing.

        Raises:
            FormatError: it is something else.
        """
        value = self.take(name, None)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise FormatError(f"{self.where}: {name}={value!r} is not a mapping")
        return Fields(value, f"{self.where}, {name}")

    def refuse_unread(self) -> None:
        """Refuses fields that nothing has read and that are not known to be inert.

        A field that is null, false, empty or 0 asks for nothing, and is let pass.

        Raises:
            FormatError: naming every such field.
        """
        unknown = [name for name, v in self.config.items() if name not in self._read and name not in INERT and v]
        if unknown:
            listed = ", ".join(f"{name}={self.config[name]!r}" for name in unknown)
            raise FormatError(
                f"{self.where}: this family knows no field {listed}\n"
                "  it might change what the model computes, so nothing is imported; expected only known fields"
            )

    def _value(self, name: str, default: Any) -> Any:
        self._read.add(name)
        value = self.config.get(name)
        if value is not None:
            return value
        if isinstance(default, _Required):
            raise FormatError(f"{self.where}: the field '{name}' is missing")
        return default

    def _check(self, name: str, value: Any, holds: bool, expected: str) -> None:
        if not holds:
            raise FormatError(f"{self.where}: {name}={value!r} is not {expected}")

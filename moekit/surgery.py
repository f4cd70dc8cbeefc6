"""``moekit.replace``: mixtures in the place of the feed-forward networks of any torch model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from moekit.errors import MoekitError, Problem, nearest
from moekit.front import layer as make_layer
from moekit.moe_layer import MoELayer

Layer = str | Mapping[str, Any] | Callable[[int], MoELayer]
TORCH_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


class OutputOnly(nn.Module):
    """A mixture that returns its output alone; ``BalanceStep.watching`` sees its report.

    Args:
        moe: the mixture.
        positions_first: whether tokens with three dimensions are ``[S, B, D]``; otherwise ``[B, S, D]``.
    """

    def __init__(self, moe: MoELayer, positions_first: bool = False) -> None:
        super().__init__()
        self.moe = moe
        self.positions_first = positions_first

    def forward(self, x: Tensor) -> Tensor:
        """The output ``[..., O]`` of tokens ``[..., D]``."""
        turned = self.positions_first and x.ndim == 3
        y: Tensor = self.moe(x.transpose(0, 1) if turned else x)[0]
        return y.transpose(0, 1) if turned else y


def replace(model: nn.Module, pattern: str | type[nn.Module], layer: Layer) -> dict[str, MoELayer]:
    """Replaces modules by mixtures, in place. The model then returns what it returned before, and no report.

    A mixture gets the widths, device, dtype and mode of what it replaces; its weights are new. Of torch's own
    Transformer layers the feed-forward network is replaced. A module that is used twice becomes one mixture. Tokens of
    three dimensions are read as ``[B, S, D]``; in torch's Transformer layers as their ``batch_first`` says.

    Args:
        model: any model.
        pattern: a glob of module names, such as ``"*.mlp"`` (``*`` matches dots too), or a class of modules.
        layer: options of ``moekit.layer``, a recipe's name, or a function that makes a layer for width D.

    Returns:
        The mixtures, by the name of the module that each replaced.

    Raises:
        MoekitError: nothing matches, or a module's width is unknown. Nothing has then been replaced.
        SpecError: with every mistake in the options.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        hit = fnmatchcase(name, pattern) if isinstance(pattern, str) else isinstance(module, pattern)
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if hit and not inside and (name or isinstance(module, TORCH_LAYERS)):
            found[name] = module
    if not found:
        raise MoekitError(str(_unmatched(model, pattern)))
    new = {module: _mixture(name, module, layer) for name, module in found.items()}
    for name, module in found.items():
        if isinstance(module, TORCH_LAYERS):  # linear2(dropout(activation(linear1(x))))
            module.linear1 = OutputOnly(new[module], not module.self_attn.batch_first)  # type: ignore[assignment]
            module.linear2, module.dropout, module.activation = nn.Identity(), nn.Identity(), nn.Identity()  # type: ignore[assignment]
            module.activation_relu_or_gelu = 0  # else evaluation would call a kernel with the linear layers' weights
        else:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, OutputOnly(new[module]))
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(module in new for module in encoder.layers):
            encoder.use_nested_tensor = False  # the same kernel, over all layers
    return {name: new[module] for name, module in found.items()}


def _mixture(name: str, module: nn.Module, layer: Layer) -> MoELayer:
    options = dict(layer) if isinstance(layer, Mapping) else {}
    known = [option for option in make_layer.__annotations__ if option not in ("recipe", "return")]
    for option in options:
        if option not in known:
            what, near = f"moekit.layer has no option '{option}'", nearest(option, known)
            raise MoekitError(str(Problem(what=what, expected=f"one of {', '.join(known)}", nearest=near)))
    linear = [each for each in module.modules() if isinstance(each, nn.Linear)]
    if "dim" not in options:
        if not linear:
            what = f"the width of '{name}' is unknown: {type(module).__name__} has no nn.Linear"
            raise MoekitError(f"{what}\n  expected the option dim, as in {{'dim': 64, 'router': ...}}")
        options["dim"] = dim = linear[0].in_features
        options.setdefault("out_dim", ([each for each in linear if each.in_features != dim] or linear)[-1].out_features)
    if isinstance(layer, str | Mapping):
        made = make_layer(*([layer] if isinstance(layer, str) else []), **options)
    else:
        made = layer(options["dim"])
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    return (made if like is None else made.to(like.device, like.dtype)).train(module.training)


def _unmatched(model: nn.Module, pattern: str | type[nn.Module]) -> Problem:
    blocks = [name for name, m in model.named_modules() if any(isinstance(part, nn.Linear) for part in m.children())]
    names = list(dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in blocks if name))
    what = f"no module of {type(model).__name__}"
    expected = f"the name of a module, such as {', '.join(names[:8])}" if names else ""
    if isinstance(pattern, str):
        return Problem(what=f"{what} matches '{pattern}'", expected=expected, nearest=nearest(pattern, names))
    return Problem(what=f"{what} is a {pattern.__name__}", expected=expected)

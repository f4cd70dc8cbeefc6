"""In which component and plugin an exception was raised."""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType
from typing import Any

from lightning.pytorch.callbacks import Callback
from torch import nn

from moekit.component import Component
from moekit.registry import current


class NameComponent(Callback):
    """Adds a note to an exception that ends training: the component in whose code it was raised, and its plugin."""

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Adds the note, if a component's code was running."""
        if note := raised_in(exception, pl_module):
            exception.add_note(note)


def raised_in(error: BaseException, module: nn.Module) -> str:
    """``raised in model.blocks.0.ffn.router (BadRouter), plugin 'acme'``; empty for an exception of moekit's own.

    The innermost call whose first argument is a module inside ``module`` gives the path; the innermost call into a
    plugin's code, or into a module of a plugin's class, gives the plugin. Calls outside of ``module``'s own methods do
    not count.
    """
    names = {id(each): name for name, each in module.named_modules() if name}
    where = plugin = ""
    for frame in _innermost_first(error):
        first = _first_argument(frame)
        if first is module:
            break
        place = names.get(id(first), "")
        if place:
            where = where or f"{place} ({type(first).__name__})"
            plugin = plugin or _plugin_of(type(first).__module__)
        plugin = plugin or _plugin_of(str(frame.f_globals.get("__name__", "")))
        if plugin and where:
            break
    if not plugin:
        return f"raised in {where}" if where else ""
    return "raised in " + ", ".join(filter(None, [where, f"plugin '{plugin}'"]))


def _innermost_first(error: BaseException) -> Iterator[FrameType]:
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    yield from reversed(frames)


def _first_argument(frame: FrameType) -> Any:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _plugin_of(module: str) -> str:
    """The plugin that a Python module belongs to: of the target with the longest common path; empty if none has any."""

    def shared(component: Component) -> int:
        target = component.target if isinstance(component.target, str) else component.target.__module__
        pairs = zip(target.partition(":")[0].split("."), module.split("."), strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(target.count(".") + 1, module.count(".") + 1))

    known = current().components()
    best = max(known, key=shared, default=None)
    return best.plugin if best is not None and shared(best) and not module.startswith("moekit.") else ""

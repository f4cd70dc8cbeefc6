"""What is wrong: on a machine (versions, devices, threads, plugins), in a step with NaN; and completion in shells."""

from __future__ import annotations

from moekit.component import Verb
from moekit.hookspecs import hookimpl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from moekit.training.module import LitMoE
    from moekit.training.step import BrokenStep, Cause

MOEKIT_API = 2


@hookimpl
def moekit_verbs() -> list[Verb]:
    """The verbs of this plugin."""
    return [
        Verb(name="doctor", target="moekit_doctor.cli.doctor", summary="check this machine: what is wrong or slow"),
        Verb(
            name="completion",
            target="moekit_doctor.cli.completion",
            summary="complete verbs, names and keys in a shell",
        ),
    ]


@hookimpl
def moekit_module_built(module: LitMoE) -> None:
    """Has an exception that ends training name the component and plugin in whose code it was raised."""
    from moekit.compat import trainer_of
    from moekit_doctor.raised import NameComponent

    trainer = trainer_of(module)
    if trainer is not None and not any(isinstance(each, NameComponent) for each in trainer.callbacks):
        trainer.callbacks.append(NameComponent())


@hookimpl
def moekit_step_not_finite(step: BrokenStep) -> Cause:
    """The module that made a step's loss or gradients NaN or infinite."""
    from moekit_doctor.diagnosis import diagnose

    return diagnose(step)

"""The conformance kit: a pytest test for every promise that a component makes by its kind and its claims.

The author of a plugin writes, in a test file::

    from moekit_testing import parametrize_checks
    from my_package import Mine, moekit_components

    @parametrize_checks(moekit_components(), examples={"mine": [Mine(top_k=2)]})
    def test_conformance(check):
        check()

and gets tests named ``router/mine-check_padding``, ``router/mine-check_gradients``, and so on. The component's kind and
the claims of its spec (``form``, ``takes_bias``, ``causal``, ``dropless``, ...) determine which checks run; the claims
are checked too. Every check is a function ``check_...(case)`` whose docstring says what it demands and why.
"""

from __future__ import annotations

from moekit.component import Verb
from moekit.hookspecs import hookimpl
from moekit.lazy import from_stub

MOEKIT_API = 2
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)


@hookimpl
def moekit_verbs() -> list[Verb]:
    """The verbs of this plugin."""
    return [
        Verb(name="check", target="moekit_testing.cli.check", summary="run the conformance checks of components"),
        Verb(
            name="config.schema",
            target="moekit_testing.cli.schema",
            summary="write a JSON schema of recipes with every installed plugin, for editors",
        ),
        Verb(name="new", target="moekit_testing.cli.new", summary="write the package of a plugin to start from"),
    ]

"""The conformance kit: a pytest test for every promise that a component makes by its kind and its claims.

The author of a plugin writes, in a test file::

    from moekit.testing import parametrize_checks
    from my_package import Mine, moekit_components

    @parametrize_checks(moekit_components(), examples={"mine": [Mine(top_k=2)]})
    def test_conformance(check):
        check()

and gets tests named ``router/mine-check_padding``, ``router/mine-check_gradients``, and so on. The component's kind and
the claims of its spec (``form``, ``takes_bias``, ``causal``, ``dropless``, ...) determine which checks run; the claims
are checked too. Every check is a function ``check_...(case)`` whose docstring says what it demands and why.
"""

from __future__ import annotations

from moekit.testing.assertions import CheckFailure as CheckFailure
from moekit.testing.case import Case as Case
from moekit.testing.parametrize import BoundCheck as BoundCheck
from moekit.testing.parametrize import checks_for as checks_for
from moekit.testing.parametrize import parametrize_checks as parametrize_checks

"""The conformance kit: one pytest test for each promise that a component makes by being of its kind.

An author writes, in a test file of their own::

    from moekit.testing import parametrize_checks
    from my_package import COMPONENT, Mine

    @parametrize_checks([COMPONENT], examples={"mine": [Mine(top_k=2)]})
    def test_conformance(check):
        check()

and gets tests named ``router/mine-check_padding``, ``router/mine-check_gradients``, and so on. Which checks run is
decided by the component's kind and by what its spec claims (``form``, ``takes_bias``, ``causal``, ``dropless``, ...);
the claims are checked too. Every check is a plain function whose docstring says what it demands and why.
"""

from __future__ import annotations

from moekit.testing.case import Case as Case
from moekit.testing.case import CheckFailure as CheckFailure
from moekit.testing.parametrize import BoundCheck as BoundCheck
from moekit.testing.parametrize import checks_for as checks_for
from moekit.testing.parametrize import parametrize_checks as parametrize_checks

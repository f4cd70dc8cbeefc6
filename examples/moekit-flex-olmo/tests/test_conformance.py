"""The conformance checks of a format, one test each; those that need ``transformers`` are skipped without it."""

from __future__ import annotations

from collections.abc import Callable

from moekit_flex_olmo import moekit_components

from moekit_testing import parametrize_checks


@parametrize_checks(moekit_components(), examples={})
def test_conformance(check: Callable[[], None]) -> None:
    check()

"""``moekit plugins``."""

from __future__ import annotations

from dataclasses import replace

from cli_fakes import ACME, BETA, BROKEN, Captured, Use, check_output

from moekit.cli import main
from moekit.component import Component


def test_each_plugin_is_listed_with_what_it_offers(use: Use, capsys: Captured) -> None:
    use(ACME, BETA)
    table = (
        "plugin  package       API  offers\n"
        "moekit  moekit 0.1.0  2    17 kinds, 7 verbs\n"
        "acme    acme-moe 1.2  2    1 router, 1 balancer, 1 model\n"
        "beta    beta 0.3      2    1 router"
    )
    check_output("plugins", table, capsys)


def test_a_failed_plugin_is_listed_with_its_error_and_ends_with_code_1(use: Use, capsys: Captured) -> None:
    use(ACME, BROKEN)
    assert main(["plugins"]) == 1
    assert capsys.readouterr().out == (
        "plugin  package         API  offers\n"
        "moekit  moekit 0.1.0    2    17 kinds, 7 verbs\n"
        "acme    acme-moe 1.2    2    1 router, 1 balancer, 1 model\n"
        "broken  broken-moe 2.0  -    failed\n"
        "\n"
        "broken failed: ModuleNotFoundError: No module named 'triton'\n"
        "\n"
        "tracebacks: moekit plugins --trace\n"
    )


def test_the_option_trace_prints_tracebacks(use: Use, capsys: Captured) -> None:
    use(BROKEN)
    assert main(["plugins", "--trace"]) == 1
    assert capsys.readouterr().out.endswith(
        "broken failed: ModuleNotFoundError: No module named 'triton'\n"
        "  Traceback (most recent call last):\n"
        "    ...\n"
        "  ModuleNotFoundError: No module named 'triton'\n"
    )


def test_disabled_plugins_are_named(use: Use, capsys: Captured) -> None:
    use(BETA, disabled=("acme",))
    assert main(["plugins"]) == 0
    assert capsys.readouterr().out.endswith("\n\ndisabled by MOEKIT_DISABLE_PLUGINS: acme\n")


def test_first_party_plugins_are_listed(capsys: Captured) -> None:
    assert main(["plugins"]) == 0
    out = capsys.readouterr().out
    assert "papers" in out
    assert "recipes" in out


def test_what_slows_every_command_is_said(use: Use, capsys: Captured) -> None:
    use(replace(ACME, seconds=1.5, imports_torch=True))
    assert main(["plugins"]) == 0
    out = capsys.readouterr().out
    assert "note: importing acme (acme_moe) takes 1.5 s, which slows every command" in out
    assert "note: acme (acme_moe) imports torch when plugins are listed: name its classes" in out


def test_a_spec_that_cannot_be_imported_is_said_and_ends_with_code_1(use: Use, capsys: Captured) -> None:
    late = Component(kind="router", name="late", spec="no_such_specs:Late", target="a.b:C", summary="", plugin="acme")
    use(replace(ACME, components=(*ACME.components, late)))
    assert main(["plugins"]) == 1
    assert (
        "acme is incomplete: router 'acme/late': cannot import its spec 'no_such_specs:Late'\n"
        "  ModuleNotFoundError: No module named 'no_such_specs'"
    ) in capsys.readouterr().out

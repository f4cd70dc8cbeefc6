"""The page in a real Chromium: both themes, a phone, the keyboard, the policy, and axe-core's rules.

Skipped without ``playwright`` and ``axe-core-python``, which are no dependencies of moekit, or without a Chromium in
``PATH``: ``pip install playwright axe-core-python``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moekit.run import Run
from moekit_report.contents import contents
from moekit_report.page import html_of

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_core_python.sync_playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH")
SECTIONS = ("loss", "load", "statistics", "domains", "classes", "typical", "passage", "pairs", "bias")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as starter:
        browser = starter.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_of(contents(run)), encoding="utf-8")
    return path.as_uri()


def opened(browser: Any, address: str, **options: Any) -> tuple[Any, list[str], list[str]]:
    """A page, what it said on its console, and what it requested."""
    page = browser.new_context(**options).new_page()
    said: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")  # draws every chart, as printing does
    return page, said, requests


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_renders_in_both_themes_and_on_a_phone_without_errors_or_serious_findings_of_axe(
    browser: Any, address: str, theme: str, width: int
) -> None:
    page, said, requests = opened(
        browser, address, color_scheme=theme, viewport={"width": width, "height": 800}, offline=True
    )
    assert (said, requests) == ([], [address])
    for section in SECTIONS:
        assert page.is_visible(f"#{section}"), section
    for chart in page.query_selector_all(".chart svg[role=img]"):
        assert chart.get_attribute("aria-label")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for details in page.query_selector_all("details summary"):
        details.click()
    found = axe.Axe().run(page)["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []
    page.context.close()


def test_scripts_in_texts_do_not_run(browser: Any, address: str) -> None:
    page, said, _ = opened(browser, address)
    assert "<script>" in page.inner_text("#passage-tokens") and "<b>high" in page.inner_text("#passage-text")
    assert page.query_selector("#passage-tokens script, #passage-tokens img") is None
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert page.evaluate("window.ran") is None and "Content Security Policy" in " ".join(said)
    page.context.close()


def test_everything_works_by_keyboard(browser: Any, address: str) -> None:
    page, said, _ = opened(browser, address, bypass_csp=True)  # playwright evaluates what it waits for
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the findings"
    page.focus("#frame")
    before = page.inner_text("#frame-step")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("before => document.getElementById('frame-step').textContent !== before", arg=before)
    assert (before, page.inner_text("#frame-step")) == ("8", "6")
    page.focus("#layer")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.getElementById('passage-words').textContent.includes('blocks.2.ffn')")
    page.focus("#passage-expert")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#passage-tokens .on")
    outlined = len(page.query_selector_all("#passage-tokens .on"))
    assert f"has {outlined} of them, outlined" in page.inner_text("#passage-words")
    page.focus("#load-chart summary")
    page.keyboard.press("Enter")
    page.wait_for_selector("#load-chart table")
    assert len(page.query_selector_all("#load-chart tbody tr")) == 8 and said == []
    page.context.close()

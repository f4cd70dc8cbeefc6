"""Draws docs/images/report.light.png and report.dark.png: the load of experts in a run's report, in Chromium.

    moekit train atlas && python docs/make_screenshots.py atlas

Needs ``playwright`` and a Chromium in ``PATH``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import moekit
from moekit_report.contents import contents
from moekit_report.page import html_of

IMAGES = Path(__file__).parent / "images"


def main(run: str) -> None:
    """Writes both pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as starter:
        page_file = Path(folder) / "report.html"
        page_file.write_text(html_of(contents(moekit.open(run))), encoding="utf-8")
        browser = starter.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for theme in ("light", "dark"):
            page = browser.new_context(color_scheme=theme, viewport={"width": 1100, "height": 900}).new_page()
            page.goto(page_file.as_uri())
            page.wait_for_selector("body[data-ready]")
            page.evaluate("dispatchEvent(new Event('beforeprint'))")  # draws every chart
            page.evaluate("document.getElementById('load').scrollIntoView()")
            page.screenshot(path=IMAGES / f"report.{theme}.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

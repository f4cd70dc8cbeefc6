"""The page of a report: one HTML file that loads nothing, with its charts' library inside.

Its policy forbids every request, and every script but the three whose hashes it names. Text of the run is escaped: in
markup by ``html.escape``, in the data by ``\\u003c``, and the script only ever sets text, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "report.js")


def html_of(contents: Mapping[str, Any]) -> str:
    """The page.

    Args:
        contents: of the report, plain values; see ``moekit_report.contents``.
    """
    parts = {
        "title": escape(f"{contents['name']}: routing report"),
        "name": escape(str(contents["name"])),
        "summary": escape(str(contents["summary"])),
        "facts": "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in contents["facts"]),
        "findings": "".join(_finding(each) for each in contents["findings"]) or "<li>Nothing was found.</li>",
        "notes": "".join(f"<p class=note>{escape(note)}</p>" for note in contents["notes"]),
        "version": escape(str(contents["version"])),
    }
    return filled("report.html", parts, contents, scripts_of(SCRIPTS))


def scripts_of(names: Sequence[str]) -> list[str]:
    """The text of scripts."""
    return [(HERE / name).read_text(encoding="utf-8") for name in names]


def filled(template: str, parts: Mapping[str, str], data: Mapping[str, Any], scripts: Sequence[str]) -> str:
    """A page: a template with its parts, data, style, policy and scripts.

    Args:
        template: a file with ``@@name@@`` for each part.
        parts: escaped already, by name.
        data: what the last script reads.
        scripts: run in their order.
    """
    every = {
        **parts,
        "policy": policy_of(scripts),
        "style": (HERE / "report.css").read_text(encoding="utf-8"),
        "data": data_of(data),
        "scripts": "".join(f"<script>{script}</script>\n" for script in scripts),
    }
    pieces = (HERE / template).read_text(encoding="utf-8").split("@@")  # one pass: what is inserted is not searched
    return "".join(every[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def policy_of(scripts: Sequence[str]) -> str:
    """The content-security policy: nothing is loaded, and only these scripts run."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def data_of(contents: Mapping[str, Any]) -> str:
    """The contents as JSON that cannot end a script element."""
    text = json.dumps(contents, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _finding(finding: Mapping[str, str]) -> str:
    word = {"warning": "Warning", "note": "Note", "good": "Good"}[finding["level"]]
    key = f"<br><span class=key>{escape(finding['key'])}</span>" if finding["key"] else ""
    return f"<li class={escape(finding['level'])}><strong>{word}:</strong> {escape(finding['text'])}{key}</li>"

"""A conversation as text, message by message: what is only read, and what is learnt."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from moekit.errors import DataError
from moekit.files import read_regular

LARGEST = 16 << 20  # bytes of a template or of tokenizer_config.json
MARK = "\ue000"  # a character of private use
Message = Mapping[str, Any]
Render = Callable[[Sequence[Message], bool], str]
"""The text of messages; if the flag is set, with what comes before the next message of the assistant."""


class Segment(NamedTuple):
    """A stretch of text, and whether a model learns to write it."""

    text: str
    learnt: bool


def plain(messages: Sequence[Message], answering: bool) -> str:
    """A line with the role, then the message, for each message."""
    said = "".join(f"<{each['role']}>\n{each['content']}\n" for each in messages)
    return f"{said}<assistant>\n" if answering else said


def segments(messages: Sequence[Message], roles: Collection[str], render: Render) -> list[Segment]:
    """The text of a conversation, divided where what is learnt begins and ends.

    A message of a role in ``roles`` is learnt with what the template puts after it, which ends an answer, but without
    what it puts before it.

    Raises:
        DataError: the template writes a message otherwise when others follow it.
    """
    parts: list[Segment] = []
    before = ""
    for i, message in enumerate(messages):
        whole = render(messages[: i + 1], False)
        if not whole.startswith(before):
            raise DataError(
                f"the chat template writes message {i} or one before it otherwise when message {i + 1} follows, so a "
                "model would learn what it never needs to write\n"
                "  expected a template without such a rule, or data.template=null"
            )
        start = len(before)
        if message["role"] in roles:
            start = _start_of(message, messages[:i], whole, before, render)
            parts += [Segment(whole[len(before) : start], False), Segment(whole[start:], True)]
        else:
            parts.append(Segment(whole[start:], False))
        before = whole
    runs = groupby((part for part in parts if part.text), key=attrgetter("learnt"))
    return [Segment("".join(part.text for part in run), learnt) for learnt, run in runs]


def _start_of(message: Message, earlier: Sequence[Message], whole: str, before: str, render: Render) -> int:
    """Where the learnt text of a message begins: after the header that a template puts before it.

    A search for the message would find short ones inside the header: a mark in its place shows where it begins.
    """
    if message["role"] == "assistant":
        header = render(earlier, True)
        if whole.startswith(header):
            return len(header)
    marked = render([*earlier, {**message, "content": MARK}], False)
    at = marked.find(MARK, len(before))
    if at >= 0 and whole.startswith(marked[:at]):
        return at
    return max(whole.rfind(str(message["content"]), len(before)), len(before))


def template_of(folder: Path) -> Render:
    """The template of a folder of Hugging Face's, run without access to anything but the messages.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        fields = json.loads(read_regular(config, LARGEST)) if config.is_file() else {}
        text = read_regular(file, LARGEST).decode("utf-8") if file.is_file() else fields.get("chat_template")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the chat template in {folder}: {error}") from error
    if not isinstance(text, str):
        raise DataError(
            f"no chat template in {folder}\n  expected chat_template.jinja, or 'chat_template' in tokenizer_config.json"
        )
    return _compiled(text, {name: _content(fields.get(name)) for name in ("bos_token", "eos_token")}, folder)


def _content(token: Any) -> str:
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""


def _compiled(text: str, tokens: Mapping[str, str], folder: Path) -> Render:
    from jinja2 import TemplateError  # loaded for these templates alone; torch requires the package
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(why: str) -> None:
        raise DataError(f"the chat template in {folder} refuses the conversation: {why}")

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    try:
        template = environment.from_string(text)
    except TemplateError as error:
        raise DataError(f"the chat template in {folder} is not valid: {error}") from error

    def render(messages: Sequence[Message], answering: bool) -> str:
        try:
            return template.render(messages=list(messages), add_generation_prompt=answering, **tokens)
        except TemplateError as error:
            raise DataError(f"the chat template in {folder} failed: {error}") from error

    return render

"""Conversations: what is learnt of them, by role and by template, and how they become batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from moekit.contracts.run import NOT_LEARNT, Batch
from moekit.errors import DataError
from moekit.registry import build
from moekit_data.bytes import Bytes
from moekit_data.chat import Chat
from moekit_data.chat.module import ChatData
from moekit_data.chat.naive import naive_chat
from moekit_data.chat.template import plain, segments, template_of

CHATS = Path(__file__).parents[2] / "chats.jsonl"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "3 + 3?"},
    {"role": "assistant", "content": "6"},
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def folder_with(path: Path, template: str) -> Path:
    fields = {"chat_template": template, "eos_token": {"content": "<|im_end|>"}, "bos_token": None}
    (path / "tokenizer_config.json").write_text(json.dumps(fields))
    return path


def data_of(path: Path, chats: Sequence[object], **options: object) -> ChatData:
    (path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    made: ChatData = build(Chat(path=str(path / "chats.jsonl"), **options))  # type: ignore[arg-type]
    made.prepare()
    return made


def rows_of(batch: Batch) -> list[list[tuple[int, int]]]:
    assert batch.valid is not None
    return [
        list(zip(i[v].tolist(), t[v].tolist(), strict=True))
        for i, t, v in zip(batch.inputs, batch.targets, batch.valid, strict=True)
    ]


@pytest.mark.parametrize("roles", [["assistant"], ["user"], ["assistant", "user", "system"]])
def test_learnt_tokens_are_those_of_the_reference(tmp_path: Path, roles: list[str]) -> None:
    chats = [TALK, [*TALK[1:3]], [*TALK[:3], {"role": "user", "content": "<assistant>\nno"}, TALK[4]]]
    chats += [[{"role": "user", "content": text}, TALK[2]] for text in ("user", "u", ">", "", "\n", " \n<user>\nu")]
    data = data_of(tmp_path, chats, roles=roles, batch=2)
    tokens = build(Bytes())
    expected = {tuple(naive_chat(c, roles, lambda text: tokens.encode(text).tolist(), tokens.end)) for c in chats}
    found = {tuple(row) for batch in data.validation_batches() for row in rows_of(batch)}
    for seed in range(32):
        found |= {tuple(row) for row in rows_of(data.train_batch(torch.Generator().manual_seed(seed)))}
    assert found == expected


def test_padding_is_not_valid_and_bytes_count_what_is_learnt(tmp_path: Path) -> None:
    data = data_of(tmp_path, [TALK, TALK[1:3]], batch=2, validation=0.5)
    batch = data._collate([*data._train, *data._validation])
    assert batch.valid is not None and batch.num_bytes is not None
    assert batch.inputs.shape == batch.targets.shape == batch.valid.shape and batch.inputs.shape[1] % 8 == 0
    assert (batch.targets[~batch.valid] == NOT_LEARNT).all()
    learnt = batch.targets != NOT_LEARNT
    assert int(batch.num_bytes) == len("4\n6\n") + len("4\n") and int(learnt.sum()) == int(batch.num_bytes) + 3  # ends
    share = batch.learnt_share()
    assert share is not None and float(share) == pytest.approx(int(learnt.sum()) / int(batch.valid.sum()))


def test_a_template_says_where_an_answer_begins_and_ends(tmp_path: Path) -> None:
    render = template_of(folder_with(tmp_path, CHATML))
    found = segments(TALK, ["assistant"], render)
    assert "".join(text for text, _ in found) == render(TALK, False)
    assert [text for text, learnt in found if learnt] == ["4<|im_end|>\n", "6<|im_end|>\n"]
    assert segments(TALK, ["user"], render)[1] == ("2 + 2?<|im_end|>\n", True)
    assert [text for text, learnt in segments(TALK, ["assistant"], plain) if learnt] == ["4\n", "6\n"]


@pytest.mark.parametrize("text", ["user", "e", "|", "\n", "<|im_start|>user\nuser", ""])
def test_what_is_learnt_begins_after_the_header_whatever_the_message_says(tmp_path: Path, text: str) -> None:
    render = template_of(folder_with(tmp_path, CHATML))
    talk = [TALK[0], {"role": "user", "content": text}, TALK[2]]
    assert [part for part, learnt in segments(talk, ["user"], render) if learnt] == [f"{text}<|im_end|>\n"]


def test_a_template_that_changes_a_message_is_searched_for_it(tmp_path: Path) -> None:
    shown = "{% for m in messages %}{{ m['role'] + (': ' if m['content'] == 'u' else ' says ') + m['content'] + '.' }}"
    render = template_of(folder_with(tmp_path, shown + "{% endfor %}"))
    assert segments([{"role": "user", "content": "u"}], ["user"], render) == [("user: ", False), ("u.", True)]


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (
            "{% if messages[-1] %}{{ messages[-1]['content'] }}{% endif %}",
            "writes message 1 or one before it otherwise",
        ),
        ("{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "failed: access to attribute '__class__'"),
        ("{% for %}", "is not valid"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(tmp_path: Path, template: str, match: str) -> None:
    folder_with(tmp_path, template)
    with pytest.raises(DataError, match=match):
        segments(TALK, ["assistant"], template_of(tmp_path))


def test_a_folder_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no chat template in"):
        template_of(tmp_path)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{}", r"line 2: KeyError: 'messages'"),
        ("not json", r"line 2: JSONDecodeError"),
        ('{"messages": [{"role": "user", "content": 3}]}', r"line 2: 3\n"),
        ('{"messages": []}', r"line 2: no message"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, match: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n" + line + "\n")
    with pytest.raises(DataError, match=match):
        build(Chat(path=str(path))).prepare()


def test_conversations_in_which_nothing_is_learnt_are_skipped_and_counted(tmp_path: Path) -> None:
    silent = [{"role": "user", "content": "hello " * 50}, {"role": "assistant", "content": "hi"}]
    data = data_of(tmp_path, [TALK, TALK[1:3], silent, TALK[:3]], seq=80, validation=0.5)
    assert data.describe()["chats"].endswith("1 skipped, in which nothing is learnt")
    with pytest.raises(DataError, match="0 conversations to train on"):
        data_of(tmp_path, [TALK, TALK[1:3]], roles=["tool"])


def test_a_conversation_that_validates_does_not_train(tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"messages": TALK}) + "\n")
    data = data_of(tmp_path, [TALK, TALK[1:3], TALK], validation_path=str(held))
    assert data.describe()["chats"] == "train 1, validation 1; 2 not trained on, which validate"
    with pytest.raises(DataError, match="0 conversations to train on, 1 to validate with; 1 not trained on"):
        data_of(tmp_path, [TALK], validation_path=str(held))


def test_the_same_file_gives_the_same_split_and_another_text_another_fingerprint(tmp_path: Path) -> None:
    one, two = (build(Chat(path=str(CHATS))) for _ in range(2))
    one.prepare()
    two.prepare()
    assert one.fingerprint() == two.fingerprint()
    assert data_of(tmp_path, [TALK, TALK[1:3]]).fingerprint() != data_of(tmp_path, [TALK, TALK[:3]]).fingerprint()

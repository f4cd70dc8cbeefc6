"""Which tokens of a conversation are learnt, character by character: the reference implementation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence


def naive_chat(
    messages: Sequence[Mapping[str, str]], roles: Collection[str], encode: Callable[[str], Sequence[int]], end: int
) -> list[tuple[int, int]]:
    """``(token, target)`` for each position of a conversation in the plain form, one token for each character.

    The target is the next token if it belongs to a message that is learnt, else -100. To such a message belong the line
    break after it and the end token.
    """
    ids: list[int] = []
    learnt: list[bool] = []
    for message in messages:
        wanted = message["role"] in roles
        for letter in f"<{message['role']}>\n":
            ids.append(encode(letter)[0])
            learnt.append(False)
        for letter in message["content"] + "\n":
            ids.append(encode(letter)[0])
            learnt.append(wanted)
        if wanted:
            ids.append(end)
            learnt.append(True)
    return [(ids[i], ids[i + 1] if learnt[i + 1] else -100) for i in range(len(ids) - 1)]

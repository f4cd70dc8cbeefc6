"""Conversations from JSON lines, of which the messages of some roles are learnt. Torch-free: options and component."""

from collections.abc import Iterable

from moekit.spec.fields import option, slot
from moekit.spec.kinds import DataSpec, TokenizerSpec
from moekit_data.bytes import Bytes


class Chat(DataSpec):
    """Options of conversations. A line is ``{"messages": [{"role": "user", "content": "..."}, ...]}``."""

    path: str = option(help="a .jsonl file; relative to where moekit runs")
    validation_path: str | None = option(None, "a .jsonl file to validate with; default: a share of path")
    validation: float = option(0.1, "share of the conversations that is kept for validation", gt=0, lt=1)
    roles: list[str] = option(["assistant"], "roles whose messages are learnt; all others are only read")
    template: str | None = option(
        None,
        "how messages become text: a folder with Hugging Face's chat_template.jinja or tokenizer_config.json, such as "
        "imported/ of a run; default: a line with the role, then the message",
    )
    seq: int = option(1024, "tokens of a conversation; what is longer is cut", ge=2)
    batch: int = option(8, "conversations in a batch", ge=1)
    validation_batches: int = option(16, "batches in the validation set, at most", ge=1)
    tokenizer: TokenizerSpec = slot("tokenizer", "turns the text into tokens", default=Bytes())

    def check(self) -> Iterable[str]:
        """A path, and a role to learn."""
        if not self.path.strip():
            yield "path is empty; give a .jsonl file of conversations"
        if not self.roles:
            yield "roles is empty, so nothing would be learnt; give assistant, or others"

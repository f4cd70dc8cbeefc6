"""Generation: sampling from logits, targets of a model of pairs, and text from tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit import (
    Batch,
    Component,
    Data,
    Model,
    ModelOutput,
    MoekitError,
    Source,
    Tokenizer,
    hookimpl,
    load,
    option,
    temporary,
)
from moekit.cli import main
from moekit.inference.generate import answer, greedy, next_token, stream, targets
from moekit.spec.kinds import DataSpec
from moekit.training.module import LitMoE
from moekit.training.run.console import counted_unit
from moekit.training.run.train import train

END = 10


class Mirror(DataSpec):
    """Pairs of digits and the same digits backwards."""

    yields: ClassVar[str] = "pairs"
    vocab: int = option(11, "ten digits and the end", ge=11)
    batch: int = option(4, "pairs a batch", ge=1)


class Digits(Tokenizer):
    def __init__(self, end: int | None = END) -> None:
        self._end = end

    @property
    def spelling(self) -> list[bytes]:
        return [*(str(digit).encode() for digit in range(10)), b"10"]

    @property
    def end(self) -> int | None:
        return self._end

    def encode(self, text: str) -> Tensor:
        return torch.tensor([int(letter) for letter in text])


class MirrorData(Data):
    def __init__(self, spec: Mirror) -> None:
        self.spec = spec
        self.tokenizer = Digits()

    def prepare(self) -> None:
        return None

    def train_batch(self, generator: torch.Generator) -> Batch:
        B = self.spec.batch
        digits = torch.randint(10, (B, 6), generator=generator)
        length = torch.randint(2, 7, (B, 1), generator=generator)
        place = torch.arange(7)
        backwards = digits.gather(1, (length - 1 - place[:6]).clamp(min=0))
        target = torch.cat([backwards, torch.full((B, 1), END)], dim=1).where(place < length, END)
        start = torch.full((B, 1), END)
        valid = place <= length
        return Batch(
            torch.cat([start, target[:, :-1]], dim=1),
            target,
            valid,
            num_bytes=valid.sum(),
            source=Source(digits, place[:6] < length),
        )

    def validation_batches(self) -> Iterator[Batch]:
        yield self.train_batch(torch.Generator().manual_seed(5))


class Acme:
    MOEKIT_API = 2

    @staticmethod
    @hookimpl
    def moekit_components() -> list[Component]:
        return [Component(name="mirror", spec=Mirror, target=MirrorData, summary="digits backwards")]


@pytest.fixture(autouse=True)
def mirror() -> Iterator[None]:
    with temporary(Acme):
        yield


def tree(**changes: Any) -> dict[str, Any]:
    moe = {
        "at": {"every": 2},
        "router": {"use": "topk", "top_k": 1},
        "experts": {"use": "ffn", "count": 4, "hidden": 16},
        "dispatcher": {"use": "grouped"},
        "balancers": {"load": {"use": "load_balance", "weight": 0.01}},
    }
    return {
        "schema": 1,
        "name": "mirror",
        "model": {
            "use": "encoder_decoder",
            "vocab": "${data.vocab}",
            "dim": 16,
            "depth": 2,
            "attention": {"use": "relative", "heads": 2, "head_dim": 8},
            "cross": {"heads": 2, "head_dim": 8},
            "ffn": {"use": "ffn", "hidden": 32},
            "moe": moe,
            "dropout": 0.1,
        },
        "objective": {"use": "causal_lm"},
        "data": {"use": "mirror"},
        "optimizer": {"use": "adamw", "lr": 1e-2},
        "trainer": {"max_steps": 3, "accelerator": "cpu", "enable_progress_bar": False},
        **changes,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    with temporary(Acme):
        recipe = load(tree(compare={}))
        assert counted_unit(recipe) == "tokens"
        outcome = train(recipe, root=root)
        assert outcome.comparison is not None and outcome.steps == 3
        assert {"bits_per_byte", "loss"} <= set(outcome.validation)
        assert (outcome.folder / "load.png").is_file()
    return root


def test_a_run_of_three_steps_generates_a_target(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for _ in range(2):
        assert main(["generate", "mirror", "1234", "--tokens", "5", "--out", str(trained)]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].endswith("\n") and set(said[0].strip()) <= set("0123456789") and len(said[0]) <= 6
    assert not said[0].startswith("1234")  # only the target is printed, not the prompt


def test_a_model_learns_targets_from_its_source() -> None:
    torch.manual_seed(0)
    module = LitMoE(tree())
    module.model.eval()  # without dropout
    data = module.prepare()
    adam = torch.optim.AdamW(module.model.parameters(), lr=1e-2)
    losses = []
    for step in range(80):
        batch = data.train_batch(torch.Generator().manual_seed(step % 2))  # two batches, again and again
        loss = module.objective(module.model.on(batch), batch)
        mean = loss.total / loss.count
        losses.append(mean.item())
        adam.zero_grad()
        mean.backward()
        adam.step()
    assert losses[-1] < 0.5 < 2 < losses[0]
    batch = data.train_batch(torch.Generator().manual_seed(0))
    assert batch.source is not None and batch.valid is not None
    written = greedy(module.model, data.tokenizer)(batch.source, max_tokens=9)
    expected = [t[v][:-1].tolist() for t, v in zip(batch.targets, batch.valid, strict=True)]
    right = sum(w.tolist() == e for w, e in zip(written, expected, strict=True))
    assert right >= 3


class Script(Model):
    """A model that copies each source, whatever the target so far."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None, source: Source | None = None) -> ModelOutput:
        assert source is not None and valid is not None
        self.seen.append(valid)
        logits = torch.zeros(*inputs.shape, 12)
        return ModelOutput(y=logits.scatter(2, source.tokens[:, : inputs.shape[1], None], 9.0))

    def on(self, batch: Batch) -> ModelOutput:
        output: ModelOutput = self(batch.inputs, valid=batch.valid, source=batch.source)
        return output


def test_greedy_targets_stop_at_their_end() -> None:
    model, source = Script(), Source(torch.tensor([[3, 4, END, 7, 7], [5, END, 1, 1, 1], [1, 2, 3, END, 4]]))
    found = greedy(model, Digits())(source, max_tokens=5)
    assert [row.tolist() for row in found] == [[3, 4], [5], [1, 2, 3]]
    assert len(model.seen) == 4  # none is left after that
    assert model.seen[-1].tolist() == [[True, True, True, False], [True, True, False, False], [True, True, True, True]]
    assert [row.tolist() for row in greedy(model, Digits())(source, max_tokens=2)] == [[3, 4], [5], [1, 2]]
    assert [row.tolist() for row in greedy(model, Digits())(source, max_tokens=0)] == [[], [], []]


def test_targets_repeat_the_end_for_those_that_ended() -> None:
    source = Source(torch.tensor([[3, END, 7], [5, 6, 7]]))
    steps = list(targets(Script(), source, start=0, end=END, tokens=3))
    assert torch.stack(steps, 1).tolist() == [[3, END, END], [5, 6, 7]]


def test_answer_ends_before_the_end_token() -> None:
    source = torch.tensor([3, 4, END, 5])
    assert list(answer(Script(), Digits(), source, tokens=9)) == [3, 4]
    with pytest.raises(MoekitError, match="Digits names no token that ends a target"):
        answer(Script(), Digits(end=None), source, tokens=9)
    with pytest.raises(MoekitError, match="Digits names no token that ends a target"):
        greedy(Script(), Digits(end=None))(Source(source[None]), max_tokens=9)
    with pytest.raises(MoekitError, match="the data has no tokenizer"):
        greedy(Script(), None)(Source(source[None]), max_tokens=9)


def test_rows_are_sampled_independently() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    assert next_token(logits, temperature=0.0, top_p=1.0).tolist() == [0, 2]
    generator = torch.Generator().manual_seed(0)
    samples = torch.stack([next_token(logits, temperature=1.0, top_p=0.5, generator=generator) for _ in range(20)])
    assert samples.unique(dim=0).tolist() == [[0, 2]]  # a nucleus of one token each


def test_sampling_takes_the_fewest_tokens_that_reach_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    g = torch.Generator().manual_seed(0)

    def seen(top_p: float) -> set[int]:
        return {int(next_token(logits, temperature=1.0, top_p=top_p, generator=g)) for _ in range(300)}

    assert seen(0.4) == {0}
    assert seen(0.6) == {0, 1}
    assert seen(0.9) == {0, 1, 2}
    assert seen(1.0) == {0, 1, 2, 3}
    assert int(next_token(logits, temperature=0.0, top_p=1.0)) == 0


class Bytes:
    def decode(self, ids: torch.Tensor) -> str:
        return bytes(ids.tolist()).decode("utf-8", errors="replace")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12))
def test_streamed_text_has_only_whole_characters(text: str) -> None:
    parts = list(stream(Bytes(), text.encode()))  # type: ignore[arg-type]
    assert "".join(parts) == text.rstrip("\ufffd")
    assert "\ufffd" not in "".join(parts) or "\ufffd" in text


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=12))
def test_streamed_bytes_equal_bytes_decoded_at_once_up_to_the_last_whole_character(data: bytes) -> None:
    expected = data.decode("utf-8", errors="replace").rstrip("\ufffd")
    assert "".join(stream(Bytes(), data)) == expected  # type: ignore[arg-type]

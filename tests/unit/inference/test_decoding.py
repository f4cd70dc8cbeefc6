"""Incremental decoding: a cache changes no token, reads fewer, and respects the window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import DIM, GROUPED, VOCAB, decoder, model_of, moe_of, pairs
from torch import Tensor

from moekit import Cache, Model, ModelOutput, MoekitError, MoELayer, Source
from moekit.inference.generate import may_drop, sample, start_decoding, targets
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
from moekit_models.decoder import At, DecoderMoE
from moekit_models.encoder_decoder import EncoderDecoder
from moekit_models.lstm import LSTM

TIGHT = Capacity(factor=0.5)


def lengths_read(model: Model) -> list[int]:
    """A list that receives the number of positions in each call of the model's embedding."""
    lengths: list[int] = []
    model.get_submodule("embedding").register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    return lengths


class Counts(Model):
    """Predicts that the next token is one more than the last; has no cache."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        self.lengths.append(inputs.shape[1])
        return ModelOutput(y=torch.nn.functional.one_hot((inputs + 1) % 8, 8).float())


@pytest.mark.parametrize("cached", [None, True, False])
def test_sampling_reads_no_more_than_its_context(cached: bool | None) -> None:
    model = Counts()
    ids = list(sample(model, torch.tensor([3]), tokens=6, temperature=0.0, context=4, cached=cached))
    assert ids == [4, 5, 6, 7, 0, 1]
    assert model.lengths == [1, 2, 3, 4, 4, 4]


@pytest.mark.parametrize("spec", [decoder(), LSTM(vocab=VOCAB, dim=DIM, ffn=Glu(hidden=8), init_std=0.3)], ids=str)
@pytest.mark.parametrize("prompt", [1, 3, 9])
def test_a_cache_changes_no_token_inside_the_window_or_past_it(spec: Any, prompt: int) -> None:
    model = model_of(spec)
    start = torch.arange(prompt) % VOCAB
    texts = {}
    for cached in (False, True, None):
        generator = torch.Generator().manual_seed(5)
        ids = sample(model, start, tokens=12, top_p=1.0, temperature=1.0, context=7, cached=cached, generator=generator)
        texts[cached] = list(ids)
    assert texts[True] == texts[False] == texts[None]
    assert len(set(texts[True])) > 3  # not a constant text


def test_each_token_is_read_once_until_the_window_moves() -> None:
    model = model_of(decoder())
    lengths = lengths_read(model)
    list(sample(model, torch.arange(4), tokens=6, context=7))
    assert lengths == [4, 1, 1, 1, 7, 7]
    lengths.clear()
    list(sample(model, torch.arange(4), tokens=6, context=7, cached=False))
    assert lengths == [4, 5, 6, 7, 7, 7]


def test_a_prompt_longer_than_the_window_is_never_cached() -> None:
    model = model_of(decoder())
    lengths = lengths_read(model)
    list(sample(model, torch.arange(9), tokens=3, context=7))
    assert lengths == [7, 7, 7]


def test_targets_of_several_sources_are_the_same_with_a_cache() -> None:
    model = model_of(pairs())
    tokens = torch.randint(VOCAB, (5, 6), generator=torch.Generator().manual_seed(2))
    source = Source(tokens, torch.arange(6) < torch.tensor([[6], [2], [4], [1], [5]]))
    written = {}
    for cached in (False, True, None):
        steps = targets(model, source, start=0, end=1, tokens=12, temperature=1.0, cached=cached,
                        generator=torch.Generator().manual_seed(4))  # fmt: skip
        written[cached] = torch.stack(list(steps), dim=1)
    assert torch.equal(written[True], written[False]) and torch.equal(written[True], written[None])
    assert written[True].unique().numel() > 5 and (written[True] == 1).any()  # some end, others continue


def test_the_cache_is_the_default_unless_pairs_may_be_dropped() -> None:
    for spec, dropping in (
        (decoder(), False),
        (replace(decoder(), moe=None), False),
        (decoder(TIGHT), True),
        (decoder(DeviceCapacity(groups=2, inner=Grouped())), True),
        (pairs(TIGHT), True),
        (pairs(), False),
    ):
        model = model_of(spec)
        assert may_drop(model) is dropping
        source = Source(torch.zeros(1, 3, dtype=torch.int64)) if isinstance(spec, EncoderDecoder) else None
        for cached, once in ((None, not dropping), (True, True), (False, False)):
            decode = start_decoding(model, source, cached=cached)
            lengths = lengths_read(model)
            with torch.no_grad():
                for _ in range(3):
                    decode(torch.zeros(1, 1, dtype=torch.int64), None)
            assert lengths == ([1, 1, 1] if once else [1, 2, 3])


def test_a_layer_without_a_spec_may_drop() -> None:
    class Bare(Counts):
        def __init__(self) -> None:
            super().__init__()
            layer = MoELayer.from_spec(moe_of(DecoderMoE, GROUPED, at=At(first=0)), DIM)
            layer.spec = None
            self.layer = layer

    assert may_drop(Bare())


def test_a_cache_changes_which_pairs_a_tight_capacity_drops() -> None:
    """Therefore it is not the default then: a single token never exceeds the capacity."""
    model, tokens = model_of(decoder(TIGHT)), torch.arange(8)[None] % VOCAB
    cache = model.start_cache()
    assert cache is not None
    with torch.no_grad():
        whole = model(tokens)
        singly = [model.decode(token, cache) for token in tokens.split(1, dim=1)]
    assert int(whole.reports["blocks.1.ffn"].dropped) > 0
    assert sum(int(out.reports["blocks.1.ffn"].dropped) for out in singly) == 0
    apart = (torch.cat([out.y for out in singly], dim=1) - whole.y).abs().amax(-1)[0]
    assert apart.max() > 1e-3


def test_steps_without_a_mask_are_valid() -> None:
    seen: list[Tensor | None] = []

    class Masks(Counts):
        def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
            seen.append(valid)
            return super().forward(inputs)

    decode = start_decoding(Masks())
    ids = torch.zeros(2, 1, dtype=torch.int64)
    for mask in (None, torch.tensor([[True], [False]]), None):
        decode(ids, mask)
    assert seen[0] is None
    assert seen[1] is not None and seen[1].tolist() == [[True, True], [True, False]]
    assert seen[2] is not None and seen[2].tolist() == [[True, True, True], [True, False, True]]


def test_a_model_without_a_cache_cannot_decode() -> None:
    assert Counts().start_cache() is None
    with pytest.raises(MoekitError, match="Counts has no cache to decode with"):
        Counts().decode(torch.zeros(1, 1, dtype=torch.int64), Cache())

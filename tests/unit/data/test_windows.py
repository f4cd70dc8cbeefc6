import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit_data.windows import Windows

examples = settings(max_examples=60, deadline=None)


def make(lengths, seq):
    """Streams whose tokens are their positions: the n-th of domain d is 1000·d + n, and spells n mod 7 bytes."""
    streams = [1000 * d + torch.arange(n, dtype=torch.int32) for d, n in enumerate(lengths)]
    return Windows(streams, seq=seq, num_bytes_V=torch.arange(1000 * max(len(lengths), 1)) % 7)


layouts = st.integers(1, 12).flatmap(
    lambda seq: st.tuples(
        st.lists(st.one_of(st.just(0), st.integers(seq + 1, 90)), min_size=1, max_size=4).filter(any), st.just(seq)
    )
)


def check(batch, lengths, seq):
    """Each window is a stretch of its own domain's stream, targets one ahead, bytes exact."""
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.inputs.shape == batch.targets.shape == (len(batch.domain), seq)
    assert batch.inputs.is_contiguous() or batch.inputs.stride(-1) == 1
    for inputs, targets, domain in zip(
        batch.inputs.tolist(), batch.targets.tolist(), batch.domain.tolist(), strict=True
    ):
        start = inputs[0] - 1000 * domain
        assert 0 <= start
        assert start + seq < lengths[domain]
        assert [*inputs, targets[-1]] == list(range(inputs[0], inputs[0] + seq + 1))
        assert targets == [t + 1 for t in inputs]
    assert batch.num_bytes.item() == sum(t % 7 for t in batch.targets.flatten().tolist())


@examples
@given(layouts, st.integers(0, 2**32))
def test_a_sampled_window_stays_in_its_stream(layout, seed):
    lengths, seq = layout
    check(make(lengths, seq).draw(9, torch.Generator().manual_seed(seed)), lengths, seq)


@examples
@given(layouts, st.integers(0, 2**32))
def test_a_document_begins_with_the_end_of_the_one_before(layout, seed):
    """Token 7n ends a document: it is the first of the next, and a target of the one before."""
    lengths, seq = layout
    streams = [(torch.arange(n) + d) % 7 for d, n in enumerate(lengths)]
    windows = Windows(streams, seq=seq, num_bytes_V=torch.ones(7, dtype=torch.int64), end=0)
    batch = windows.draw(5, torch.Generator().manual_seed(seed))
    for row, document in zip(batch.inputs.tolist(), batch.document.tolist(), strict=True):
        assert document == [row[: i + 1].count(0) for i in range(seq)]
    plain = Windows(streams, seq=seq, num_bytes_V=torch.ones(7, dtype=torch.int64))
    same = plain.draw(5, torch.Generator().manual_seed(seed))
    assert same.document is None and torch.equal(same.inputs, batch.inputs) and same.num_bytes == batch.num_bytes


def test_domains_are_sampled_by_their_weights():
    windows = Windows([torch.zeros(30)] * 3, seq=4, num_bytes_V=torch.ones(1), weights=[1.0, 5.0, 2.0])
    domain = windows.draw(8000, torch.Generator().manual_seed(0)).domain
    shares = torch.bincount(domain, minlength=3) / 8000
    torch.testing.assert_close(shares, torch.tensor([1 / 8, 5 / 8, 2 / 8]), atol=0.02, rtol=0)


@examples
@given(layouts, st.integers(1, 20), st.integers(1, 7))
def test_spread_windows_are_equal_per_domain_and_do_not_overlap(layout, per_domain, size):
    lengths, seq = layout
    windows = make(lengths, seq)
    batches = list(windows.spread(per_domain, size))
    for batch in batches:
        check(batch, lengths, seq)
        assert len(batch.domain) <= size
    domain = torch.cat([b.domain for b in batches])
    present = [d for d, n in enumerate(lengths) if n]
    count = windows.num_spread(per_domain)
    assert torch.bincount(domain, minlength=len(lengths)).tolist() == [
        count * (d in present) for d in range(len(lengths))
    ]
    targets = torch.cat([b.targets for b in batches]).flatten().tolist()
    assert len(set(targets)) == len(targets)
    again = list(windows.spread(per_domain, size))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(batches, again, strict=True))


def test_spread_windows_reach_from_the_first_token_to_the_last():
    (batch,) = make([101], 10).spread(3, 8)
    assert batch.inputs[:, 0].tolist() == [0, 45, 90]
    assert batch.targets[-1, -1] == 100


def test_domains_and_starts_are_equally_likely():
    batch = make([8, 0, 800], 3).draw(6000, torch.Generator().manual_seed(0))
    counts = torch.bincount(batch.domain, minlength=3)
    assert counts[1] == 0
    assert abs(counts[0].item() - 3000) < 200  # 5 standard deviations of a fair coin
    starts = batch.inputs[batch.domain == 0, 0]
    assert torch.bincount(starts).tolist() == pytest.approx([600] * 5, abs=125)  # the five starts in 8 tokens


@pytest.mark.parametrize("lengths", [[], [0, 0], [5], [40, 5]])
def test_streams_too_short_are_refused(lengths):
    with pytest.raises(ValueError, match="hold no window of 5 tokens and the one after"):
        make(lengths, 5)

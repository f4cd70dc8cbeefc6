"""Relative position biases: which distances share a bucket, and how the bias changes attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.contracts import Init
from moekit.spec.fields import ConflictError
from moekit.weights import init_weights
from moekit_models.relative import Relative, naive
from moekit_models.relative.module import RelativeAttention, RelativePositions, bucket_of, starts


def test_buckets_of_the_paper_in_a_decoder() -> None:
    distance = -torch.tensor([0, 1, 15, 16, 18, 19, 112, 113, 127, 128, 5000])
    expected = [0, 1, 15, 16, 16, 17, 30, 31, 31, 31, 31]
    assert bucket_of(distance, starts(32, 128), both=False).tolist() == expected
    later = torch.tensor([1, 40])  # keys that are masked
    assert bucket_of(later, starts(32, 128), both=False).tolist() == [0, 0]


def test_buckets_of_the_paper_in_an_encoder() -> None:
    # 8 · 16^(k / 8): 8, 11.3, 16, 22.6, 32, 45.3, 64, 90.5
    assert starts(16, 128) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    distance = torch.tensor([0, 1, 7, 8, 11, 12, 15, 16, 90, 91, 1000])
    one_side = torch.tensor([0, 1, 7, 8, 8, 9, 9, 10, 14, 15, 15])
    assert bucket_of(-distance, starts(16, 128), both=True).tolist() == one_side.tolist()
    assert bucket_of(distance[1:], starts(16, 128), both=True).tolist() == (16 + one_side[1:]).tolist()


def test_a_largest_distance_takes_no_longer_than_a_small_one() -> None:
    found = starts(16, 1 << 31)  # 8 * 2**(3.5 k): 90.5, ... 189,812,531.2
    assert found[8:10] == [8, 91] and found[-1] == 189_812_532
    with pytest.raises(ConflictError, match="max_distance"):
        Relative(heads=2, head_dim=8, max_distance=10**20)


@settings(max_examples=40, deadline=None)
@given(
    buckets=st.integers(1, 12).map(lambda n: 4 * n),
    beyond=st.integers(1, 300),
    both=st.booleans(),
)
def test_buckets_follow_the_equation(buckets: int, beyond: int, both: bool) -> None:
    max_distance = buckets // 2 + beyond
    side = buckets // 2 if both else buckets
    distance = torch.arange(-2 * max_distance, 2 * max_distance)
    expected = [naive.bucket(d, both, buckets, max_distance) for d in distance.tolist()]
    assert bucket_of(distance, starts(side, max_distance), both=both).tolist() == expected


def test_the_bias_depends_on_the_signed_distance_alone() -> None:
    bias = RelativePositions(Relative(heads=3, head_dim=4), causal=False)(9)[0]
    for shift in range(-8, 9):
        along = bias.diagonal(shift, 1, 2)
        assert (along == along[:, :1]).all()
    assert not torch.equal(bias, bias.mT)  # earlier and later positions have numbers of their own


def test_a_large_bias_makes_a_head_attend_to_its_distance() -> None:
    attention = RelativeAttention(Relative(heads=1, head_dim=6), 6).double()
    with torch.no_grad():
        assert attention.bias is not None
        attention.bias.weight.zero_()
        attention.bias.weight[2] = 1e4  # the position two back, and no other
        for w in (attention.v.weight, attention.out.weight):
            w.copy_(torch.eye(6))
    x = torch.randn(1, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(attention(x)[:, 2:], x[:, :-2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_tables_start_with_the_variance_of_their_mean_fan(causal: bool) -> None:
    """flaxformer ``moe.gin``: variance SCALE / mean(heads, buckets); as an embedding it would be SCALE, std .3 to 1."""
    attention = RelativeAttention(Relative(heads=28, head_dim=2, buckets=36), 8, causal=causal)
    init_weights(attention, Init(scale=0.32), seed=0)
    assert attention.bias is not None
    assert float(attention.bias.weight.detach().std()) == pytest.approx(
        0.88 * 0.1, rel=0.05
    )  # truncated at two deviations


def test_dot_products_are_divided_by_the_root_of_the_width_by_default() -> None:
    default, plain = (RelativeAttention(Relative(heads=2, head_dim=4, scale=s), 8).double() for s in (None, 1.0))
    plain.load_state_dict(default.state_dict())
    with torch.no_grad():
        plain.q.weight.mul_(4**-0.5)
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(plain(x), default(x), rtol=1e-12, atol=1e-12)


def test_buckets_must_halve_twice_and_leave_room_for_long_distances() -> None:
    with pytest.raises(ValueError, match="buckets=6 must be a multiple of 4"):
        Relative(heads=1, head_dim=4, buckets=6)
    with pytest.raises(ValueError, match="max_distance=16 must be more than 16"):
        Relative(heads=1, head_dim=4, max_distance=16)

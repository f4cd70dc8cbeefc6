"""When a GPU has one kernel for a grouped product: a table, since no GPU is needed to know it."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from moekit_dispatchers.grouped import gpus

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
FAST = [
    (BF16, (9, 0), 1, True), (BF16, (9, 0), 1023, True), (BF16, (10, 0), 64, True), (BF16, (10, 3), 64, True),
    (BF16, (9, 0), 1024, False), (BF16, (10, 0), 65536, False),  # there it raises: group_count < 1024
    (FP16, (9, 0), 8, False), (FP32, (9, 0), 8, False), (FP64, (9, 0), 8, False), (FP16, (10, 0), 8, False),
    (BF16, (7, 5), 8, False), (BF16, (8, 0), 8, False), (BF16, (8, 6), 8, False), (BF16, (8, 9), 8, False),
    (BF16, (11, 0), 8, False), (BF16, (12, 0), 8, False), (BF16, None, 8, False),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "capability", "num_experts", "expected"), FAST)
def test_grouped_products_are_fast_in_bf16_on_two_kinds_of_gpu(
    dtype: torch.dtype, capability: tuple[int, int] | None, num_experts: int, expected: bool
) -> None:
    assert gpus.grouped_is_fast(dtype, capability, num_experts) == expected


def test_words_say_why_products_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "capability_of", lambda device: (9, 0))
    x_TD = torch.empty(2, 2, dtype=BF16)
    assert gpus.why_slow(x_TD, 8) == ""
    assert (
        gpus.why_slow(x_TD.float(), 8)
        == "torch has no grouped product in torch.float32 for 8 experts on this cpu device"
    )
    with torch.autocast("cpu", BF16):
        assert gpus.why_slow(x_TD.float(), 8) == ""
        assert "for 1024 experts" in gpus.why_slow(x_TD.float(), 1024)


@pytest.mark.parametrize(
    ("dtype", "capability", "expected"),
    [(BF16, (8, 0), True), (FP32, (12, 0), True), (FP64, (9, 0), False), (BF16, (7, 5), False), (BF16, None, False)],
)
def test_kernels_take_what_triton_compiles(
    dtype: torch.dtype, capability: tuple[int, int] | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "capability_of", lambda device: capability)
    monkeypatch.setattr(gpus, "_has_triton", lambda: True)
    assert gpus.kernels_take(torch.empty(2, dtype=dtype)) == expected
    monkeypatch.setattr(gpus, "_has_triton", lambda: False)
    assert not gpus.kernels_take(torch.empty(2, dtype=dtype))


def test_a_gpu_that_is_not_there_has_no_capability() -> None:
    assert gpus.capability_of(torch.device("cpu")) is None
    if not torch.cuda.is_available():
        with FakeTensorMode():
            assert gpus.capability_of(torch.empty(1, device="cuda").device) is None

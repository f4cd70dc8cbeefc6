"""Products by oneDNN: equal to those of torch, with all derivatives, and only where nothing else is requested."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moekit import products
from moekit.compat import has_onednn
from moekit.products import Linear, by_onednn, linear

pytestmark = pytest.mark.skipif(not has_onednn(), reason="this build of torch has no oneDNN")


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor on which oneDNN is faster, for any size."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "FROM", 1)
    monkeypatch.setattr(products, "ROWS", 1)


@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_has_the_outputs_and_gradients_of_torchs(bias: bool) -> None:
    layer = Linear(24, 40, bias=bias)
    x, g = torch.randn(3, 17, 24, requires_grad=True), torch.randn(3, 17, 40)
    y, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    assert "Linear" not in type(expected.grad_fn).__name__ or by_onednn(x, layer.weight)
    torch.testing.assert_close(y, expected)
    given = [x, *layer.parameters()]
    torch.testing.assert_close(torch.autograd.grad(y, given, g), torch.autograd.grad(expected, given, g))


@pytest.mark.usefixtures("faster")
def test_a_product_may_be_differentiated_twice() -> None:
    x, w = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)

    def second(run: object) -> tuple[torch.Tensor, ...]:
        y = run(x, w).tanh().sum()  # type: ignore[operator]
        first = torch.autograd.grad(y, [x, w], create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), [x, w])

    torch.testing.assert_close(second(linear), second(F.linear))


@pytest.mark.usefixtures("faster")
def test_other_precisions_modes_and_kinds_of_tensors_take_torchs_product() -> None:
    x, w = torch.randn(8, 4), torch.randn(6, 4)
    assert by_onednn(x, w) and by_onednn(x, nn.Parameter(w))
    assert not by_onednn(x.double(), w.double()) and not by_onednn(x.bfloat16(), w)
    assert not by_onednn(x.to("meta"), w.to("meta"))
    with torch.no_grad():  # prompts have any length
        assert not by_onednn(x, w)
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_onednn(x, w)
        assert linear(x, w).dtype == torch.bfloat16
    with FlopCounterMode(display=False) as counter:
        linear(x, w)
    assert counter.get_total_flops() == 2 * 8 * 4 * 6
    torch.testing.assert_close(torch.func.vmap(linear, (0, None))(x[:, None], w)[:, 0], F.linear(x, w))


def test_a_small_product_and_one_of_few_rows_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    w = torch.randn(64, 128)
    assert not by_onednn(torch.randn(products.ROWS, 8), w[:, :8])
    assert not by_onednn(torch.randn(products.ROWS - 1, 4096), torch.randn(64, 4096))
    assert by_onednn(torch.randn(products.FROM // (64 * 128), 128), w)

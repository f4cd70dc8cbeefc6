"""Many tensors are summed over ranks in few messages; gradients of replicated parameters are, once in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from moekit.parallel import sums
from moekit.parallel.sums import PartialSum, all_reduce_sums, messages
from moekit_lightning.sharded.gradients import sum_gradients

ONE, OTHER = cast(dist.ProcessGroup, "one"), cast(dist.ProcessGroup, "other")
Sent = list[tuple[Any, list[float]]]


@contextmanager
def ranks(total: Callable[[Tensor], Tensor]) -> Iterator[Sent]:
    """Two ranks, of which this is one: ``total`` makes the sum of both out of this one's message. A sum is late."""
    sent: Sent = []

    def all_reduce(message: Tensor, group: Any, async_op: bool) -> Any:
        sent.append((group, message.tolist()))
        return SimpleNamespace(wait=lambda: message.copy_(total(message)))

    with mock.patch.multiple(dist, all_reduce=all_reduce, get_world_size=lambda group: 2):
        yield sent


def test_sums_of_one_group_and_dtype_are_one_message() -> None:
    a, b, c, d = torch.tensor(1.0), torch.tensor([[2.0], [3.0]]), torch.tensor([4.0]), torch.tensor(5.0).double()
    parts: list[PartialSum] = [(a, (ONE, OTHER)), (b, (ONE,)), (c, ()), (torch.zeros(0, 3), (ONE,)), (d, (ONE,))]
    with ranks(lambda message: 2 * message) as sent:
        all_reduce_sums(parts)
    assert sent == [("one", [1.0, 2.0, 3.0]), ("other", [2.0]), ("one", [5.0])]
    assert (a.item(), b.tolist(), c.item(), d.item()) == (4.0, [[4.0], [6.0]], 4.0, 10.0)


def test_a_message_is_full_before_the_next_and_a_larger_tensor_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "MESSAGE_BYTES", 12)
    assert messages([4, 8, 4, 20, 4, 4]) == [range(2), range(2, 3), range(3, 4), range(4, 6)]
    assert messages([]) == []
    tensors = [torch.full((n,), float(n)) for n in (1, 2, 1, 5, 1, 1)]
    with ranks(lambda message: 2 * message) as sent:
        all_reduce_sums((tensor, (ONE,)) for tensor in tensors)
    assert [len(values) for _, values in sent] == [3, 1, 5, 2]
    assert [tensor.tolist() for tensor in tensors] == [[2.0 * n] * n for n in (1, 2, 1, 5, 1, 1)]


def test_half_precision_is_summed_in_fp32_and_rounded_once() -> None:
    """In bf16, 256 + 1 is 256."""
    half, number = torch.tensor([256.0]).bfloat16(), torch.tensor([3])
    with ranks(lambda message: 2 * message + 1) as sent:
        all_reduce_sums([(half, (ONE,)), (number, (ONE,))])
    assert half.dtype == torch.bfloat16 and half.item() == 512 and number.item() == 7  # bf16 lacks 513
    assert [type(values[0]) for _, values in sent] == [float, int]


def parameters(*gradients: float | None) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros(1)) for _ in gradients]
    for p, gradient in zip(made, gradients, strict=True):
        p.grad = None if gradient is None else torch.tensor([gradient])
    return made


def test_a_gradient_that_some_ranks_lack_is_summed_and_one_that_all_lack_stays_none() -> None:
    """The message: how many ranks have each gradient, then the gradients."""
    here = parameters(1.0, None, None, 4.0)
    other = torch.tensor([1.0, 1.0, 0.0, 0.0, 10.0, 20.0, 0.0, 0.0])
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    with ranks(lambda message: message + other) as sent:
        sum_gradients([*here, frozen], ONE)
    assert sent == [("one", [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 4.0])]
    assert [None if p.grad is None else p.grad.item() for p in (*here, frozen)] == [11.0, 20.0, None, 4.0, None]


def test_the_device_is_not_read_where_every_parameter_has_a_gradient() -> None:
    """Tensors on meta have no values."""
    p = nn.Parameter(torch.zeros(3, device="meta"))
    p.grad = torch.zeros(3, device="meta")
    work = SimpleNamespace(wait=lambda: None)
    with mock.patch.multiple(dist, all_reduce=lambda *a, **k: work, get_world_size=lambda group: 2):
        sum_gradients([p], ONE)
        p.grad = None
        with pytest.raises(RuntimeError, match="meta"):
            sum_gradients([p], ONE)


def test_one_rank_sends_nothing() -> None:
    (p,) = parameters(1.0)
    with mock.patch.multiple(dist, all_reduce=None, get_world_size=lambda group: 1):
        sum_gradients([p], ONE)
    assert p.grad is not None and p.grad.item() == 1

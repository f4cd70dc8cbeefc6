"""Kernel launches: which kernels run on which tensors. Nothing is read from the device.

Shapes: T tokens, N rows sorted by expert, D in, H hidden, O out; X is 2H with a gate and H without.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit_dispatchers.triton.blocks import FUSION, block, blocks_of, options, tile_height
from moekit_dispatchers.triton.kernels import products, rows


class Route(NamedTuple):
    """How rows map to tokens and back: see ``moekit_dispatchers.grouped.module.SortedPairs``.

    Attributes:
        end_E: int32, where each expert's rows end.
        token_N: int64, the token of each row.
        by_token_N: int64, the rows token by token.
        start_T: int64 ``[T + 1]``, where each token's rows start in ``by_token_N``.
    """

    end_E: Tensor
    token_N: Tensor
    by_token_N: Tensor
    start_T: Tensor


class Tiles(NamedTuple):
    """Rows split into tiles of ``height``; no tile has rows of two experts.

    Attributes:
        expert_X: int64, the expert of each tile; E for a surplus tile.
        row_X: int64, its first row.
        height: rows in a tile.
    """

    expert_X: Tensor
    row_X: Tensor
    height: int


def tiles(end_E: Tensor, num_rows: int, height: int) -> Tiles:
    """The most tiles that can be needed, ``ceil(N / height) + E``: only the device knows how many are."""
    E, X = end_E.shape[0], -(-num_rows // height) + end_E.shape[0]
    expert_X, row_X = (end_E.new_empty(X, dtype=torch.int64) for _ in range(2))
    with _on(end_E):
        rows.cut[(-(-X // 128),)](
            end_E, expert_X, row_X, X, E, HEIGHT=height, BLOCK_X=128, BLOCK_E=block(E, 128), **FUSION
        )
    return Tiles(expert_X, row_X, height)


def forward(
    x_TD: Tensor, gate_N: Tensor, w_in_EXD: Tensor, w_out_EOH: Tensor, route: Route, activation: str, save: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``y_TO``; and for backward ``h_NX``, the first product's output, and ``acted_NH``, the activation's.

    ``x_TD`` is contiguous, ``gate_N`` fp32, the weights any views, whose widths say whether there is a gate. A tensor
    that ``save`` (``all``, ``minimum``, ``nothing``) does not keep has no rows. Rows without an expert are not written.
    """
    N, X, H = route.token_N.shape[0], w_in_EXD.shape[1], w_out_EOH.shape[2]
    h_NX, acted_NH = x_TD.new_empty(0 if save == "nothing" else N, X), x_TD.new_empty(N, H)
    blocks = blocks_of(x_TD.dtype, x_TD.shape[1], H, w_out_EOH.shape[1])
    cut = tiles(route.end_E, N, tile_height(N, len(route.end_E), blocks))
    columns = block(H, blocks.side // 2 if X != H else blocks.side)  # a program with a gate computes two blocks
    with _on(x_TD):
        products.linear_activated[(len(cut.expert_X) * -(-H // columns),)](
            *(x_TD, route.token_N, w_in_EXD, h_NX, acted_NH, cut.expert_X, cut.row_X, route.end_E),
            *(len(route.end_E), x_TD.shape[1], H, *w_in_EXD.stride()),
            GATED=X != H,
            KEEP=save != "nothing",
            ACT=activation,
            **options(x_TD, blocks, cut.height, columns, x_TD.shape[1]),
        )
        out_NO = _linear(acted_NH, w_out_EOH, cut, route.end_E)
        y_TO = combine(out_NO, gate_N, route.by_token_N, route.start_T, x_TD.dtype)
        return y_TO, h_NX, acted_NH if save == "all" else x_TD.new_empty(0, H)


def backward(
    g_TO: Tensor,
    x_TD: Tensor,
    gate_N: Tensor,
    w_in_EXD: Tensor,
    w_out_EOH: Tensor,
    h_NX: Tensor,
    acted_NH: Tensor,
    route: Route,
    activation: str,
    save: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of tokens, gates, and both weights; empty if not needed, except that of the gates.

    ``g_TO`` is the output's gradient; ``h_NX`` and ``acted_NH`` are results of ``forward``, as are its
    arguments. ``needs`` says of tokens and of both weights whether their gradients are needed.
    """
    N, X, H = route.token_N.shape[0], w_in_EXD.shape[1], w_out_EOH.shape[2]
    blocks = blocks_of(x_TD.dtype, x_TD.shape[1], H, w_out_EOH.shape[1])
    cut = tiles(route.end_E, N, tile_height(N, len(route.end_E), blocks))
    g_TO = g_TO.contiguous()
    d_gate_N, d_h_NX = torch.zeros_like(gate_N), x_TD.new_empty(N, X)
    dx_TD, dw_in_EXD, dw_out_EOH = (x_TD.new_empty(0) for _ in range(3))
    with _on(x_TD):
        if save == "nothing":
            h_NX = _linear(x_TD, w_in_EXD, cut, route.end_E, route.token_N)
        d_acted_NH = _linear(g_TO, w_out_EOH.mT, cut, route.end_E, route.token_N)
        rows.activation_backward[(-(-N // 16),)](
            *(d_acted_NH, h_NX, acted_NH, gate_N, route.end_E[-1:], d_h_NX, d_gate_N, H),
            GATED=X != H,
            KEPT=save == "all",
            ACT=activation,
            BLOCK_M=16,
            BLOCK_N=block(H, 128),
            **FUSION,
        )
        if needs[2]:
            # d_acted_NH now holds the activation times the gate
            dw_out_EOH = _outer(g_TO, d_acted_NH, route.end_E, route.token_N, gather="a")
        del h_NX, d_acted_NH
        if needs[1]:
            dw_in_EXD = _outer(d_h_NX, x_TD, route.end_E, route.token_N, gather="b")
        if needs[0]:
            dx_ND = _linear(d_h_NX, w_in_EXD.mT, cut, route.end_E)
            dx_TD = combine(dx_ND, None, route.by_token_N, route.start_T, x_TD.dtype)
    return dx_TD, d_gate_N, dw_in_EXD, dw_out_EOH


def linear(x_ND: Tensor, w_EHD: Tensor, end_E: Tensor) -> Tensor:
    """``y_NH``: each row through its expert's weight, any view; rows without an expert are not written."""
    height = tile_height(x_ND.shape[0], len(end_E), blocks_of(x_ND.dtype, *w_EHD.shape[1:]))
    cut = tiles(end_E, x_ND.shape[0], height)
    with _on(x_ND):
        return _linear(x_ND.contiguous(), w_EHD, cut, end_E)


def outer(a_NH: Tensor, b_ND: Tensor, end_E: Tensor) -> Tensor:
    """``w_EHD``: for each expert the sum over its rows of a outer b; 0 without rows."""
    with _on(a_NH):
        return _outer(a_NH.contiguous(), b_ND.contiguous(), end_E)


def combine(rows_NX: Tensor, gate_N: Tensor | None, by_token_N: Tensor, start_T: Tensor, dtype: torch.dtype) -> Tensor:
    """``y_TX`` in ``dtype``: each token's rows, times their gates, summed in fp32."""
    T, width = start_T.shape[0] - 1, rows_NX.shape[1]
    y_TX, columns = rows_NX.new_empty(T, width, dtype=dtype), block(width, 1024)
    with _on(rows_NX):
        rows.combine[(T, -(-width // columns))](
            *(rows_NX, rows_NX if gate_N is None else gate_N, by_token_N, start_T, y_TX, width),
            GATED=gate_N is not None,
            BLOCK=columns,
            **FUSION,
        )
    return y_TX


def gated_backward(g_TO: Tensor, y_NO: Tensor, gate_N: Tensor, token_N: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of rows that ``combine`` sums, and of their gates; 0 from row ``last`` (one number) on."""
    (N, width), dy_NO, d_gate_N = y_NO.shape, torch.empty_like(y_NO), torch.empty_like(gate_N)
    with _on(y_NO):
        rows.gated_backward[(-(-N // 4),)](
            *(g_TO, y_NO, gate_N, token_N, last, dy_NO, d_gate_N, N, width),
            BLOCK_M=4,
            BLOCK_N=block(width, 512),
            **FUSION,
        )
    return dy_NO, d_gate_N


def _linear(x_XX: Tensor, w_EXX: Tensor, cut: Tiles, end_E: Tensor, token_N: Tensor | None = None) -> Tensor:
    """Each row through its expert's weight; with ``token_N``, ``x_XX`` has a row per token."""
    width_out, width_in = w_EXX.shape[1:]
    y_NX = x_XX.new_empty(len(x_XX if token_N is None else token_N), width_out)
    blocks = blocks_of(x_XX.dtype, width_in, width_out)
    columns = block(width_out, blocks.side)
    products.linear[(len(cut.expert_X) * -(-width_out // columns),)](
        *(x_XX, end_E if token_N is None else token_N, w_EXX, y_NX, cut.expert_X, cut.row_X, end_E),
        *(len(end_E), width_in, width_out, width_in, *w_EXX.stride()),
        GATHER=token_N is not None,
        **options(x_XX, blocks, cut.height, columns, width_in),
    )
    return y_NX


def _outer(a_XX: Tensor, b_XX: Tensor, end_E: Tensor, token_N: Tensor | None = None, *, gather: str = "") -> Tensor:
    """For each expert the sum over its rows of a outer b; the one named by ``gather`` has a row per token."""
    E, width_a, width_b = len(end_E), a_XX.shape[1], b_XX.shape[1]
    N = len(a_XX if token_N is None else token_N)
    dw_EXX = a_XX.new_empty(E, width_a, width_b)
    blocks = blocks_of(a_XX.dtype, width_a, width_b)
    height, columns = block(width_a, blocks.side), block(width_b, blocks.side)
    products.outer[(E * -(-width_a // height) * -(-width_b // columns),)](
        *(a_XX, b_XX, end_E if token_N is None else token_N, dw_EXX, end_E, width_a, width_b),
        GATHER_A=gather == "a",
        GATHER_B=gather == "b",
        **options(a_XX, blocks, height, columns, tile_height(N, E, blocks)),
    )
    return dw_EXX


def _on(t: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's device the current one, where kernels are launched."""
    return torch.cuda.device(t.device) if t.device.type == "cuda" else nullcontext()

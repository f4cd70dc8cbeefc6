"""The triton dispatcher without a GPU: what it hands to ``grouped``, and that its kernels compile for GPUs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from routings import best_of_random
from torch._subclasses.fake_tensor import FakeTensorMode

from moekit.contracts import LayerDims, StandardForm
from moekit.errors import MoekitError
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.grouped.module import GroupedDispatcher
from moekit_dispatchers.triton import Triton
from moekit_dispatchers.triton.module import ACTIVATIONS, TritonDispatcher
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts

T, D, H, E, K = 6, 8, 5, 4, 2
DIMS = LayerDims(dim=D, num_experts=E)


def form(dtype: torch.dtype = torch.float32, **changes: Any) -> StandardForm:
    weights = {"w_in_EHD": torch.empty(E, 2 * H, D, dtype=dtype), "w_out_EOH": torch.empty(E, D, H, dtype=dtype)}
    return StandardForm(**{"activation": "silu", "gated": True, **weights, **changes})


def on_gpu(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Fake tokens on a GPU: their description without data."""
    with FakeTensorMode():
        return torch.empty(T, D, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_cpu_it_is_the_grouped_dispatcher(dtype: torch.dtype) -> None:
    x_TD, way, bank = (
        torch.randn(T, D, dtype=dtype),
        best_of_random(T, E, K),
        GluExperts(Glu(count=E, hidden=H), DIMS).to(dtype),
    )
    found, expected = (
        d(x_TD, way, bank).y_TO for d in (TritonDispatcher(Triton(), DIMS), GroupedDispatcher(Grouped(), DIMS))
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("x_TD", "weights", "words"),
    [
        (torch.empty(T, D), form(), "it is for CUDA devices; the tokens are on cpu"),
        (
            on_gpu(torch.float64),
            form(torch.float64),
            "it takes fp32, fp16 or bf16 throughout; tokens are torch.float64",
        ),
        (on_gpu(torch.bfloat16), form(), "it takes fp32, fp16 or bf16 throughout; tokens are torch.bfloat16, weights "),
        (on_gpu(), form(activation="tanh"), "it has no activation 'tanh'"),
        (on_gpu(), form(), ""),
        (on_gpu(torch.float16), form(torch.float16), ""),
    ],
    ids=["cpu", "fp64", "two dtypes", "activation", "fp32", "fp16"],
)
def test_why_not_names_the_obstacle(x_TD: torch.Tensor, weights: StandardForm, words: str) -> None:
    found = TritonDispatcher(Triton(), DIMS).why_not(x_TD, weights)
    assert found.startswith(words)
    assert bool(found) == bool(words)


def test_under_autocast_tokens_and_weights_may_differ() -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16) if torch.cuda.is_available() else torch.autocast("cpu"):
        x_TD = torch.empty(T, D, dtype=torch.bfloat16)
        dispatcher = TritonDispatcher(Triton(), DIMS)
        dispatcher.interpreted = True
        assert dispatcher.why_not(x_TD, form()) == ""


def test_a_missing_package_is_named_with_its_remedies() -> None:
    dispatcher = TritonDispatcher(Triton(), DIMS)
    dispatcher.installed, dispatcher.interpreted = False, True
    bank = GluExperts(Glu(count=E, hidden=H), DIMS)
    with pytest.raises(MoekitError, match=r"(?s)needs triton.*pip install 'moekit\[triton\]'.*'grouped' or 'auto'"):
        dispatcher(torch.randn(T, D), best_of_random(T, E, K), bank)


def test_building_it_imports_no_triton() -> None:
    script = (
        "import sys\n"
        "from moekit.contracts import LayerDims\n"
        "from moekit_dispatchers.triton import Triton\n"
        "from moekit_dispatchers.triton.module import TritonDispatcher\n"
        "TritonDispatcher(Triton(), LayerDims(dim=4, num_experts=2))\n"
        "assert 'triton' not in sys.modules and 'moekit_dispatchers.triton.launch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- the kernels, compiled for GPUs that are not there --------------------------------------------------------------

ROUTE = {"token_of": "*i64", "by_token": "*i64", "start_of": "*i64", "tile_expert": "*i64", "tile_row": "*i64"}
FIXED = {**ROUTE, "end_of": "*i32", "last": "*i32", "gate": "*fp32", "d_gate": "*fp32"}
NUMBERS = ("num_experts", "num_rows", "num_tiles", "width", "width_in", "width_out", "width_a", "width_b", "hidden")
STRIDES = ("x_row", "w_expert", "w_out", "w_in")
ROWS = {"BLOCK_M": 16, "BLOCK_N": 32}
SMALL_GPU = 99 << 10
"""Bytes of shared memory of a block on desktop GPUs."""

KERNELS: list[tuple[str, str, dict[str, Any]]] = [
    ("products", "linear", {"GATHER": True}),
    ("products", "linear_activated", {"GATED": True, "KEEP": True, "ACT": "silu"}),
    ("products", "outer", {"GATHER_A": True, "GATHER_B": False}),
    ("rows", "combine", {"GATED": True, "BLOCK": 64}),
    ("rows", "gated_backward", ROWS),
    ("rows", "cut", {"HEIGHT": 128, "BLOCK_X": 128, "BLOCK_E": 64}),
    *(
        ("rows", "activation_backward", {"GATED": act != "relu", "KEPT": act == "relu", "ACT": act} | ROWS)
        for act in ACTIVATIONS
    ),
]
HELPERS = {"multiply", "activate", "derivative"}
"""Functions that kernels call."""


def largest(kernel: str, constants: dict[str, Any], dtype: torch.dtype, width: int) -> dict[str, Any]:
    """The launch options of a product's largest blocks."""
    from moekit_dispatchers.triton.blocks import blocks_of, options, tile_height

    blocks = blocks_of(dtype, width)
    height = blocks.side if kernel == "outer" else tile_height(1 << 20, 1, blocks)
    columns = blocks.side // (2 if constants.get("GATED") else 1)
    return options(torch.empty(0, dtype=dtype), blocks, height, columns, width)


def spilled(cubin: bytes, tools: Path, tmp_path: Path) -> int:
    """Bytes of registers that a thread keeps in memory."""
    (tmp_path / "kernel.cubin").write_bytes(cubin)
    said = subprocess.run(
        [tools / "cuobjdump", "-res-usage", tmp_path / "kernel.cubin"], capture_output=True, text=True, check=True
    )
    (stack,) = re.findall(r"STACK:(\d+)", said.stdout)
    return int(stack)


@pytest.mark.parametrize(("dtype", "capability"), [("bf16", 90), ("fp32", 80)])
@pytest.mark.parametrize(
    ("file", "kernel", "constants"),
    KERNELS,
    ids=lambda value: value.get("ACT", "") if isinstance(value, dict) else value,
)
@pytest.mark.parametrize("width", [1 << 12, pytest.param(4095, marks=pytest.mark.slow)])
def test_kernels_compile_for_gpus(
    file: str,
    kernel: str,
    constants: dict[str, Any],
    dtype: str,
    capability: int,
    width: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To machine code, by triton's own compiler, which rejects more than the interpreter does.

    Products in their largest blocks. With addresses and widths that are multiples of 16, as in real layers, loads run
    ahead of products, which needs the most shared memory; with odd widths addresses need the most registers.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from moekit_dispatchers.triton.kernels import products, rows

    function = getattr({"products": products, "rows": rows}[file], kernel)
    kinds = {
        name: FIXED.get(name, "i32" if name in (*NUMBERS, *STRIDES) else f"*{dtype}") for name in function.arg_names
    }
    options = {"enable_fp_fusion": True, "num_warps": 4}
    if file == "products":
        how = largest(kernel, constants, {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype], width)
        options = {name: how.pop(name) for name in (*options, "num_stages")}
        constants = (
            constants | how | ({} if kernel == "outer" else {"w_in": 1})
        )  # Triton makes a stride of 1 a constant
    odd = (*NUMBERS, *STRIDES) if width % 16 else ()
    names = [(i, name) for i, name in enumerate(function.arg_names) if name not in constants]
    whole = {(i,): [["tt.divisibility", 16]] for i, name in names if name not in odd}
    signature = kinds | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=whole)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert len(compiled.asm["cubin"]) > 1000
    assert compiled.metadata.shared <= SMALL_GPU
    assert spilled(compiled.asm["cubin"], Path(triton.__file__).parent / "backends/nvidia/bin", tmp_path) == 0


def test_every_kernel_is_compiled_above() -> None:
    from moekit_dispatchers.triton.kernels import products, rows

    written = {
        (file, name)
        for file, module in (("products", products), ("rows", rows))
        for name, value in vars(module).items()
        if hasattr(value, "arg_names") and name not in HELPERS
    }
    assert written == {(file, name) for file, name, _ in KERNELS}

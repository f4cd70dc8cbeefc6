"""What a card must do as a CPU does: one rank with NCCL and FSDP2, autocast, compiled layers, checkpoints.

``MOEKIT_TEST_DEVICE=cpu pytest -m gpu`` rehearses these tests on the CPU.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from devices import on_a_card
from ranks import run

import moekit

SCRIPT = Path(__file__).with_name("one_rank_run.py")


@on_a_card
def test_one_rank_trains_saves_and_resumes_in_a_process_group(
    card: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group of one rank sends and sums as several do; its run equals one without a group."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SCRIPT.parents[1]), *sys.path]))
    done = run([sys.executable, str(SCRIPT), card, str(tmp_path)], timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    found = json.loads(done.stdout.split("found ")[1])
    assert ("nccl" if card == "cuda" else "gloo") in found["backend"]
    assert found["tensors"] > 16 and found["names differ"] == []
    assert found["resumed differs"] == [], "to the last bit"
    assert found["apart"] <= 1e-3
    assert found["exchange"]["rows"] > 0
    assert found["exchange"]["wrong"] == 0 and found["exchange"]["gradient wrong"] <= 1e-6


@on_a_card
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own compiler
@pytest.mark.parametrize(("dispatcher", "autocast"), [("grouped", True), ("capacity", False), ("triton", True)])
def test_a_compiled_layer_equals_itself(dispatcher: str, autocast: bool, card: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = moekit.layer(
        dim=32,
        router={"use": "topk", "top_k": 2},
        experts={"use": "glu", "count": 4, "hidden": 16},
        dispatcher={"use": dispatcher},
    ).to(card)
    x = torch.randn(2, 24, 32, device=card, requires_grad=True)

    def pass_through(call: object) -> tuple[torch.Tensor, ...]:
        assert callable(call)
        with torch.autocast(card, torch.bfloat16, enabled=autocast):
            y, report = call(x)
        grads = torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()], materialize_grads=True)
        return (y.detach().float(), report.load_E, *grads)

    plain, compiled = pass_through(layer), pass_through(torch.compile(layer))
    bound = 2.0**-6 if autocast else 1e-5
    assert torch.equal(plain[1], compiled[1])
    for expected, found in zip(plain, compiled, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=bound * float(expected.abs().max()))

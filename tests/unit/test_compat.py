"""Each private interface of torch and Lightning that ``moekit.compat`` wraps works as moekit needs it."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
from fake_ranks import WORLD, as_rank
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.flop_counter import FlopCounterMode

from moekit import compat


def test_shard_bounds_are_the_shape_and_offset_of_the_local_tensor() -> None:
    with as_rank(1):
        mesh = init_device_mesh("cpu", (WORLD,))
        tensor = distribute_tensor(torch.arange(20.0).reshape(10, 2), mesh, [Shard(0)], src_data_rank=None)
        assert compat.shard_bounds(tensor) == ((3, 2), (3, 0))
        assert torch.equal(tensor.to_local(), torch.arange(20.0).reshape(10, 2)[3:6])


def test_modes_and_transforms_of_torch_are_noticed() -> None:
    seen = []

    def f(x: torch.Tensor) -> torch.Tensor:
        seen.append(compat.is_observed())
        return x.sum()

    f(torch.ones(1))
    torch.func.grad(f)(torch.ones(1))
    with FlopCounterMode(display=False):
        f(torch.ones(1))
    assert seen == [False, True, True]


def test_timeout_of_a_process_group_is_the_one_it_was_created_with(tmp_path: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1, timeout=timedelta(0, 7)
    )
    try:
        assert dist.group.WORLD is not None
        assert compat.timeout_of(dist.group.WORLD) == timedelta(seconds=7)
        assert compat.timeout_of(dist.group.WORLD, torch.device("cpu")) == timedelta(seconds=7)
        other = dist.new_group([0], timeout=timedelta(0, 8))
        compat.set_timeouts(timedelta(0, 9))
        assert compat.timeout_of(dist.group.WORLD) == compat.timeout_of(other) == timedelta(seconds=9)
    finally:
        dist.destroy_process_group()


def test_views_share_the_id_of_their_storage_also_as_fake_tensors() -> None:
    with compat.FakeTensorMode():
        x, y = torch.zeros(4), torch.zeros(4)
        assert compat.storage_id(x[1:].untyped_storage()) == compat.storage_id(x.untyped_storage())
        assert compat.storage_id(x.untyped_storage()) != compat.storage_id(y.untyped_storage())


@pytest.mark.parametrize("read", [lambda x: x.item(), lambda x: x.nonzero()], ids=["a number", "a size"])
def test_reading_a_fake_tensor_on_the_host_raises(read: object) -> None:
    with compat.FakeTensorMode(), pytest.raises(compat.HOST_READS, match=r"aten\."):
        read(torch.ones(()))  # type: ignore[operator]


def test_a_dispatch_mode_sees_every_operator() -> None:
    seen = []

    class Watch(compat.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        torch.ones(2).mul(3)
    assert seen == ["aten.ones.default", "aten.mul.Tensor"]
    assert list(compat.tree_iter({"a": [1, (2,)]})) == [1, 2]


def test_softmax_backward_replaces_a_gradient_by_that_of_the_scores() -> None:
    scores = torch.randn(3, 5, requires_grad=True)
    g, p = torch.randn(3, 5), scores.softmax(-1)
    (right,) = torch.autograd.grad(p, scores, g)
    compat.softmax_backward_(g, p.detach())
    torch.testing.assert_close(g, right)


def test_foreach_norm_is_the_norm_of_each_tensor_in_the_given_dtype() -> None:
    tensors = [torch.tensor([3.0, 4.0], dtype=torch.bfloat16), torch.tensor([[5.0], [12.0]], dtype=torch.bfloat16)]
    norms = compat.foreach_norm(tensors, 2.0, dtype=torch.float32)
    assert [(float(norm), norm.dtype) for norm in norms] == [(5.0, torch.float32), (13.0, torch.float32)]


def test_replace_tensors_replaces_every_parameter_and_buffer() -> None:
    module = nn.BatchNorm1d(2, device="meta")
    compat.replace_tensors(module, lambda t: torch.full_like(t, 7, device="cpu"))
    assert all((t == 7).all() for t in [*module.parameters(), *module.buffers()])


def test_a_resumed_schedule_continues_at_its_step_and_sets_the_rates_of_that_step() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=8.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.param_groups[0]["lr"] = 1.0
    compat.resume_schedule(schedule, 3)
    assert schedule.last_epoch == 3
    assert optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0] == 1.0
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_trainer_of_a_module_without_one_is_none() -> None:
    module, trainer = L.LightningModule(), L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert compat.trainer_of(module) is None
    module.trainer = trainer
    assert compat.trainer_of(module) is trainer


def test_a_stopped_process_that_lightning_started_is_killed() -> None:
    """It would not react to SIGTERM. Without a launcher of Lightning, nothing is killed."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        child.send_signal(signal.SIGSTOP)
        launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
        launcher.procs = [child]
        compat.kill_started_processes(launcher)
        assert child.wait(timeout=60) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
    compat.kill_started_processes(None)


@pytest.mark.filterwarnings("ignore")  # Lightning's own advice
def test_a_handler_of_sigterm_replaces_lightning_s_own_until_it_is_removed() -> None:
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    heard: list[int] = []
    for handler in (lambda number, frame: heard.append(number), None):
        compat.set_sigterm_handler(trainer, handler)
        trainer._signal_connector.register_signal_handlers()
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            trainer._signal_connector.teardown()
        assert (heard, trainer.received_sigterm) == ([signal.SIGTERM], handler is None)


@pytest.mark.filterwarnings("ignore")  # Lightning's own advice
def test_the_counters_of_lightning_s_loop_are_in_its_checkpoint() -> None:
    class Tiny(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.layer(batch).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = L.Trainer(
        logger=False, enable_checkpointing=False, accelerator="cpu", max_epochs=1, accumulate_grad_batches=2,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Tiny(), torch.utils.data.DataLoader(torch.ones(6, 1)))
    total, current = compat.loop_counters({"loops": {"fit_loop": trainer.fit_loop.state_dict()}})
    assert total["completed"] == current["completed"] == 6


@pytest.mark.filterwarnings("ignore")
def test_a_validation_within_fit_sees_every_batch_and_then_training_continues() -> None:
    """Also right after a checkpoint was restored whose validation was cut."""

    class Tiny(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)
            self.seen: list[str] = []

        def on_train_start(self) -> None:
            self.trainer.fit_loop.epoch_loop.val_loop.restarting = True
            self.trainer.fit_loop.epoch_loop.val_loop.batch_progress.current.completed = 2
            compat.validate_now(self.trainer)
            assert self.trainer.training and torch.is_grad_enabled()

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            self.seen.append("train")
            return self.layer(batch).sum()

        def validation_step(self, batch: torch.Tensor) -> None:
            self.seen.append("validate")

        def on_validation_end(self) -> None:
            self.seen.append("end")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = L.Trainer(
        logger=False, enable_checkpointing=False, accelerator="cpu", max_steps=1, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    module, loader = Tiny(), torch.utils.data.DataLoader(torch.ones(3, 1))
    trainer.fit(module, loader, loader)
    assert module.seen == [*["validate"] * 3, "end", "train"]


def test_onednn_multiplies_in_fp32_with_weights_of_any_layout() -> None:
    if not compat.has_onednn():
        pytest.skip("this torch has no oneDNN")
    x, w = torch.randn(33, 20), torch.randn(20, 24)
    torch.testing.assert_close(compat.onednn_linear(x, w.t()), x @ w, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compat.onednn_linear(x, w.t().contiguous()), x @ w, rtol=1e-5, atol=1e-5)

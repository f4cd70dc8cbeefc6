"""All private interfaces of torch and Lightning that moekit uses, each behind a function that says what it is for.

Any new version of torch or Lightning may change them. ``tests/unit/test_compat.py`` tests each, and that no other file
uses one. They work in torch 2.12 to 2.15 and Lightning 2.6.0 to 2.6.6, the versions that ``pyproject.toml`` allows;
``moekit --version --verbose`` prints the installed versions.

One private method is overridden elsewhere: ``nn.Module._apply``, by ``moekit.contracts.Balancer``.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch import _foreach_copy_ as foreach_copy
from torch import _foreach_div_ as foreach_div
from torch import _foreach_mul_ as foreach_mul
from torch import _foreach_norm as foreach_norm
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["FakeTensorMode", "TorchDispatchMode", "foreach_copy", "foreach_div", "foreach_mul", "foreach_norm"]
__all__ += ["tree_iter"]  # foreach_… takes tensors of one device and dtype, and runs few kernels on a GPU

HOST_READS = (DataDependentOutputException, DynamicOutputShapeException)
"""What ``FakeTensorMode`` raises when code reads a value on the host, or needs a shape that depends on one."""


# ---- torch ----------------------------------------------------------------------------------------------------------


def shard_bounds(tensor: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of this rank's shard of a ``DTensor``, and its offset in the whole tensor."""
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(shape), tuple(offset)


def timeout_of(group: dist.ProcessGroup, device: torch.device | None = None) -> timedelta:
    """How long the collectives of a process group wait for other ranks. Default device: the group's first."""
    options = group._get_backend(device or group._device_types[0]).options
    timeout: timedelta = options._timeout
    return timeout


def set_timeouts(timeout: timedelta) -> None:
    """Sets how long the collectives of every process group of this process wait for other ranks, from now on."""
    c10d = dist.distributed_c10d
    set_timeout = getattr(c10d, "set_timeout", None) or c10d._set_pg_timeout  # public since torch 2.15
    for group in list(c10d._world.pg_map):
        set_timeout(timeout, group)


def storage_id(storage: torch.UntypedStorage) -> int:
    """A number that identifies a storage during its lifetime, also that of a fake tensor."""
    number: int = storage._cdata
    return number


def is_observed() -> bool:
    """Whether operators are being counted, recorded, faked or transformed by torch: then none may run on the side."""
    return torch._C._len_torch_dispatch_stack() > 0 or is_transformed()


def is_eager() -> bool:
    """Whether operators on a CPU run as they are called: not compiled, not under autocast, not observed."""
    return not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu") and not is_observed()


def is_transformed() -> bool:
    """Whether ``torch.func`` transforms what runs."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def replace_tensors(module: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Replaces every parameter and buffer by ``make`` of it, in the only way that FSDP2 notices."""
    module._apply(make)  # type: ignore[no-untyped-call]


def resume_schedule(schedule: torch.optim.lr_scheduler.LambdaLR, step: int) -> None:
    """Sets a schedule to a step, and the learning rates of its optimizer, already restored, to those of that step."""
    groups = schedule.optimizer.param_groups
    schedule.last_epoch = step
    schedule._step_count = step + 1
    schedule.base_lrs = [group["initial_lr"] for group in groups]
    for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(step)
    schedule._last_lr = [group["lr"] for group in groups]


def has_onednn() -> bool:
    """Whether torch has oneDNN's product on this machine."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def onednn_linear(x_ND: Tensor, w_HD: Tensor) -> Tensor:
    """``x_ND @ w_HD.T`` by oneDNN, in fp32. ``w_HD`` may be any view; the first call of a shape compiles a kernel."""
    return torch.ops.mkldnn._linear_pointwise(x_ND, w_HD, None, "none", [], "")  # type: ignore[no-any-return]


def softmax_backward_(g: Tensor, p: Tensor) -> None:
    """Replaces the gradient of probabilities ``p``, a softmax over the last dimension, by that of the scores."""
    torch._softmax_backward_data(g, p, -1, p.dtype, grad_input=g)


# ---- Lightning ------------------------------------------------------------------------------------------------------


def init_process_group(strategy: Any) -> None:
    """Creates the process group of a ``ModelParallelStrategy``, with the backend of its device and its timeout."""
    strategy._setup_distributed()


def trainer_of(module: Any) -> Any:
    """The ``Trainer`` of a ``LightningModule``; None without one, where ``module.trainer`` raises."""
    return module._trainer


def kill_started_processes(launcher: object) -> None:
    """Kills the processes that Lightning started from this one; does nothing under torchrun or SLURM."""
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no SIGKILL: its SIGTERM ends at once


def set_sigterm_handler(trainer: Any, handler: Callable[[int, object], object] | None) -> None:
    """Has a ``Trainer`` set this handler of SIGTERM when it sets handlers; None: its own again."""
    own = vars(trainer._signal_connector)
    own.pop("_sigterm_notifier_fn", None)
    if handler is not None:
        own["_sigterm_notifier_fn"] = handler


def validate_now(trainer: Any) -> None:
    """Runs a validation within ``fit``, as Lightning does after a step."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False  # else it would count the batches of an earlier validation as done
    trainer.validating = True
    loop.run()
    trainer.training = True


def loop_counters(checkpoint: dict[str, Any]) -> Iterable[dict[str, int]]:
    """The micro-batch counters in a checkpoint's state of Lightning's training loop; the caller may change them."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return progress["total"], progress["current"]

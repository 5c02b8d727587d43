"""Several processes train one network on parts of the same batches, and it comes out as one process would make it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler


def start_processes(device: str | torch.device) -> None:
    """Join the other processes that ``torchrun`` has started, by NCCL on GPUs and by gloo on CPUs; else do nothing.

    Args:
        device: ``cpu``, or ``cuda``, which then is for each process the GPU of its own local number.
    """
    if "LOCAL_RANK" not in os.environ or dist.is_initialized():
        return
    on_gpus = torch.device(device).type == "cuda"
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    idist.initialize("nccl" if on_gpus else "gloo")


def rank() -> int:
    """Number of this process, 0 when there is one."""
    return int(idist.get_rank())


def processes() -> int:
    """How many processes train together."""
    return int(idist.get_world_size())


def is_main() -> bool:
    """Whether this is the process that writes files, tracks and talks."""
    return rank() == 0


def anywhere(flag: bool) -> bool:
    """Whether any process says so; every process must ask."""
    return bool(idist.all_reduce(float(flag), "MAX")) if processes() > 1 else flag


class _SumOverProcesses(torch.autograd.Function):
    """All processes' tensors summed, forwards, and so their gradients backwards."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def global_sum(tensor: Tensor) -> Tensor:
    """The tensor's sum over all processes, differentiable; the tensor itself when there is one process.

    With losses that are functions of such sums every process has the global batch's loss. Its gradient then is the mean
    over the processes of their parameters' gradients, which ``DistributedDataParallel`` takes anyway.
    """
    if processes() == 1:
        return tensor
    total: Tensor = _SumOverProcesses.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def parallel(network: nn.Module, device: torch.device | str) -> nn.Module:
    """The network for a trainer: with one process itself, with several in ``DistributedDataParallel``.

    The inner network's batch norms take their statistics over all processes in training, on CPUs too. Its state keeps
    the usual names: whoever saves or averages weights holds on to the inner network.

    Args:
        network: in place on its device.
        device: of this process.
    """
    if processes() == 1:
        return network
    synchronise_batch_norms(network)
    own = [torch.cuda.current_device()] if torch.device(device).type == "cuda" else None
    return DistributedDataParallel(network, device_ids=own, broadcast_buffers=False)


def synchronise_batch_norms(network: nn.Module) -> nn.Module:
    """In training the batch norms of ``network`` take their statistics over all processes, not over their own batch.

    torch's ``SyncBatchNorm`` does so on GPUs alone. Here the modules stay the ones they are, with their parameters,
    buffers and names; only their class is another, until :func:`separate_batch_norms`.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _GlobalBatchNorm):
            mixed = type(f"Global{type(module).__name__}", (_GlobalBatchNorm, type(module)), {"plain": type(module)})
            module.__class__ = mixed
    return network


def separate_batch_norms(network: nn.Module) -> nn.Module:
    """Undo :func:`synchronise_batch_norms`."""
    for module in network.modules():
        if isinstance(module, _GlobalBatchNorm):
            module.__class__ = module.plain  # type: ignore[assignment]
    return network


class _GlobalBatchNorm(nn.Module):
    """Mixed into a batch norm: statistics of the global batch in training."""

    plain: type[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        norm: Any = self
        if not self.training or processes() == 1:
            result: Tensor = norm.plain.forward(self, x)
            return result
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1, *([1] * (x.dim() - 2))]
        own = x.double() if x.device.type == "cpu" else x.float()  # cancellation in the variance
        count = torch.full((1,), x.numel() / x.shape[1], dtype=own.dtype, device=x.device)
        sums = global_sum(torch.cat([own.sum(axes), (own * own).sum(axes), count]))
        total, squares, n = sums[: x.shape[1]], sums[x.shape[1] : -1], sums[-1]
        mean = total / n
        variance = (squares / n - mean * mean).clamp_min(0)
        if norm.track_running_stats:
            with torch.no_grad():
                norm.num_batches_tracked.add_(1)
                share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
                norm.running_mean.lerp_(mean.to(norm.running_mean), share)
                norm.running_var.lerp_((variance * n / (n - 1)).to(norm.running_var), share)
        normed = (own - mean.reshape(shape)) * torch.rsqrt(variance + norm.eps).reshape(shape)
        normed = normed.to(x.dtype)
        if norm.affine:
            normed = normed * norm.weight.reshape(shape) + norm.bias.reshape(shape)
        return normed


def main_first(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in the first process alone; the others wait until it is done."""
    if is_main():
        function(*arguments)
    if processes() > 1:
        idist.barrier()


def validation_sampler(dataset: Any) -> DistributedSampler[Any] | None:
    """Deals out the cases to the processes in turn; ``None`` for one process. ``CaseDice`` gathers what comes of it."""
    return DistributedSampler(dataset, shuffle=False) if processes() > 1 else None

"""The processes that train one generator together; there may be only one."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from .shards import Shard


class Ranks:
    """The default process group, or this process alone if there is none.

    Raises:
        ValueError: torchrun has started several processes, but they have no process group.
    """

    def __init__(self, device: torch.device) -> None:
        shard = Shard.of_this_process()
        if shard.count > 1 and not distributed.is_initialized():
            raise ValueError(f"{shard.count} ranks have no process group; call torch.distributed.init_process_group()")
        self.rank, self.count, self.leads = shard.number - 1, shard.count, shard.leads
        self.device = device

    def parts(self, batch_size: int, micro_batches: int) -> list[torch.Tensor]:
        """This rank's rows of a batch, int64 on the CPU, in `micro_batches` equal parts.

        Raises:
            ValueError: the batch cannot be divided equally.
        """
        if batch_size % (self.count * micro_batches):
            raise ValueError(
                f"a batch of {batch_size} cannot be shared out equally over {self.count} ranks of {micro_batches} "
                f"micro-batches; choose batch_size a multiple of {self.count * micro_batches}"
            )
        return list(torch.arange(batch_size).view(self.count, micro_batches, -1)[self.rank])

    def replicated(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the ranks, and with the buffers of the first rank."""
        return module if self.count == 1 else DistributedDataParallel(module)

    def gradients_stay(self, replica: nn.Module) -> AbstractContextManager[None]:
        """A context in which the gradients of `replica` are accumulated, and not averaged over the ranks yet."""
        return replica.no_sync() if isinstance(replica, DistributedDataParallel) else nullcontext()

    def mean(self, first: float, second: float) -> tuple[float, float]:
        if self.count == 1:
            return first, second
        values = torch.tensor([first, second], device=self.device)
        distributed.all_reduce(values)
        first, second = (values / self.count).tolist()
        return first, second

    def largest(self, value: int) -> int:
        if self.count == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return int(tensor)

    @torch.no_grad()
    def spread(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the values of the first rank to all others."""
        if self.count == 1:
            return
        for tensor in tensors:
            values = tensor.to(self.device, copy=True)
            distributed.broadcast(values, 0)
            tensor.copy_(values)

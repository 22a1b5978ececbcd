"""The processes that train one generator together, as one of them sees them; a process may be alone."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


class Ranks:
    """The default process group, or this process alone where there is none.

    Args:
        device: of this process.
    """

    def __init__(self, device: torch.device) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if together else 0
        self.count = distributed.get_world_size() if together else 1
        self.device = device

    @property
    def leads(self) -> bool:
        """Whether this process writes, and decides where one has to."""
        return self.rank == 0

    def parts(self, batch_size: int, micro_batches: int) -> list[torch.Tensor]:
        """The rows of a batch that are computed here, int64 on the CPU, in as many equal parts as `micro_batches`.

        Raises:
            ValueError: the batch cannot be shared out equally.
        """
        if batch_size % (self.count * micro_batches):
            raise ValueError(
                f"a batch of {batch_size} cannot be shared out equally over {self.count} ranks of {micro_batches} "
                f"micro-batches; choose batch_size a multiple of {self.count * micro_batches}"
            )
        return list(torch.arange(batch_size).view(self.count, micro_batches, -1)[self.rank])

    def replicated(self, module: nn.Module) -> nn.Module:
        """The module as one whose gradients are the mean over the ranks, and whose buffers are those of the first."""
        return module if self.count == 1 else DistributedDataParallel(module)

    def gradients_stay(self, replica: nn.Module) -> AbstractContextManager[None]:
        """A context in which the gradients of `replica` are summed up here, for a later mean over the ranks."""
        return replica.no_sync() if isinstance(replica, DistributedDataParallel) else nullcontext()

    def mean(self, first: float, second: float) -> tuple[float, float]:
        """The means of two values over the ranks."""
        if self.count == 1:
            return first, second
        values = torch.tensor([first, second], device=self.device)
        distributed.all_reduce(values)
        first, second = (values / self.count).tolist()
        return first, second

    def largest(self, value: int) -> int:
        """The largest value of any rank."""
        if self.count == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return int(tensor)

    @torch.no_grad()
    def spread(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give all ranks the values that the first has."""
        if self.count == 1:
            return
        for tensor in tensors:
            values = tensor.to(self.device, copy=True)
            distributed.broadcast(values, 0)
            tensor.copy_(values)

"""The state of training, a module and its optimiser, as named tensors for a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from .checkpoint import Checkpoint


def training_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, and `state.NAME.KEY` of the optimiser; they share memory with both.

    An optimiser that has not stepped yet gets its tensors here, all zero, so that a checkpoint can be copied into it.
    """
    # Imported here because a PyTorch without `torch.distributed` can still load bundles.
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    is_new = not optimizer.state
    if is_new:
        optimizer.zero_grad()  # older releases refuse to make the state if there are gradients
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    found: dict[str, Any] = get_optimizer_state_dict(module, optimizer, options=options)
    state = {name: value for name, value in found.items() if name.startswith("state.")}  # the rest are settings
    if is_new:
        for tensor in state.values():
            tensor.zero_()  # PyTorch made them by a step with lr 0, which counts as one and adds weight decay
    return {**module.state_dict(), **state}


@torch.no_grad()
def fill(tensors: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Copy the values of the same names into `tensors`.

    Raises:
        ValueError: a name is missing.
    """
    if missing := sorted(tensors.keys() - values.keys()):
        raise ValueError(f"the checkpoint has no {missing[0]}: another release wrote it; remove its folder")
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


class Fit:
    """A module, its optimiser, and the schedule of the learning rate."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRScheduler) -> None:
        self.module = module
        self.optimizer = optimizer
        self.schedule = schedule

    def state(self) -> dict[str, torch.Tensor]:
        # Schedules compute each rate from the last one: a rate computed from the step would differ in the last bits.
        lr = torch.tensor(self.optimizer.param_groups[0]["lr"], dtype=torch.float64)
        return {**training_tensors(self.module, self.optimizer), "lr": lr}

    def restore(self, found: Checkpoint | None) -> int:
        """Load a checkpoint, if there is one; returns the steps done."""
        if found is None:
            return 0
        fill(training_tensors(self.module, self.optimizer), found.tensors)
        self.optimizer.param_groups[0]["lr"] = float(found.tensors["lr"])
        self.schedule.last_epoch = found.step
        return found.step

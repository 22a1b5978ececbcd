"""The tensors of a module and its optimiser: enough to go on from, in a checkpoint of any optimiser of the package."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from itgan_data.running.training import fill, training_tensors

OPTIMIZERS: dict[str, Any] = {
    "Adam": partial(torch.optim.Adam, lr=0.1),
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD with momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
}
MODULES: dict[str, Any] = {
    "network": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    "latents": nn.ParameterDict({"latents": torch.randn(3, 2, generator=torch.Generator().manual_seed(0))}),
}


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        loss = sum(parameter.sin().sum() for parameter in module.parameters())
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("done", [0, 1, 3])
def test_what_is_kept_is_enough_to_go_on(module: str, optimizer: str, done: int) -> None:
    whole, first, second = (copy.deepcopy(MODULES[module]) for _ in range(3))
    steps(whole, OPTIMIZERS[optimizer](whole.parameters()), done + 2)
    trained = OPTIMIZERS[optimizer](first.parameters())
    steps(first, trained, done)
    kept = {name: tensor.clone() for name, tensor in training_tensors(first, trained).items()}
    steps(first, trained, 2)  # to look at the tensors changes nothing
    resumed = OPTIMIZERS[optimizer](second.parameters())
    fill(training_tensors(second, resumed), kept)
    steps(second, resumed, 2)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name])
        assert torch.equal(tensor, second.state_dict()[name])


def test_a_checkpoint_of_other_names_is_refused() -> None:
    module = nn.Linear(2, 2)
    tensors = training_tensors(module, torch.optim.Adam(module.parameters()))
    with pytest.raises(ValueError, match=r"has no state\.bias\.exp_avg: another release wrote it; remove its folder"):
        fill(tensors, {name: tensor for name, tensor in tensors.items() if name != "state.bias.exp_avg"})

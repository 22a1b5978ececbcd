"""Pools of trained networks, in whose embedding spaces real and synthetic images are matched."""

import logging
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from tqdm import tqdm

from .. import draws
from ..config import AtLeast, MayDiffer, OneOf, Precision, check, marked
from ..draws import Stream
from ..images import LabeledImages, Normalization
from ..networks import NETWORKS, Classifier, create_network
from ..recipes import ClassifierTraining, accuracy, fast_recipe
from ..running.checkpoint import Checkpointer, State, checkpointing
from ..running.shards import Shard, Team
from ..running.stopping import NO_LIMIT
from ..running.training import fill, prefixed, training_tensors

logger = logging.getLogger(__name__)

_FEWEST_IMAGES = 5


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Which networks are trained, and which states of each are kept."""

    num_networks: Annotated[int, AtLeast(1), MayDiffer] = 3
    """A pool may grow: more networks do not change the first ones."""
    network: Annotated[str, OneOf(NETWORKS)] = "convnet"
    width: Annotated[int, AtLeast(1)] = 128
    """Channels of each block of a ConvNet; other networks have a fixed width."""
    steps: Annotated[int, AtLeast(1)] = 1600
    """Updates per network."""
    batch_size: Annotated[int, AtLeast(1)] = 128
    snapshots: Annotated[int, AtLeast(1)] = 4
    """States kept per network, the last one at the end of its training."""
    first_snapshot: int | None = None
    """Step of the first state; later ones are spaced geometrically, so that the pool holds untrained and trained
    networks. None: evenly spaced."""
    validation_images: Annotated[int, AtLeast(1)] = 2000
    """Real images held out to measure the accuracy of each snapshot; at most a fifth of all."""
    flips: bool = True
    """Whether training images are mirrored at random."""
    precision: Precision = "float32"
    """Of the training; weights stay float32."""
    compile: bool = False
    """Compile the network: several times faster on the CPU, but needs a C++ compiler."""

    def __post_init__(self) -> None:
        check(self)
        if self.steps < self.snapshots:
            raise ValueError(f"{self.steps} steps cannot give {self.snapshots} snapshots; raise steps")
        if self.first_snapshot is not None:
            latest = self.steps - self.snapshots + 1
            if self.snapshots < 2 or not 1 <= self.first_snapshot <= latest:
                raise ValueError(
                    f"first_snapshot must lie in 1..{latest} and needs a second one, got {self.first_snapshot} with "
                    f"{self.snapshots} snapshots in {self.steps} steps"
                )

    def snapshot_steps(self) -> list[int]:
        """The steps, counted from 1, whose states are kept."""
        if self.first_snapshot is None:
            return [self.steps * (number + 1) // self.snapshots for number in range(self.snapshots)]
        ratio = (self.steps / self.first_snapshot) ** (1 / (self.snapshots - 1))
        due: list[int] = []
        for number in range(self.snapshots):
            step = round(self.first_snapshot * ratio**number)
            due.append(max(step, due[-1] + 1) if due else step)
        return due


class EmbeddingPool:
    """States of one frozen classifier, and the validation accuracy of each.

    All states are loaded into one module, so it is compiled once and the pool takes only the memory of its weights.
    """

    def __init__(self, network: Classifier, states: list[dict[str, torch.Tensor]], accuracies: list[float]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.states = states
        self.accuracies = accuracies

    def __len__(self) -> int:
        return len(self.states)

    def load(self, number: int) -> None:
        """Load state `number` into the network."""
        self.network.load_state_dict(self.states[number])

    def load_drawn(self, seed: int, group: int, step: int) -> None:
        """Load the state that is drawn, uniformly, for this step of a group."""
        pick = draws.uniform(seed, step, torch.tensor([group]), 1, stream=Stream.POOL_STATE)
        self.load(int(pick * len(self)))

    def load_best(self) -> None:
        """Load the most accurate state."""
        self.load(max(range(len(self)), key=self.accuracies.__getitem__))

    def within(self, band: tuple[float, float]) -> "EmbeddingPool":
        """The states whose validation accuracy lies in the closed interval `band`; they share the network.

        Raises:
            ValueError: there are none.
        """
        low, high = band
        chosen = [number for number, accuracy in enumerate(self.accuracies) if low <= accuracy <= high]
        if not chosen:
            known = ", ".join(f"{accuracy:.3f}" for accuracy in sorted(self.accuracies))
            raise ValueError(f"no state of the pool has an accuracy in {low:g}..{high:g}; there are {known}")
        return EmbeddingPool(
            self.network, [self.states[number] for number in chosen], [self.accuracies[number] for number in chosen]
        )


def build_pool(
    real_images: LabeledImages,
    config: PoolConfig,
    *,
    normalization: Normalization,
    seed: int,
    workdir: str | os.PathLike[str],
    team: Team | None = None,
    checkpoint_minutes: float = 5.0,
) -> EmbeddingPool:
    """Train the networks of a pool, except those that are finished in `workdir`.

    Args:
        real_images: the training images, some of which are held out.
        config: which networks.
        normalization: applied to unit images before the networks.
        seed: network i has `seed + i`.
        workdir: receives one folder per network.
        team: divides the networks over processes; by default all are trained here.
        checkpoint_minutes: minutes between two checkpoints of a network.

    Raises:
        OutOfTimeError: the team's time is over; all is saved.
        ValueError: too few images to hold some out, or `workdir` holds networks of another configuration.
        FloatingPointError: the training of a network diverged.
    """
    if len(real_images) < _FEWEST_IMAGES:
        raise ValueError(
            f"a pool of networks needs at least {_FEWEST_IMAGES} real images, a fifth of them to know their accuracy "
            f"by, got {len(real_images)}; add images, or match on fresh networks"
        )
    team = team or Team(Shard(1, 1), NO_LIMIT)
    work = {**asdict(config), "normalization": asdict(normalization), "data": real_images.fingerprint}
    piece = partial(
        Checkpointer, minutes=checkpoint_minutes, time_limit=team.time_limit, may_differ=marked(PoolConfig, MayDiffer)
    )
    numbers = range(config.num_networks)
    pieces = [piece(Path(workdir) / f"network-{number:03d}", {**work, "seed": seed + number}) for number in numbers]

    def train(number: int) -> State:
        return _train(real_images, config, normalization, seed + number, pieces[number])

    device = real_images.images.device
    states, accuracies = [], []
    for tensors in team.gather(pieces, config.steps, train):
        for snapshot in range(config.snapshots):
            prefix = f"{snapshot}."
            own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            states.append({name.removeprefix(prefix): tensor.to(device) for name, tensor in own.items()})
        accuracies += tensors["accuracies"].tolist()
    logger.info("pool of %d states, accuracy %.2f to %.2f", len(states), min(accuracies), max(accuracies))
    return EmbeddingPool(_network(real_images, config, seed), states, accuracies)


def _network(real_images: LabeledImages, config: PoolConfig, seed: int) -> Classifier:
    network = create_network(
        config.network,
        real_images.num_classes,
        image_shape=real_images.image_shape,
        width=config.width,
        rng=draws.make_rng(seed, stream=Stream.POOL_WEIGHTS),
    )
    return network.to(real_images.images.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _train(
    real_images: LabeledImages, config: PoolConfig, normalization: Normalization, seed: int, checkpointer: Checkpointer
) -> dict[str, torch.Tensor]:
    """Train one network; returns `NUMBER.NAME` of each snapshot's tensors, and `accuracies`."""
    found = checkpointer.load(config.steps)
    order = draws.permutation(seed, 0, len(real_images), stream=Stream.POOL_SPLIT).to(real_images.images.device)
    held_out = min(config.validation_images, len(real_images) // 5)
    validation = real_images.select(order[:held_out])
    recipe = replace(
        fast_recipe(config.steps, config.batch_size, flip=config.flips),
        precision=config.precision,
        compile=config.compile,
    )
    network = _network(real_images, config, seed)
    training = ClassifierTraining(
        network, real_images.select(order[held_out:]), recipe, normalization=normalization, seed=seed
    )
    snapshots: dict[str, torch.Tensor] = {}
    accuracies: list[float] = []

    def trained() -> dict[str, torch.Tensor]:
        return prefixed("training", training_tensors(network, training.optimizer))

    if found is not None:
        fill(trained(), found.tensors)
        training.step = found.step
        accuracies = found.tensors["accuracies"].tolist()
        snapshots = {name: tensor for name, tensor in found.tensors.items() if name[0].isdigit()}

    def state() -> dict[str, torch.Tensor]:
        tensors = {**snapshots, "accuracies": torch.tensor(accuracies, dtype=torch.float64)}
        if training.step < config.steps:
            tensors |= trained()
        return tensors

    due = config.snapshot_steps()
    with (
        tqdm(total=config.steps, initial=training.step, desc=f"embedding network {seed}", unit="step") as bar,
        checkpointing(checkpointer, config.steps, remedy="give the pool another network, width or seed") as done,
    ):
        while training.step < config.steps:
            training.update()
            bar.update()
            if training.step in due:
                prefix = f"{len(accuracies)}."
                snapshots |= {prefix + name: value.clone() for name, value in network.state_dict().items()}
                accuracies.append(accuracy(network, validation, normalization))
                bar.set_postfix_str(f"validation accuracy {100 * accuracies[-1]:.1f}%")
            done(training.step, state)
    return state()

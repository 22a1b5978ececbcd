"""How a training goes: distances to the real images, the best moving average so far, and whether it has collapsed."""

import logging
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..evaluation.features import FeatureNetwork
from ..evaluation.metrics import frechet_distance
from ..generators.biggan import BigGAN
from ..generators.frozen import fold
from ..generators.store import save_generator
from ..images import signed_to_uint8
from ..running.checkpoint import Checkpointer
from ..running.step_log import StepLog
from .batches import Batches
from .config import MAY_DIFFER, GeneratorTrainerConfig

_GENERATE = 250  # images at a time

logger = logging.getLogger(__name__)


class Monitor:
    """Measures how far the images of the moving average are from the real ones, and keeps the best average.

    The measure is the Fréchet distance in the features of a given network; those of other networks or numbers of images
    are not comparable, so lines of the log with others are passed over. The run has collapsed when the last
    `collapse_checks` distances are each above `collapse_ratio` times the lowest one. All that is known comes from the
    log, so a resumed run judges as an uninterrupted one.

    Args:
        network: in whose features images are compared.
        batches: gives the real images and the latents, the same ones each time.
        config: how many images, and when the run has collapsed.
        workdir: receives `generator-best/`, which `load_generator` reads, and `checkpoint-best/`.
        work: JSON values that determine the training.
        log: of the run; distances are added to it.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        batches: Batches,
        config: GeneratorTrainerConfig,
        *,
        workdir: Path,
        work: Mapping[str, Any],
        log: StepLog,
    ) -> None:
        self.network = network
        self.batches = batches
        self.config = config
        self.workdir = workdir
        self._checkpointer = Checkpointer(workdir / "checkpoint-best", work, may_differ=MAY_DIFFER)
        self.log = log
        self.count = min(config.monitor_samples, len(batches.real_images))
        self._kind = {"network": network.name, "samples": self.count}
        found = [line for line in log.found if self._kind.items() <= line.items()]
        self.distances: dict[int, float] = {line["step"]: line["frechet_distance"] for line in found}

    @property
    def best_step(self) -> int | None:
        """The step of the lowest distance; None before the first measurement."""
        return min(self.distances, key=self.distances.__getitem__, default=None)

    @property
    def has_collapsed(self) -> bool:
        """Whether the rule says so."""
        last = list(self.distances.values())[-self.config.collapse_checks :]
        bound = self.config.collapse_ratio * min(self.distances.values(), default=0.0)
        return len(last) == self.config.collapse_checks and min(last) > bound

    def check(self, average: BigGAN, step: int) -> None:
        """Measure the moving average, note the distance, and keep the average if it is the best one."""
        distance = self._distance(average)
        if distance < min(self.distances.values(), default=math.inf):
            self._checkpointer.save(average.state_dict(), step)
            names = self.batches.real_images.class_names
            save_generator(self.workdir / "generator-best", fold(average), class_names=names)
        self.log.write(step, frechet_distance=distance, **self._kind)
        self.distances[step] = distance
        logger.info("step %d: Fréchet distance %.4g in the features of %s", step, distance, self.network.name)

    def load_best(self, average: BigGAN) -> None:
        """Give `average` the weights of the best one.

        Raises:
            ValueError: they are missing or damaged.
        """
        found = self._checkpointer.load()
        if found is None:
            raise ValueError(
                f"{self._checkpointer.folder} is missing, where the moving average of step {self.best_step} was kept"
            )
        average.load_state_dict(found.tensors)

    def describe_best(self) -> str:
        """Where the best average is, in words."""
        step = self.best_step
        if step is None:
            return "no moving average was measured yet"
        measured = f"Fréchet distance {self.distances[step]:.4g} in the features of {self.network.name}"
        return f"the best moving average, of step {step} ({measured}), is in {self.workdir / 'generator-best'}"

    @cached_property
    def _reference(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of real images, and their labels."""
        reference = self.batches.reference(self.count)
        return self.network.features(reference.images), reference.labels

    @torch.no_grad()
    def _distance(self, average: BigGAN) -> float:
        """Between real images and as many synthetic ones of the same labels."""
        real_features, labels = self._reference
        latents = self.batches.fixed_latents(self.count)
        pairs = zip(torch.split(latents, _GENERATE), torch.split(labels, _GENERATE), strict=True)
        images = torch.cat([signed_to_uint8(average(*pair)) for pair in pairs])
        return frechet_distance(real_features, self.network.features(images))

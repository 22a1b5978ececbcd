"""Monitoring of GAN training: distances to the real images, the best moving average, and collapse."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
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

_GENERATE = 250  # images per batch

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Monitor:
    """Measures the Fréchet distance between images of the moving average and real ones, and keeps the best average.

    All that it knows comes from the log, so a resumed run decides like an uninterrupted one. Distances in the features
    of another network or of another number of images are not comparable, so such lines of the log are ignored.
    """

    network: FeatureNetwork
    """Images are compared in its features."""
    batches: Batches
    config: GeneratorTrainerConfig
    workdir: Path
    """Receives `generator-best/`, which `load_generator` reads, and `checkpoint-best/`."""
    work: Mapping[str, Any]
    """JSON values that determine the training."""
    log: StepLog
    """Distances are added to it."""

    def __post_init__(self) -> None:
        self._checkpointer = Checkpointer(self.workdir / "checkpoint-best", self.work, may_differ=MAY_DIFFER)
        self.count = min(self.config.monitor_samples, len(self.batches.real_images))
        self._kind = {"network": self.network.name, "samples": self.count}
        found = [line for line in self.log.found if self._kind.items() <= line.items()]
        self.distances: dict[int, float] = {line["step"]: line["frechet_distance"] for line in found}

    @property
    def best_step(self) -> int | None:
        """The step of the lowest distance; None before the first measurement."""
        return min(self.distances, key=self.distances.__getitem__, default=None)

    @property
    def has_collapsed(self) -> bool:
        """Whether the last `collapse_checks` distances are all above `collapse_ratio` times the lowest one."""
        last = list(self.distances.values())[-self.config.collapse_checks :]
        bound = self.config.collapse_ratio * min(self.distances.values(), default=0.0)
        return len(last) == self.config.collapse_checks and min(last) > bound

    def check(self, average: BigGAN, step: int) -> None:
        """Measure the moving average, log the distance, and save the average if it is the best one."""
        distance = self._distance(average)
        if distance < min(self.distances.values(), default=math.inf):
            self._checkpointer.save(average.state_dict(), step)
            names = self.batches.real_images.class_names
            save_generator(self.workdir / "generator-best", fold(average), class_names=names)
        self.log.write(step, frechet_distance=distance, **self._kind)
        self.distances[step] = distance
        logger.info("step %d: Fréchet distance %.4g in the features of %s", step, distance, self.network.name)

    def load_best(self, average: BigGAN) -> None:
        """Load the weights of the best average; ValueError if they are missing or damaged."""
        found = self._checkpointer.load()
        if found is None:
            raise ValueError(
                f"{self._checkpointer.folder} is missing, where the moving average of step {self.best_step} was kept"
            )
        average.load_state_dict(found.tensors)

    def describe_best(self) -> str:
        """Where the best average is, for messages."""
        step = self.best_step
        if step is None:
            return "no moving average was measured yet"
        measured = f"Fréchet distance {self.distances[step]:.4g} in the features of {self.network.name}"
        return f"the best moving average, of step {step} ({measured}), is in {self.workdir / 'generator-best'}"

    @cached_property
    def _reference(self) -> tuple[torch.Tensor, torch.Tensor]:
        reference = self.batches.reference(self.count)
        return self.network.features(reference.images), reference.labels

    @torch.no_grad()
    def _distance(self, average: BigGAN) -> float:
        """Between the real images and as many synthetic ones with the same labels."""
        real_features, labels = self._reference
        latents = self.batches.fixed_latents(self.count)
        pairs = zip(torch.split(latents, _GENERATE), torch.split(labels, _GENERATE), strict=True)
        images = torch.cat([signed_to_uint8(average(*pair)) for pair in pairs])
        return frechet_distance(real_features, self.network.features(images))

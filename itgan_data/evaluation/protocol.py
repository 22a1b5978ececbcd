"""The accuracy, on real test images, of fresh networks trained on a set."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ..datasets import class_names_of, load_images
from ..draws import Stream, make_rng
from ..images import ImageSource, LabeledImages, Normalization, check_source
from ..networks import NETWORKS, create_network
from ..recipes import Recipe, accuracy, train_classifier
from .results import SeedResult

logger = logging.getLogger(__name__)

NetworkFactory = Callable[[torch.Generator], nn.Module]
MEASURED_IMAGES = 5000


def evaluate(
    train_source: ImageSource | Dataset[Any],
    test_dataset: Dataset[Any],
    network: str | NetworkFactory,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    normalization: Normalization | None = None,
    device: str | torch.device | None = None,
    progress: Callable[[int, torch.Tensor], None] | None = None,
) -> list[SeedResult]:
    """Train one fresh network per seed on `train_source` and test each on `test_dataset`.

    Args:
        train_source: `LabeledImages`, `SyntheticDataset`, or anything torchvision-like (read into memory).
        test_dataset: real images, torchvision-like or `LabeledImages`; its classes set the number of logits. Classes
            are matched by name, or by number where the classes of a set are called "0", "1", ...
        network: a name of `networks.NETWORKS`, or a function from an rng to a fresh network.
        recipe: how to train.
        seeds: each gives different initial weights, order and augmentation.
        normalization: of the images; by default measured on up to 5,000 training images.
        device: by default the GPU, if there is one.
        progress: called after each update with the number of updates of this seed so far and the loss.

    Returns:
        One result per seed, in the order of `seeds`, with the accuracy after the last update, not the best one.

    Raises:
        ValueError: before any training, for an unknown network, no seeds, sets that do not fit each other, or a
            `train_source` with a transform, which would not be called.
    """
    if isinstance(network, str) and network not in NETWORKS:
        raise ValueError(f"unknown network {network!r}; expected one of {', '.join(NETWORKS)}")
    if not seeds:
        raise ValueError("seeds is empty; expected at least one seed")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = as_source(train_source)
    test_images = _matched(source, load_images(test_dataset))
    normalization = normalization or measure_normalization(source)
    if isinstance(source, LabeledImages):
        source = source.to(device)
    test_images = test_images.to(device)
    results = []
    for seed in seeds:
        start = time.perf_counter()
        rng = make_rng(seed, stream=Stream.CLASSIFIER)
        if isinstance(network, str):
            model: nn.Module = create_network(
                network, test_images.num_classes, image_shape=test_images.image_shape, rng=rng
            )
        else:
            model = network(rng)
        loss = train_classifier(
            model, source, recipe, normalization=normalization, seed=seed, device=device, progress=progress
        )
        result = SeedResult(
            seed=seed,
            accuracy=accuracy(model, test_images, normalization, precision=recipe.precision),
            final_loss=float(loss),
            seconds=time.perf_counter() - start,
        )
        logger.info("seed %d: accuracy %.2f%% in %.0f s", seed, 100 * result.accuracy, result.seconds)
        results.append(result)
    return results


def as_source(dataset: ImageSource | Dataset[Any]) -> ImageSource:
    """The data set itself if it gives batches of unit images, else its images read into memory.

    Raises:
        ValueError: no images, a transform, which would not be called, or a data set that cannot be read.
    """
    if not hasattr(dataset, "unit_batch"):
        return load_images(dataset)
    check_source(dataset, "the evaluation")  # type: ignore[arg-type]
    return dataset  # type: ignore[return-value]


def measure_normalization(source: ImageSource) -> Normalization:
    """Mean and standard deviation of each channel over the pixels of up to 5,000 images of `source`."""
    check_source(source, "the measurement")
    indices = torch.arange(0, len(source), max(1, len(source) // MEASURED_IMAGES))[:MEASURED_IMAGES]
    unit, _ = source.unit_batch(indices, 0)
    std, mean = torch.std_mean(unit, dim=(0, 2, 3))
    return Normalization(tuple(mean.tolist()), tuple(std.clamp(min=1e-3).tolist()))


def _matched(source: ImageSource, test_images: LabeledImages) -> LabeledImages:
    """The test images, with the labels that their classes have in the training set."""
    unit, _ = source.unit_batch(torch.zeros(1, dtype=torch.int64), 0)
    if tuple(unit.shape[1:]) != test_images.image_shape:
        raise ValueError(
            f"training images have shape {tuple(unit.shape[1:])} and test images {test_images.image_shape}; "
            "expected one shape"
        )
    names = class_names_of(source)
    if names is None:
        return test_images
    have_names = not (_are_numbers(names) or _are_numbers(test_images.class_names))
    if have_names or sorted(names) == sorted(test_images.class_names):
        return test_images.in_order_of(names)
    if len(names) > test_images.num_classes:  # classes without names are compared by their numbers
        raise ValueError(
            f"the training set has {len(names)} classes and the test set {test_images.num_classes}; "
            "expected the same classes in the same order"
        )
    return test_images


def _are_numbers(names: tuple[str, ...]) -> bool:
    """Whether the classes have no names and are counted."""
    return names == tuple(map(str, range(len(names))))

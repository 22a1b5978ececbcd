"""Coresets: selections of real images, with which condensation is compared.

A selection is int64 indices `[num_classes * images_per_class]` on the CPU, sorted by class, for `real_images.select`.
Within a class they are in the order of selection, so the first k of each class are the selection of k images per class.

Source: the baselines of Zhao and Bilen, "Dataset condensation with distribution matching", 2023, Section 3.2.
"""

from collections.abc import Callable

import torch

from .. import draws
from ..draws import Stream
from ..images import LabeledImages, Normalization
from ..networks import Classifier
from ..recipes import Recipe, predict_logits, train_classifier


def indices_by_class(real_images: LabeledImages, images_per_class: int = 1) -> list[torch.Tensor]:
    """Indices of the images of each class, on the CPU.

    Raises:
        ValueError: `images_per_class` is not positive, or a class has fewer images.
    """
    if images_per_class < 1:
        raise ValueError(f"images_per_class must be at least 1, got {images_per_class}")
    labels = real_images.labels.cpu()
    by_class = [(labels == label).nonzero()[:, 0] for label in range(real_images.num_classes)]
    for name, rows in zip(real_images.class_names, by_class, strict=True):
        if len(rows) == 0:
            raise ValueError(f"class {name!r} has no images; expected at least one for each of the classes")
        if len(rows) < images_per_class:
            raise ValueError(
                f"class {name!r} has {len(rows)} images, fewer than images_per_class={images_per_class}; "
                "lower images_per_class"
            )
    return by_class


def select_random(real_images: LabeledImages, images_per_class: int, *, seed: int) -> torch.Tensor:
    """Select random images of each class without replacement. Raises: see `indices_by_class`."""
    indices_by_class(real_images, images_per_class)
    orders = draws.shuffled_classes(real_images.labels, real_images.num_classes, seed, stream=Stream.CORESET)
    return torch.cat([order[:images_per_class] for order in orders])


def select_herding(real_images: LabeledImages, images_per_class: int, *, embeddings: torch.Tensor) -> torch.Tensor:
    """Select images whose mean embedding approximates the mean of their class.

    Greedily adds the image that brings the mean of the selection closest to the mean of the class, without replacement;
    of equally good images the first. Computes in float64.

    Args:
        real_images: what to select from.
        images_per_class: how many to select.
        embeddings: `[N, dim]` of all images (see `embed_images`); not normalised here, while iCaRL scales each to
            length 1.

    Raises:
        ValueError: embeddings of another shape or not finite, or too few images in a class.

    Source: Welling, "Herding dynamical weights to learn", 2009; as an algorithm for exemplars, Rebuffi et al.,
        "iCaRL: incremental classifier and representation learning", 2017, Algorithm 4.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(real_images):
        raise ValueError(f"embeddings must be [{len(real_images)}, dim], got {list(embeddings.shape)}")
    if not embeddings.isfinite().all():
        raise ValueError("embeddings must be finite, got NaN or infinity; train their network with a lower lr")
    by_class = indices_by_class(real_images, images_per_class)
    return torch.cat([rows[_herd(embeddings[rows], images_per_class)] for rows in by_class])


def _herd(embeddings: torch.Tensor, count: int) -> torch.Tensor:
    # Rows are centered at the class mean, and total is the sum of the rows chosen so far. The k-th choice minimises
    # |(total + row) / k|^2, which up to constants is |row|^2 + 2 <row, total>.
    centered = embeddings.double()
    centered = centered - centered.mean(dim=0)
    lengths = centered.square().sum(dim=1)
    total = torch.zeros_like(centered[0])
    chosen = torch.empty(count, dtype=torch.int64, device=embeddings.device)
    for place in range(count):
        row = (lengths + 2.0 * (centered @ total)).argmin()
        chosen[place] = row
        total += centered[row]
        lengths[row] = torch.inf
    return chosen.cpu()


def embed_images(
    network: Classifier, real_images: LabeledImages, normalization: Normalization, *, precision: str = "float32"
) -> torch.Tensor:
    """Embeddings `[N, num_features]`, float32 on the CPU, of all images, in evaluation mode."""
    return predict_logits(network.features, real_images, normalization, precision=precision)[0]


def select_forgetting(
    real_images: LabeledImages, images_per_class: int, *, events: torch.Tensor, seed: int
) -> torch.Tensor:
    """Select the images of each class that training forgot most often.

    Args:
        real_images: what to select from.
        images_per_class: how many to select.
        events: `[N]` counts from `forgetting_events`; counts of several runs may be added.
        seed: of the random order of images with equal counts.

    Raises:
        ValueError: counts of another shape, or too few images in a class.

    Source: Toneva et al., "An empirical study of example forgetting during deep neural network learning", 2019.
    """
    if events.shape != (len(real_images),):
        raise ValueError(f"events must be [{len(real_images)}], one count per image, got {list(events.shape)}")
    by_class = indices_by_class(real_images, images_per_class)
    ties = draws.uniform(seed, 0, torch.arange(len(real_images)), 1, stream=Stream.CORESET_TIES)[:, 0]
    chosen = []
    for rows in by_class:
        shuffled = rows[ties[rows].argsort(stable=True)]
        order = events.cpu()[shuffled].argsort(descending=True, stable=True)
        chosen.append(shuffled[order[:images_per_class]])
    return torch.cat(chosen)


def forgetting_events(
    network: Classifier,
    real_images: LabeledImages,
    recipe: Recipe,
    *,
    normalization: Normalization,
    seed: int,
    device: str | torch.device | None = None,
    progress: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Train `network` and count how often each image is forgotten: classified correctly, and wrongly the next time.

    An image is classified as training shows it: augmented, in its mini-batch, before the update. For arguments see
    `recipes.train_classifier`.

    Returns:
        int64 `[N]` on the CPU, see `ForgettingCounter.counts`.

    Raises:
        ValueError: too few steps to show each image twice.

    Source: Toneva et al., 2019, Algorithm 1.
    """
    needed = 2 * max(len(real_images) // recipe.batch_size, 1)
    if recipe.steps < needed:
        raise ValueError(
            f"{recipe.steps} steps of {recipe.batch_size} do not show {len(real_images)} images twice, "
            f"so none can be forgotten; expected at least {needed} steps"
        )
    labels = real_images.labels.cpu()
    counter = ForgettingCounter(len(real_images))

    def observe(indices: torch.Tensor, logits: torch.Tensor) -> None:
        counter.record(indices, logits.argmax(dim=1).cpu() == labels[indices])

    train_classifier(
        network,
        real_images,
        recipe,
        normalization=normalization,
        seed=seed,
        device=device,
        progress=progress,
        observe=observe,
    )
    return counter.counts()


class ForgettingCounter:
    """Counts the forgetting events of `num_images` images while they are shown in batches."""

    def __init__(self, num_images: int) -> None:
        self._shown = torch.zeros(num_images, dtype=torch.int64)
        self._events = torch.zeros(num_images, dtype=torch.int64)
        self._learnt = torch.zeros(num_images, dtype=torch.bool)
        self._was_right = torch.zeros(num_images, dtype=torch.bool)

    def record(self, indices: torch.Tensor, right: torch.Tensor) -> None:
        """Add a batch: whether the images at `indices` `[B]`, all different, were classified correctly (bool `[B]`)."""
        self._shown[indices] += 1
        self._events[indices] += self._was_right[indices] & ~right
        self._learnt[indices] |= right
        self._was_right[indices] = right

    def counts(self) -> torch.Tensor:
        """Events of each image, int64 `[N]`.

        An image that was shown and never classified correctly has more events than any other; one that was never shown
        has none.
        """
        never_learnt = ~self._learnt & (self._shown > 0)
        return torch.where(never_learnt, self._shown.max(), self._events)

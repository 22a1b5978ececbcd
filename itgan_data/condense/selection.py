"""Selections: real images in place of learned ones, the coresets that condensation is compared with.

A selection is int64 indices `[num_classes * images_per_class]` on the CPU into a `LabeledImages`, class after class.
`real_images.select(indices)` makes it a data set: items `(PIL image, label)` for a DataLoader, and
`unit_batch` for recipes and evaluation. Within a class the images come in the order of choice, so the first k of each
class are the selection of k images per class.

The three rules are the baselines of Zhao and Bilen, "Dataset condensation with distribution matching", 2023, Sec. 3.2.
"""

from collections.abc import Callable

import torch

from .. import draws
from ..draws import Stream
from ..images import LabeledImages, Normalization
from ..networks import Classifier
from ..recipes import Recipe, predict_logits, train_classifier


def indices_by_class(real_images: LabeledImages, images_per_class: int = 1) -> list[torch.Tensor]:
    """Indices, on the CPU, of each class's images.

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
    """Images of each class drawn without replacement.

    Raises:
        ValueError: `images_per_class` is not positive, or a class has fewer images.
    """
    indices_by_class(real_images, images_per_class)
    orders = draws.shuffled_classes(real_images.labels, real_images.num_classes, seed, stream=Stream.CORESET)
    return torch.cat([order[:images_per_class] for order in orders])


def select_herding(real_images: LabeledImages, images_per_class: int, *, embeddings: torch.Tensor) -> torch.Tensor:
    """Images whose mean embedding stays near that of their whole class.

    Greedy and exact: the next image is the one that brings the mean of the chosen closest to the mean of the class,
    and none is chosen twice. Computes in float64 and costs `images_per_class` products of a class's embeddings with a
    vector. Of images equally near, the first is taken.

    Args:
        real_images: what to select from.
        images_per_class: how many to select.
        embeddings: `[N, dim]` of all images, by one trained network (see `embed_images`). They are taken as they are;
            iCaRL scales each to length 1 first.

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
    """The rows of `[N, dim]` that are chosen, in their order.

    About the class mean, the error of the mean of k chosen rows is (sum + row) / k, whose square is least where
    |row|^2 + 2 <row, sum> is.
    """
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
    # The features are a network too, whose output is the embedding.
    return predict_logits(network.features, real_images, normalization, precision=precision)[0]


def select_forgetting(
    real_images: LabeledImages, images_per_class: int, *, events: torch.Tensor, seed: int
) -> torch.Tensor:
    """Images of each class that training forgot most often, equal counts in an order drawn from `seed`.

    Args:
        real_images: what to select from.
        images_per_class: how many to select.
        events: `[N]` counts from `forgetting_events`; those of several runs may be added.
        seed: of the order among equal counts; a draw depends on the image's index only.

    Raises:
        ValueError: counts of another shape, or too few images in a class.

    Source: Toneva et al., "An empirical study of example forgetting during deep neural network learning", 2019.
    """
    if events.shape != (len(real_images),):
        raise ValueError(f"events must be [{len(real_images)}], one count an image, got {list(events.shape)}")
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
    """Train `network` and count how often each image was forgotten: classified right, and wrong when next shown.

    An image is judged as training shows it, augmented and in its mini-batch, before the update. The trained network
    can serve `embed_images` next. Arguments are those of `recipes.train_classifier`.

    Returns:
        int64 `[N]` on the CPU, see `ForgettingCounter.counts`.

    Raises:
        ValueError: too few steps to show the images twice.

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
        """Note that the images at `indices` `[B]`, all different, were classified `right` (bool `[B]`)."""
        self._shown[indices] += 1
        self._events[indices] += self._was_right[indices] & ~right
        self._learnt[indices] |= right
        self._was_right[indices] = right

    def counts(self) -> torch.Tensor:
        """Events of each image, int64 `[N]`.

        An image that was shown and never classified right counts as forgotten at every presentation of the image
        shown most, which is more than any other can reach; one that was never shown counts as not forgotten.
        """
        never_learnt = ~self._learnt & (self._shown > 0)
        return torch.where(never_learnt, self._shown.max(), self._events)

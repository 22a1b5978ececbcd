"""`ITGANCIFAR10` and `ITGANCIFAR100`: torchvision's CIFAR data sets with a condensed training split."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from ..bundle.reading import Bundle, load_bundle
from ..generators.trusted import Trust
from ..latents.stored import LatentSet, LatentSource
from .dataset import SyntheticDataset
from .generated import Cache


class ITGANCIFAR10(SyntheticDataset, CIFAR10):  # type: ignore[misc]  # torchvision has no types
    """CIFAR-10 with a training split generated from a bundle; a `torchvision.datasets.CIFAR10` otherwise.

    Args:
        root: where torchvision keeps the real data; only needed for `train=False`.
        train: the condensed training split, or the real test split.
        transform, target_transform: as in torchvision.
        download: let torchvision fetch the real data for `train=False`; no effect for `train=True`.
        source: a bundle's folder or "org/name[@revision]" on the Hub; by default the one in the package.
        revision: a branch, tag or commit id, for a source on the Hub.
        trust: the class of a generator that is not of this package, as in `load_bundle`.
        latents: takes the bundle's latents to what images are made from, such as
            `lambda learned: JitteredLatents(learned, 0.3)`; by default they are taken as they are.
        batch_transform, device, cache, dtype: see `SyntheticDataset`; all but the first are for `train=True`, as are
            `source` to `latents`.

    Raises:
        HubError: the Hub does not have the bundle or does not give it.
        ValueError: a bundle that is missing, damaged or not of this data set; `train=False` without `root`.
        RuntimeError: from torchvision, if the real data are not in `root`.
    """

    _num_classes = 10

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        download: bool = False,
        *,
        source: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        trust: Trust = (),
        latents: Callable[[LatentSet], LatentSource] | None = None,
        batch_transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
        device: str | torch.device | None = None,
        cache: Cache = "auto",
        dtype: torch.dtype | None = None,
    ) -> None:
        if not train:
            if root is None:
                raise ValueError("train=False is the real test split, which torchvision reads; pass root=")
            CIFAR10.__init__(self, root, False, transform, target_transform, download)  # assigns `data`
            self._init_batches(batch_transform)
            return
        bundle = self._load(source, revision, trust)
        SyntheticDataset.__init__(
            self,
            bundle.generator,
            bundle.latents if latents is None else latents(bundle.latents),
            transform=transform,
            target_transform=target_transform,
            batch_transform=batch_transform,
            device=device,
            cache=cache,
            dtype=dtype,
            classes=bundle.class_names,
        )
        self.root = str(Path(root).expanduser()) if isinstance(root, str) else root
        self.train = True

    def _load(self, source: str | os.PathLike[str] | None, revision: str | None, trust: Trust) -> Bundle:
        bundle = load_bundle(source, revision, trust=trust)
        expected = (self._num_classes, (3, 32, 32))
        if (got := (bundle.generator.num_classes, tuple(bundle.generator.image_shape))) != expected:
            raise ValueError(
                f"{type(self).__name__} needs a bundle of {expected[0]} classes and images {expected[1]}, "
                f"{bundle.path} has {got[0]} and {got[1]}; SyntheticDataset takes any"
            )
        return bundle


class ITGANCIFAR100(ITGANCIFAR10, CIFAR100):  # type: ignore[misc]  # torchvision has no types
    """CIFAR-100 with a training split generated from a bundle; the package has none, so pass `source`."""

    _num_classes = 100

    def _load(self, source: str | os.PathLike[str] | None, revision: str | None, trust: Trust) -> Bundle:
        if source is None:
            raise ValueError("the package has no CIFAR-100 bundle; pass source=, a folder or org/name on the Hub")
        return super()._load(source, revision, trust)

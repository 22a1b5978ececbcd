"""`ITGANCIFAR10` and `ITGANCIFAR100`: torchvision's CIFAR data sets with a condensed training split."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from ..bundle.reading import Bundle, load_bundle, packaged_bundle
from ..generators.trusted import Trust
from ..latents.stored import LatentSet, LatentSource
from .dataset import SyntheticDataset
from .generated import Cache

logger = logging.getLogger(__name__)

_DOWNLOADS: set[Path] = set()  # roots for which `download=True` was given with `train=True`


class ITGANCIFAR10(SyntheticDataset, CIFAR10):  # type: ignore[misc]  # torchvision has no types
    """CIFAR-10 with a training split generated from a bundle; a `torchvision.datasets.CIFAR10` otherwise.

    Args:
        root: where torchvision keeps the real data; only read for `train=False`.
        train: the condensed training split, or the real test split.
        transform, target_transform: as in torchvision.
        download: let torchvision fetch the real data. With `train=True` nothing is fetched, as nothing is needed; it is
            when this process opens `train=False` with the same root.
        source: a bundle's folder, the name of one in the package, or "org/name[@revision]" on the Hub; by default
            `default_source`, else the environment variable ITGAN_DATA_CIFAR10 (or ITGAN_DATA_CIFAR100), else the
            bundle of that name in the package.
        revision: a branch, tag or commit id, for a source on the Hub.
        trust: the class of a generator that is not of this package, as in `load_bundle`.
        latents: takes the bundle's latents to what images are made from, such as
            `lambda learned: JitteredLatents(learned, 0.3)`; by default they are taken as they are.
        batch_transform, device, cache, dtype, soft_labels, length: see `SyntheticDataset`; all but the first are for
            `train=True`, as are `source` to `latents`.

    Raises:
        HubError: the Hub does not have the bundle or does not give it.
        ValueError: a bundle that is missing, damaged or not of this data set; `train=False` without `root`; a subclass
            with the files of the other CIFAR.
        RuntimeError: from torchvision, if the real data are not in `root`.
    """

    default_source: ClassVar[str | os.PathLike[str] | None] = None
    """To be assigned where a script cannot be given a `source`."""
    _name = "cifar10"
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
        soft_labels: bool = False,
        length: int | None = None,
    ) -> None:
        self._check_files()
        place = None if root is None else Path(root).expanduser().resolve()
        if not train:
            if root is None:
                raise ValueError("train=False is the real test split, which torchvision reads; pass root=")
            if place in _DOWNLOADS and not download:
                logger.warning("download=True was given before: the real test split is fetched to %s if missing", place)
            CIFAR10.__init__(self, root, False, transform, target_transform, download or place in _DOWNLOADS)
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
            soft_labels=soft_labels,
            length=length,
        )
        self.root = str(Path(root).expanduser()) if isinstance(root, str) else root
        self.train = True
        if download and place is not None:
            _DOWNLOADS.add(place)
            logger.info("the training split needs no real data; they are fetched when train=False asks for them")

    def _check_integrity(self) -> bool:
        """Whether the files that this split needs are there; the training split needs none."""
        return self.train or super()._check_integrity()

    def _check_files(self) -> None:
        """Refuse a subclass that names the files of the other CIFAR, as long-tail variants of torchvision's do."""
        own, other = (CIFAR100, CIFAR10) if isinstance(self, CIFAR100) else (CIFAR10, CIFAR100)
        for name in ("base_folder", "train_list", "test_list", "meta"):
            if getattr(self, name) == getattr(other, name) != getattr(own, name):
                raise ValueError(
                    f"{type(self).__name__} has the {name} of {other.__name__}, but its images come from a bundle of "
                    f"{own.__name__}; derive it from ITGAN{other.__name__}"
                )

    def _default_source(self) -> str | os.PathLike[str]:
        variable = f"ITGAN_DATA_{self._name.upper()}"
        packaged = packaged_bundle(self._name)
        chosen = self.default_source or os.environ.get(variable)
        if not chosen and not packaged.is_dir():
            raise ValueError(
                f"the package has no bundle {self._name!r}; pass source=, assign {type(self).__name__}.default_source, "
                f"or set the environment variable {variable}: a folder, or org/name on the Hub"
            )
        return chosen or packaged

    def _load(self, source: str | os.PathLike[str] | None, revision: str | None, trust: Trust) -> Bundle:
        bundle = load_bundle(self._default_source() if source is None else source, revision, trust=trust)
        expected = (self._num_classes, (3, 32, 32))
        if (got := (bundle.generator.num_classes, tuple(bundle.generator.image_shape))) != expected:
            raise ValueError(
                f"{type(self).__name__} needs a bundle of {expected[0]} classes and images {expected[1]}, "
                f"{bundle.path} has {got[0]} and {got[1]}; SyntheticDataset takes any"
            )
        return bundle


class ITGANCIFAR100(ITGANCIFAR10, CIFAR100):  # type: ignore[misc]  # torchvision has no types
    """CIFAR-100 with a training split generated from a bundle; arguments and errors as for `ITGANCIFAR10`."""

    _name = "cifar100"
    _num_classes = 100

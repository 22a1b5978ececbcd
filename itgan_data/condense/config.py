"""What a condensation is asked to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..augmentation import DSA
from ..images import CIFAR10, Normalization
from ..precision import check_precision
from .embedding import PoolConfig
from .inversion import InversionConfig


@dataclass(frozen=True, kw_only=True)
class CondenserConfig:
    """How a data set is condensed. The defaults are the paper's where it gives them."""

    images_per_class: int | None = None
    """Latents a class, each standing for one real image; None for as many as the smallest class has images."""
    group_size: int | None = None
    """Latents a class that are learned together; groups are learned one after the other. None: all."""
    steps: int = 5000
    """Updates of each group."""
    lr_latents: float = 1e-2
    """Adam's; 1e-3 in the paper's main table, 1e-2 the best of its Table T4."""
    regularizer_weight: float = 0.0
    """lambda of Eq. 4, in [0, 1]; what fits depends on the group size."""
    real_batch_size: int = 256
    """Real images a class whose mean embedding is matched, drawn anew every step."""
    strategy: str = "color_crop_cutout_flip_scale_rotate"
    """DSA operations; without `flip` for digits."""
    normalization: Normalization = CIFAR10.normalization
    """Takes unit images to what the embedding networks see."""
    inversion: InversionConfig = field(default_factory=InversionConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    precision: Literal["float32", "bfloat16"] = "float32"
    """What generator and embedding networks compute in; latents, means and the optimiser stay float32."""
    compile: bool = False
    """Fuse generator and embedding network with torch.compile: faster on the CPU, but needs a C++ compiler."""
    checkpoint_minutes: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (
            ("normalization", Normalization),
            ("inversion", InversionConfig),
            ("pool", PoolConfig),
        ):
            if isinstance(value := getattr(self, name), Mapping):  # JSON gives an object
                object.__setattr__(self, name, kind(**value))
        for name in ("images_per_class", "group_size", "steps", "real_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("lr_latents", "checkpoint_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.regularizer_weight <= 1:
            raise ValueError(f"regularizer_weight must lie in [0, 1], got {self.regularizer_weight}")
        check_precision(self.precision)
        DSA(self.strategy)

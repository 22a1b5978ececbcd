"""What a condensation is asked to do: one choice a column, and every method of the literature is a row of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..augmentation import DSA
from ..config import check_precision, check_types
from ..datasets import CIFAR10
from ..images import Normalization
from .inversion import InversionConfig
from .network_source import FreshNetworks
from .pool import PoolConfig


@dataclass(frozen=True, kw_only=True)
class CondenserConfig:
    """How a data set is condensed. The defaults are IT-GAN's, those of the paper where it gives them."""

    images_per_class: int | None = None
    """Latents a class, each standing for one real image; None for as many as the smallest class has images."""
    initialize: Literal["inversion", "normal"] = "inversion"
    """Latents start at those of the real images (`Pixels`: at the images themselves), or at normal draws."""
    group_size: int | None = None
    """Latents a class that are learned together; groups are learned one after the other. None: all."""
    regroup: bool = False
    """Draw anew who is in which group before every step, which then visits all groups."""
    chunk_size: int | None = None
    """Images a class that are in memory at once, with equal results; a larger group is computed twice. None: all."""
    class_block: int | None = None
    """Classes that are learned together, with equal results; blocks are units of work that can be shared out."""
    steps: int = 5000
    """Updates of each group; 0 ends with the latents that matching would start from."""
    objective: Literal["distribution", "gradient"] = "distribution"
    """Match mean embeddings, or the gradients of the networks."""
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.5
    """Of `sgd`."""
    lr_latents: float = 1e-2
    """Of the optimiser; for Adam 1e-3 in the paper's main table, 1e-2 the best of its Table T4."""
    regularizer_weight: float = 0.0
    """lambda of Eq. 4, in [0, 1]; what fits depends on the group size."""
    real_batch_size: int = 256
    """Real images a class that a step is matched to, drawn anew every step."""
    strategy: str = "color_crop_cutout_flip_scale_rotate"
    """DSA operations; without `flip` for digits. Empty for none."""
    normalization: Normalization = CIFAR10.normalization
    """Takes unit images to what the embedding networks see."""
    inversion: InversionConfig = field(default_factory=InversionConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Trained networks: the most accurate gives inversion its features, and matching draws from all of them."""
    band: tuple[float, float] | None = None
    """Matching draws only from states of the pool whose validation accuracy lies between these two, both included."""
    networks: FreshNetworks | None = None
    """Matching uses these in place of the pool."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What generator and embedding networks compute in; latents, means and the optimiser stay float32."""
    compile: bool = False
    """Fuse generator and embedding network with torch.compile: faster on the CPU, but needs a C++ compiler.
    With `objective="gradient"` the generator only: the networks are differentiated twice."""
    checkpoint_minutes: float = 5.0
    log_steps: int = 10
    """Steps between two readings of the loss, for progress bar, log and the check that it is finite."""
    preview_steps: int | None = None
    """Steps between two grids of images of the latents; None for no grids."""
    tensorboard: bool = False
    """Write the loss for TensorBoard too; needs the extra of that name."""
    seed: int = 0

    def __post_init__(self) -> None:
        self._from_json()
        check_types(self)
        for name in ("images_per_class", "group_size", "chunk_size", "class_block", "real_batch_size", "log_steps"):
            _check_at_least(name, getattr(self, name), 1)
        _check_at_least("preview_steps", self.preview_steps, 1)
        _check_at_least("steps", self.steps, 0)
        for name in ("lr_latents", "checkpoint_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not 0 <= self.regularizer_weight <= 1:
            raise ValueError(f"regularizer_weight must lie in [0, 1], got {self.regularizer_weight}")
        _check_choice("initialize", self.initialize, ("inversion", "normal"))
        _check_choice("objective", self.objective, ("distribution", "gradient"))
        _check_choice("optimizer", self.optimizer, ("adam", "sgd"))
        check_precision(self.precision)
        if self.strategy:
            DSA(self.strategy)
        self._check_combinations()

    def _from_json(self) -> None:
        """JSON gives objects and lists."""
        for name, kind in (
            ("normalization", Normalization),
            ("inversion", InversionConfig),
            ("pool", PoolConfig),
            ("networks", FreshNetworks),
        ):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, kind(**value))
        if self.band is not None:
            if not isinstance(self.band, (list, tuple)):
                raise ValueError(f"band must be two accuracies in [0, 1], the lower one first, got {self.band!r}")
            object.__setattr__(self, "band", tuple(self.band))

    def _check_combinations(self) -> None:
        if self.objective == "gradient" and self.regularizer_weight > 0:
            raise ValueError("the regularizer compares embeddings; set regularizer_weight=0 for objective='gradient'")
        if self.regroup and self.group_size is None:
            raise ValueError("regroup draws groups anew; give a group_size")
        if self.band is not None:
            if len(self.band) != 2 or not 0 <= self.band[0] <= self.band[1] <= 1:
                raise ValueError(f"band must be two accuracies in [0, 1], the lower one first, got {self.band}")
            if self.networks is not None:
                raise ValueError("band chooses from the pool, which networks replaces; give one of the two")
        if self.networks is not None:
            self._check_networks(self.networks)

    def _check_networks(self, networks: FreshNetworks) -> None:
        if networks.outer_steps > 1 and self.regroup:
            raise ValueError("a network that is kept for several steps belongs to one group; set regroup=False")
        if networks.outer_steps > 1 and self.class_block is not None:
            raise ValueError("a network that is trained along sees all classes; set class_block=None")
        if networks.batch_norm:
            if self.objective == "gradient" or networks.inner_epochs:
                raise ValueError("gradient matching and trained networks need a convnet with norm='instance' or 'none'")
            if self.class_block is not None or self.chunk_size is not None:
                raise ValueError(
                    "batch norm takes its statistics from all images of a step; leave class_block and chunk_size None"
                )


def _check_at_least(name: str, value: int | None, bound: int) -> None:
    if value is not None and value < bound:
        raise ValueError(f"{name} must be at least {bound}, got {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")

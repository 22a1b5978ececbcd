"""What a condensation is asked to do: one choice a column, and every method of the literature is a row of them."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..augmentation import DSA
from ..config import Above, AtLeast, Between, HalfOpen, MayDiffer, Precision, check
from ..datasets import CIFAR10
from ..images import Normalization
from .inversion import InversionConfig
from .network_source import FreshNetworks
from .pool import PoolConfig

Initialization = Literal["inversion", "normal"]


class OfMatching:
    """Marks a field that the start does not depend on: in one workdir matching can be tried with several values, its
    groups removed in between."""


@dataclass(frozen=True, kw_only=True)
class CondenserConfig:
    """How a data set is condensed. The defaults are those of the IT-GAN paper where it gives them."""

    images_per_class: Annotated[int | None, AtLeast(1)] = None
    """Latents per class, each of which stands for one real image. None: as many as the smallest class has images."""
    initialize: Initialization = "inversion"
    """Start from the latents of the real images (with `Pixels` from the images themselves), or from normal draws."""
    group_size: Annotated[int | None, AtLeast(1), OfMatching] = None
    """Latents per class that are learned together, one group after the other. None: all in one group."""
    regroup: Annotated[bool, OfMatching] = False
    """Shuffle each class into new groups at every step. The step then updates all groups."""
    chunk_size: Annotated[int | None, AtLeast(1), MayDiffer] = None
    """Images per class that are in memory at once. Results do not change; a group with more images takes two passes.
    None: all of them."""
    class_block: Annotated[int | None, AtLeast(1), OfMatching] = None
    """Classes that are learned together. Results do not change; each block is a unit of work that a process can take.
    None: all of them."""
    steps: Annotated[int, AtLeast(0), MayDiffer] = 5000
    """Updates of each group; 0 ends with the latents that matching would start from."""
    objective: Annotated[Literal["distribution", "gradient"], OfMatching] = "distribution"
    """Match mean embeddings, or the gradients of the networks."""
    optimizer: Annotated[Literal["adam", "sgd"], OfMatching] = "adam"
    momentum: Annotated[float, HalfOpen(0, 1), OfMatching] = 0.5
    """Of `sgd`."""
    lr_latents: Annotated[float, Above(0), OfMatching] = 1e-2
    """Of the optimiser; for Adam 1e-3 in the paper's main table, 1e-2 the best of its Table T4."""
    regularizer_weight: Annotated[float, Between(0, 1), OfMatching] = 0.0
    """lambda of Eq. 4; what fits depends on the group size."""
    real_batch_size: Annotated[int, AtLeast(1), OfMatching] = 256
    """Real images per class that a step matches; every step draws others."""
    strategy: Annotated[str, OfMatching] = "color_crop_cutout_flip_scale_rotate"
    """DSA operations; without `flip` for digits. Empty for none."""
    normalization: Normalization = CIFAR10.normalization
    """Takes unit images to what the embedding networks see."""
    inversion: InversionConfig = field(default_factory=InversionConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Trained networks: the most accurate gives inversion its features, and matching draws from all of them."""
    band: Annotated[tuple[Annotated[float, Between(0, 1)], Annotated[float, Between(0, 1)]] | None, OfMatching] = None
    """Matching draws only from states of the pool whose validation accuracy lies between these two, both included."""
    networks: Annotated[FreshNetworks | None, OfMatching] = None
    """Matching uses these in place of the pool."""
    precision: Precision = "float32"
    """What generator and embedding networks compute in; latents, means and the optimiser stay float32."""
    compile: bool = False
    """Fuse generator and embedding network with torch.compile: faster on the CPU, but needs a C++ compiler.
    With `objective="gradient"` the generator only: the networks are differentiated twice."""
    checkpoint_minutes: Annotated[float, Above(0), MayDiffer] = 5.0
    log_steps: Annotated[int, AtLeast(1), MayDiffer] = 10
    """Steps between two readings of the loss, for progress bar, log and the check that it is finite."""
    preview_steps: Annotated[int | None, AtLeast(1), MayDiffer] = None
    """Steps between two grids of images of the latents; None for no grids."""
    tensorboard: Annotated[bool, MayDiffer] = False
    """Write the loss for TensorBoard too; needs the extra of that name."""
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)
        if self.strategy:
            DSA(self.strategy)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.objective == "gradient" and self.regularizer_weight > 0:
            raise ValueError("the regularizer compares embeddings; set regularizer_weight=0 for objective='gradient'")
        if self.regroup and self.group_size is None:
            raise ValueError("regroup shuffles groups of group_size; give one")
        if self.band is not None:
            if self.band[0] > self.band[1]:
                raise ValueError(f"band must be two accuracies, the lower one first, got {self.band}")
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

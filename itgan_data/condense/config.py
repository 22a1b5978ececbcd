"""The configuration of a condensation. Every published method is one combination of its fields, see `methods`."""

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
    """Marks a field that the initial latents do not depend on. To try another value in the same workdir, remove the
    folders of its groups: pool and inversion are used again."""


@dataclass(frozen=True, kw_only=True)
class CondenserConfig:
    """How a data set is condensed. The defaults are those of the IT-GAN paper where it gives them."""

    images_per_class: Annotated[int | None, AtLeast(1)] = None
    """Latents per class, each paired with one real image. None: as many as the smallest class has images."""
    initialize: Initialization = "inversion"
    """Start from the latents of real images (with `Pixels`, from the images themselves), or from normal draws."""
    group_size: Annotated[int | None, AtLeast(1), OfMatching] = None
    """Latents per class that are learned together, in one group after the other. None: all in one group."""
    regroup: Annotated[bool, OfMatching] = False
    """Assign the latents to new random groups at every step, and update all groups in it. If False, groups are fixed,
    and each is learned to the end before the next one starts."""
    chunk_size: Annotated[int | None, AtLeast(1), MayDiffer] = None
    """Images per class that are in memory at once; None for all. Saves memory and does not change the result. A group
    with more images is generated twice per step: first for its mean embedding, then for the gradient."""
    class_block: Annotated[int | None, AtLeast(1), OfMatching] = None
    """Classes per unit of work; None for all. Does not change the result: it makes more units, which processes learn
    at the same time."""
    steps: Annotated[int, AtLeast(0), MayDiffer] = 5000
    """Updates of each group; 0 returns the initial latents."""
    objective: Annotated[Literal["distribution", "gradient"], OfMatching] = "distribution"
    """Match mean embeddings, or gradients of the networks."""
    optimizer: Annotated[Literal["adam", "sgd"], OfMatching] = "adam"
    momentum: Annotated[float, HalfOpen(0, 1), OfMatching] = 0.5
    """Used by `sgd` only."""
    lr_latents: Annotated[float, Above(0), OfMatching] = 1e-2
    """Learning rate. With Adam the paper uses 1e-3 in its main table; 1e-2 is the best of its Table T4."""
    regularizer_weight: Annotated[float, Between(0, 1), OfMatching] = 0.0
    """lambda of Eq. 4; the best value depends on the group size."""
    real_batch_size: Annotated[int, AtLeast(1), OfMatching] = 256
    """Real images per class drawn at every step."""
    strategy: Annotated[str, OfMatching] = "color_crop_cutout_flip_scale_rotate"
    """DSA operations; leave `flip` out for digits. Empty for none."""
    normalization: Normalization = CIFAR10.normalization
    """Applied to unit images before the embedding networks."""
    inversion: InversionConfig = field(default_factory=InversionConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Trained networks: inversion compares features of the most accurate one, and matching draws from all."""
    band: Annotated[tuple[Annotated[float, Between(0, 1)], Annotated[float, Between(0, 1)]] | None, OfMatching] = None
    """Matching draws only networks of the pool whose validation accuracy lies in this closed interval."""
    networks: Annotated[FreshNetworks | None, OfMatching] = None
    """Matching uses these instead of the pool."""
    precision: Precision = "float32"
    """Of the generator and the embedding networks; latents, means and the optimiser stay float32."""
    compile: bool = False
    """Compile generator and embedding network: faster on the CPU, but needs a C++ compiler. With
    `objective="gradient"` only the generator is compiled: the networks are differentiated twice."""
    checkpoint_minutes: Annotated[float, Above(0), MayDiffer] = 5.0
    log_steps: Annotated[int, AtLeast(1), MayDiffer] = 10
    """Steps between two readings of the loss, for the progress bar, the log and the check that it is finite."""
    preview_steps: Annotated[int | None, AtLeast(1), MayDiffer] = None
    """Steps between two grids of synthetic images; None for no grids."""
    tensorboard: Annotated[bool, MayDiffer] = False
    """Also write the loss for TensorBoard; needs the extra `tensorboard`."""
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)
        if self.strategy:
            DSA(self.strategy)  # raises for an unknown operation
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

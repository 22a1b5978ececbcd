"""Data sets that a frozen generator makes from learned latents."""

from .bundle import Bundle, load_bundle, push_bundle, save_bundle
from .cifar import ITGANCIFAR10, ITGANCIFAR100
from .condense.condenser import Condenser, OutOfTimeError
from .condense.config import CondenserConfig
from .condense.embedding import PoolConfig
from .condense.inversion import InversionConfig
from .dataset import SyntheticDataset
from .evaluation.protocol import evaluate
from .generators.biggan import BigGAN, BigGANConfig
from .generators.importers import import_generator
from .generators.inference import FrozenBigGAN, fold, load_generator
from .generators.training import GeneratorTrainer, GeneratorTrainerConfig
from .hub import HubError
from .images import open_dataset
from .latents import LatentSet, RandomLatents
from .loader import SyntheticLoader, collate_dicts

__all__ = [
    "ITGANCIFAR10",
    "ITGANCIFAR100",
    "BigGAN",
    "BigGANConfig",
    "Bundle",
    "Condenser",
    "CondenserConfig",
    "FrozenBigGAN",
    "GeneratorTrainer",
    "GeneratorTrainerConfig",
    "HubError",
    "InversionConfig",
    "LatentSet",
    "OutOfTimeError",
    "PoolConfig",
    "RandomLatents",
    "SyntheticDataset",
    "SyntheticLoader",
    "collate_dicts",
    "evaluate",
    "fold",
    "import_generator",
    "load_bundle",
    "load_generator",
    "open_dataset",
    "push_bundle",
    "save_bundle",
]

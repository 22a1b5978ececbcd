"""Data sets that a frozen generator makes from learned latents."""

from .bundle import Bundle, load_bundle, save_bundle
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
from .images import open_dataset
from .latents import LatentSet, RandomLatents
from .loader import SyntheticLoader

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
    "InversionConfig",
    "LatentSet",
    "OutOfTimeError",
    "PoolConfig",
    "RandomLatents",
    "SyntheticDataset",
    "SyntheticLoader",
    "evaluate",
    "fold",
    "import_generator",
    "load_bundle",
    "load_generator",
    "open_dataset",
    "save_bundle",
]

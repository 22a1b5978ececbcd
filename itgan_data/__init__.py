"""Data sets that a frozen generator makes from learned latents."""

from .bundle import Bundle, load_bundle, push_bundle, save_bundle
from .cifar import ITGANCIFAR10, ITGANCIFAR100
from .condense import methods
from .condense.condenser import Condenser, OutOfTimeError
from .condense.config import CondenserConfig
from .condense.embedding import PoolConfig
from .condense.inversion import InversionConfig
from .condense.network_source import FreshNetworks
from .condense.selection import embed_images, forgetting_events, select_forgetting, select_herding, select_random
from .dataset import SyntheticDataset
from .ensemble import SyntheticEnsemble
from .evaluation.protocol import evaluate
from .filtered_latents import FilteredLatents
from .fresh_latents import JitteredLatents, MixedLatents, RandomLatents
from .generators.biggan import BigGAN, BigGANConfig
from .generators.config import GeneratorTrainerConfig
from .generators.importers import import_generator
from .generators.inference import FrozenBigGAN, fold, load_generator
from .generators.pixels import Pixels
from .generators.training import GeneratorTrainer
from .hub import HubError
from .images import load_images, open_dataset
from .latent_importers import import_latents
from .latents import LatentSet
from .loader import SyntheticLoader, collate_dicts
from .networks import create_network
from .recipes import Recipe, fast_recipe, paper_recipe, train_classifier

__all__ = [
    "ITGANCIFAR10",
    "ITGANCIFAR100",
    "BigGAN",
    "BigGANConfig",
    "Bundle",
    "Condenser",
    "CondenserConfig",
    "FilteredLatents",
    "FreshNetworks",
    "FrozenBigGAN",
    "GeneratorTrainer",
    "GeneratorTrainerConfig",
    "HubError",
    "InversionConfig",
    "JitteredLatents",
    "LatentSet",
    "MixedLatents",
    "OutOfTimeError",
    "Pixels",
    "PoolConfig",
    "RandomLatents",
    "Recipe",
    "SyntheticDataset",
    "SyntheticEnsemble",
    "SyntheticLoader",
    "collate_dicts",
    "create_network",
    "embed_images",
    "evaluate",
    "fast_recipe",
    "fold",
    "forgetting_events",
    "import_generator",
    "import_latents",
    "load_bundle",
    "load_generator",
    "load_images",
    "methods",
    "open_dataset",
    "paper_recipe",
    "push_bundle",
    "save_bundle",
    "select_forgetting",
    "select_herding",
    "select_random",
    "train_classifier",
]

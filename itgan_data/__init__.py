"""Data sets that a frozen generator makes from learned latents."""

from .bundle.config import BundleConfig
from .bundle.hub import HubError
from .bundle.writing import Bundle, load_bundle, push_bundle, save_bundle
from .condense import methods
from .condense.coding import code_images, decoder_at
from .condense.condenser import Condenser, OutOfTimeError
from .condense.config import CondenserConfig
from .condense.inversion import InversionConfig
from .condense.network_source import FreshNetworks
from .condense.pool import PoolConfig
from .condense.selection import embed_images, forgetting_events, select_forgetting, select_herding, select_random
from .data.cifar import ITGANCIFAR10, ITGANCIFAR100
from .data.dataset import SyntheticDataset
from .data.ensemble import SyntheticEnsemble
from .data.loader import SyntheticLoader, collate_dicts
from .datasets import load_images, open_dataset
from .evaluation.protocol import evaluate
from .generators.biggan import BigGAN, BigGANConfig
from .generators.codec import Codec, CodecConfig
from .generators.frozen import FrozenBigGAN, fold
from .generators.importers import import_generator
from .generators.pixels import Pixels
from .generators.store import load_generator
from .latents.filtered import FilteredLatents
from .latents.fresh import JitteredLatents, MixedLatents, RandomLatents
from .latents.importers import import_latents
from .latents.stored import LatentSet
from .networks import create_network
from .pretraining.codec import CodecTrainer
from .pretraining.codec_config import CodecTrainerConfig
from .pretraining.config import GeneratorTrainerConfig
from .pretraining.context_fit import ContextFit
from .pretraining.gan import GeneratorTrainer
from .recipes import Recipe, fast_recipe, paper_recipe, train_classifier

__all__ = [
    "ITGANCIFAR10",
    "ITGANCIFAR100",
    "BigGAN",
    "BigGANConfig",
    "Bundle",
    "BundleConfig",
    "Codec",
    "CodecConfig",
    "CodecTrainer",
    "CodecTrainerConfig",
    "Condenser",
    "CondenserConfig",
    "ContextFit",
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
    "code_images",
    "collate_dicts",
    "create_network",
    "decoder_at",
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

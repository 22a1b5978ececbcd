"""A bundle: generator, latents and their description in one folder, on disk and on the Hub."""

from .config import BundleConfig
from .hub import HubError
from .reading import Bundle, describe_bundle, find_bundle, load_bundle, packaged_bundle
from .writing import push_bundle, save_bundle

__all__ = [
    "Bundle",
    "BundleConfig",
    "HubError",
    "describe_bundle",
    "find_bundle",
    "load_bundle",
    "packaged_bundle",
    "push_bundle",
    "save_bundle",
]

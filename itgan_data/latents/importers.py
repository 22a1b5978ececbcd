"""Read the latents that other implementations released."""

import os

import torch

from ..storage.files import read_text
from ..storage.torch_files import read_torch_file
from .stored import LatentSet

_NAMES = ("z_eff_all", "z_inverse_all")  # IT-GAN's own latents, and its inversion's
_MAX_LABEL = 10  # characters of a line


def import_latents(path: str | os.PathLike[str], labels: torch.Tensor) -> LatentSet:
    """Read released IT-GAN or inversion latents, which come without labels.

    Row i stands for image i of the training set in torchvision's order, so `source_index` is 0, 1, 2, ...

    Args:
        path: a `.pt` dictionary with `z_eff_all` or `z_inverse_all` `[N, latent_dim]`.
        labels: int64 `[N]`, of all training images in torchvision's order, such as
            `torch.tensor(torchvision.datasets.CIFAR10(root).targets)`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file needs code to load or holds something else, or the labels are not one for each latent.
    """
    content = read_torch_file(path)
    if len(content) != 1 or not content.keys() <= set(_NAMES):
        raise ValueError(f"{path} must hold one of {_NAMES} alone, got {list(content)[:4]!r:.200}")
    (latents,) = content.values()
    if not isinstance(latents, torch.Tensor) or latents.ndim != 2 or not latents.is_floating_point():
        raise ValueError(f"{path} must hold latents as a float tensor [N, latent_dim], got {_kind(latents)}")
    if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(
            f"labels must be an int64 tensor [{len(latents)}], one per latent in torchvision's train order, "
            f"got {_kind(labels)}"
        )
    if len(labels) != len(latents):
        raise ValueError(
            f"{path} has {len(latents)} latents and there are {len(labels)} labels; "
            "give the labels of all training images in torchvision's order"
        )
    try:
        return LatentSet(latents.float(), labels, source_index=torch.arange(len(latents)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_labels(path: str | os.PathLike[str]) -> torch.Tensor:
    """Read labels for `import_latents` from a text file: one number per line, in torchvision's train order.

    A byte-order mark and empty lines at the end are passed over.

    Returns:
        int64 `[N]`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not text, or a line holds something else.
    """
    try:
        lines = read_text(path).rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file; expected one label per line, such as 6") from error
    for number, line in enumerate(lines, start=1):
        if not (line.strip().isdecimal() and len(line) < _MAX_LABEL):
            raise ValueError(f"line {number} of {path} must be a label, such as 6, got {line!r:.40}")
    return torch.tensor([int(line) for line in lines], dtype=torch.int64)


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__

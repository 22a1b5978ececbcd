"""Folders of images with one folder per class; what could mean two things is refused."""

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torchvision import datasets

from .images import image_to_uint8, to_pil

_SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
_SPLIT_NAMES = frozenset(name for names in _SPLITS.values() for name in names)


class ImageFolder(datasets.ImageFolder):  # type: ignore[misc]  # torchvision has no types
    """torchvision's, but without what is hidden, with numbers in numeric order, and with errors that say where.

    Args:
        folder: with a folder for each split, or itself with a folder for each class.
        split: `train` or `test`.

    Raises:
        ValueError: no images, a class without any, or folders that do not look like classes.
    """

    def __init__(self, folder: Path, split: str) -> None:
        root = _split_folder(folder, split)

        def is_image(path: str) -> bool:
            shown = not any(part.startswith(".") for part in Path(path).relative_to(root).parts)
            return shown and bool(datasets.folder.is_image_file(path))

        super().__init__(str(root), loader=_read_rgb, is_valid_file=is_image, allow_empty=True)
        if empty := set(range(len(self.classes))) - set(self.targets):
            names = ", ".join(repr(self.classes[label]) for label in sorted(empty))
            raise ValueError(f"image folder {root} has no images in {names}; expected {root}/<class>/<image>")

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        classes = {entry.name: entry for entry in _folders(Path(directory))}
        names = sorted(classes)
        if all(name.isdecimal() for name in names):
            names.sort(key=int)  # torchvision's order is 0, 1, 10, 11, 2
        _check_classes(directory, classes)
        return names, {name: label for label, name in enumerate(names)}


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _is_split(folder: Path) -> bool:
    return folder.name.lower() in _SPLIT_NAMES


def _split_folder(folder: Path, split: str) -> Path:
    """Where the class folders are: in a folder with the split's name, or in `folder` where it has no splits."""
    inside = _folders(folder)
    # A class may be called "train", too, but has no folders.
    splits = {entry.name.lower(): entry for entry in inside if _is_split(entry) and _folders(entry)}
    if len(splits) == 1 and len(inside) > 1:
        raise ValueError(f"{folder} holds {_list(inside)}: splits and classes; expected one or the other")
    found = [splits[name] for name in _SPLITS[split] if name in splits]
    if splits and not found:
        raise ValueError(f"{folder} holds {_list(inside)}, and none of {', '.join(_SPLITS[split])} with class folders")
    return found[0] if found else folder


def _check_classes(directory: str, classes: Mapping[str, Path]) -> None:
    """Refuse folders that do not look like one class each."""
    wanted = f"expected {directory}/<class>/<image>"
    if not classes:
        raise ValueError(f"image folder {directory} has no images; {wanted}")
    for name, folder in classes.items():
        if not name.isprintable():  # as a name that is not UTF-8 is not
            raise ValueError(f"class folder {name!r} in {directory} has a name that cannot be shown; rename it")
        if any(map(_is_split, _folders(folder))) or (len(classes) == 1 and _folders(folder)):
            raise ValueError(f"{folder} would be a class, and holds the folders {_list(_folders(folder))}; {wanted}")
    splits = [folder for folder in classes.values() if _is_split(folder)]
    if len(splits) > 1 or len(splits) == len(classes):
        raise ValueError(f"{_list(splits)} in {directory} would be classes, and look like splits; {wanted}")


def _list(folders: Sequence[Path]) -> str:
    return reprlib.repr([folder.name for folder in folders])


def _read_rgb(path: str) -> Image.Image:
    """An image in RGB; values of more than 8 bits are scaled, where torchvision's loader would make them white."""
    try:
        with Image.open(path) as image:
            return to_pil(image_to_uint8(image)).convert("RGB")
    except Exception as error:  # for a damaged file Pillow raises all kinds, SyntaxError too
        raise ValueError(f"{path} cannot be read as an image ({error})") from error

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from itgan_data.datasets import load_images, open_dataset


def put(folder: Path, *places: str, red: int = 0) -> None:
    """Small images at these places; their red values count up."""
    for number, place in enumerate(places):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (red + number, 0, 0)).save(folder / place)


def reds(folder: Path, split: str) -> dict[str, list[int]]:
    """The red values of the images of each class."""
    images = load_images(open_dataset(f"imagefolder:{folder}", split))
    return {name: images.images[images.labels == label, 0, 0, 0].tolist() for label, name in enumerate(images.classes)}


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "test"), ("Train", "VAL"), ("training", "validation"), ("TRAIN", "Valid"), ("train", "testing")],
)
def test_splits_go_by_their_usual_names_in_any_case(train: str, test: str, tmp_path: Path) -> None:
    put(tmp_path, f"{train}/cat/0.png", f"{train}/dog/1.png", f"{test}/cat/2.png", f"{test}/dog/3.png")
    assert reds(tmp_path, "train") == {"cat": [0], "dog": [1]}
    assert reds(tmp_path, "test") == {"cat": [2], "dog": [3]}


def test_of_test_and_val_the_former_judges(tmp_path: Path) -> None:
    put(tmp_path, *(f"{split}/{name}/0.png" for split in ("train", "val", "test") for name in ("cat", "dog")))
    assert reds(tmp_path, "test") == {"cat": [4], "dog": [5]}


@pytest.mark.parametrize("names", [("cat", "dog"), ("bus", "car", "train"), ("test", "other")])
def test_a_folder_without_splits_is_both(names: tuple[str, ...], tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/0.png" for name in names))
    assert reds(tmp_path, "train") == reds(tmp_path, "test") == {name: [names.index(name)] for name in sorted(names)}


@pytest.mark.parametrize("names", [("0", "1", "2", "10", "11"), ("08", "9", "010"), ("3", "20", "100")])
def test_numbers_stand_in_numeric_order(names: tuple[str, ...], tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/0.png" for name in names))
    assert reds(tmp_path, "train") == {name: [number] for number, name in enumerate(names)}
    assert list(reds(tmp_path, "train")) == list(names)


def test_what_is_hidden_is_no_data(tmp_path: Path) -> None:
    put(tmp_path, "cat/0.png", "dog/1.png", ".ipynb_checkpoints/2.png", "cat/.ipynb_checkpoints/3.png", "dog/._1.png")
    assert reds(tmp_path, "train") == {"cat": [0], "dog": [1]}


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_grey_of_16_bits_keeps_its_picture(dtype: str, tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray((levels * 257).astype(dtype)).save(tmp_path / name / "0.tiff")
    image = load_images(open_dataset(f"imagefolder:{tmp_path}", "train")).images[0]
    assert torch.equal(image, torch.from_numpy(levels.astype(np.uint8)).expand(3, 16, 16))


def without_images(folder: Path) -> None:
    put(folder, "cat/0.png", "owl/1.png")
    (folder / "dog").mkdir()


def truncated(folder: Path) -> None:
    put(folder, "cat/0.png", "dog/1.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "dog" / "1.png")
    content = (folder / "dog" / "1.png").read_bytes()
    (folder / "dog" / "1.png").write_bytes(content[: len(content) // 2])


def no_image(folder: Path) -> None:
    put(folder, "cat/0.png")
    (folder / "dog").mkdir()
    (folder / "dog" / "1.png").write_text("<html>")


def not_utf8(folder: Path) -> None:
    put(folder, "cat/0.png")
    os.mkdir(os.fsencode(folder) + b"/caf\xe9")  # noqa: PTH102


REFUSED: dict[str, Callable[[Path], None]] = {
    "has no images in 'dog'": without_images,
    r"dog/1.png cannot be read as an image \(.*truncated": truncated,
    r"dog/1.png cannot be read as an image \(cannot identify": no_image,
    r"'caf\\udce9' .* rename": not_utf8,
    "has no images; expected": lambda folder: None,
    r"\['test', 'train'\] .* look like splits": lambda folder: put(folder, "train/0.png", "test/1.png"),
    "look like splits": lambda folder: put(folder, "Train/0.png", "VAL/1.png", "cat/2.png"),
    "splits and classes": lambda folder: put(folder, "train/loco/0.png", "bus/1.png", "car/2.png"),
    "cat would be a class, and holds the folders": lambda folder: put(
        folder, "cat/train/0.png", "cat/test/1.png", "dog/train/2.png", "dog/test/3.png"
    ),
    r"photos would be a class, and holds the folders \['cat', 'dog'\]": lambda folder: put(
        folder, "photos/cat/0.png", "photos/dog/1.png"
    ),
    "2.png.* has shape": lambda folder: (
        put(folder, "cat/0.png", "dog/1.png"),
        Image.new("RGB", (5, 4)).save(folder / "dog/2.png"),
    ),
}


@pytest.mark.parametrize("message", list(REFUSED))
def test_what_cannot_be_told_is_refused(message: str, tmp_path: Path) -> None:
    REFUSED[message](tmp_path)
    with pytest.raises(ValueError, match=message):
        load_images(open_dataset(f"imagefolder:{tmp_path}", "train"))


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/0.png", "train/dog/1.png")
    assert reds(tmp_path, "train")
    with pytest.raises(ValueError, match="none of test, testing, val"):
        open_dataset(f"imagefolder:{tmp_path}", "test")

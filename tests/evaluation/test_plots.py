from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from itgan_data.evaluation.plots import (
    plot_features,
    plot_neighbors,
    plot_preview,
    plot_training,
    plot_weights,
)
from itgan_data.images import LabeledImages

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

FEATURES = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3
NAMES = ("red", "green", "blue")


def draw_training(path: Path) -> None:
    losses = {f"unit {number}": [(0, 2.0 + number), (5, 1.0)] for number in range(21)}
    plot_training(path, {"loss": losses, "distance": {"ConvNet": [(5, 1.0)]}})


def draw_preview(path: Path) -> None:
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plot_preview(path, images, torch.arange(12) % 2, NAMES, columns=4, title="images", real_images=images.flip(0))


def draw_neighbors(path: Path) -> None:
    images = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plot_neighbors(path, images, images.flip(0), torch.arange(7.0), columns=4)


def draw_features(path: Path) -> None:
    plot_features(path, FEATURES, LABELS, FEATURES[:20], LABELS[:20], NAMES, network="ConvNet", perplexity=5)


def draw_weights(path: Path) -> None:
    weights = (FEATURES[:, 0]).clamp(min=0)
    plot_weights(path, FEATURES, weights, title="red, method A", network="ConvNet", perplexity=5)


DRAWINGS = [draw_training, draw_preview, draw_neighbors, draw_features, draw_weights]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_picture_is_whole_alone_in_its_folder_and_the_same_when_drawn_again(
    draw: Callable[[Path], None], tmp_path: Path
) -> None:
    rng_state = np.random.get_state()  # noqa: NPY002 - scikit-learn must not have touched it
    draw(tmp_path / "new" / "one.png")
    draw(tmp_path / "new" / "two.png")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["one.png", "two.png"]
    with Image.open(tmp_path / "new" / "one.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 100
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert (tmp_path / "new" / "one.png").read_bytes() == (tmp_path / "new" / "two.png").read_bytes()
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(before, now) for before, now in zip(rng_state, after, strict=True))


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    draw: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def full_disk(_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        draw(path)
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
    assert path.read_bytes() == b"old"


def test_a_preview_shows_the_pixels_of_its_images(tmp_path: Path) -> None:
    """Two classes of one image, each of one colour."""
    colors = torch.tensor([[200, 30, 30], [30, 200, 30]], dtype=torch.uint8)
    images = colors.view(2, 3, 1, 1).expand(-1, -1, 8, 8)
    plot_preview(tmp_path / "preview.png", images, torch.tensor([0, 2]), NAMES, columns=1)
    pixels = np.asarray(Image.open(tmp_path / "preview.png").convert("RGB")).reshape(-1, 3)
    for color in colors.numpy():
        assert (pixels == color).all(axis=1).mean() > 0.05


def test_a_preview_shows_real_images_below_their_synthetic_ones(tmp_path: Path) -> None:
    colors = torch.tensor([[200, 30, 30], [30, 200, 30]], dtype=torch.uint8)
    images, real = (color.view(1, 3, 1, 1).expand(-1, -1, 8, 8) for color in colors)
    plot_preview(tmp_path / "pairs.png", images, torch.tensor([0]), NAMES, columns=1, real_images=real)
    pixels = np.asarray(Image.open(tmp_path / "pairs.png").convert("RGB"))
    above, below = ((pixels == color).all(axis=2).any(axis=1).nonzero()[0] for color in colors.numpy())
    assert above.max() < below.min()
    assert len(above) == len(below)


@pytest.mark.parametrize("count", [4, 5, 31])
def test_maps_of_few_points_are_drawn(count: int, tmp_path: Path) -> None:
    plot_weights(tmp_path / "weights.png", FEATURES[:count], FEATURES[:count, 0].abs(), title="", network="")
    half = (FEATURES[: count // 2], LABELS[: count // 2])
    plot_features(tmp_path / "features.png", *half, *half, NAMES, network="")
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_that_are_all_zero_can_be_drawn(tmp_path: Path) -> None:
    plot_weights(tmp_path / "weights.png", FEATURES, torch.zeros(40), title="", network="", perplexity=5)
    assert (tmp_path / "weights.png").is_file()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: plot_training(path, {"loss": {}}), "curves is empty"),
        (lambda path: plot_training(path, {"loss": {"a": []}}), "curve 'a' must hold points"),
        (lambda path: plot_training(path, {"loss": {"a": [(0, float("nan"))]}}), "curve 'a' must hold points"),
        (
            lambda path: plot_features(path, FEATURES, LABELS, FEATURES[:, :3], LABELS, NAMES, network=""),
            "equally many features",
        ),
        (
            lambda path: plot_features(path, FEATURES, LABELS + 1, FEATURES, LABELS, NAMES, network=""),
            r"labels must lie in 0..2, got 1..3",
        ),
        (
            lambda path: plot_features(path, FEATURES, LABELS[1:], FEATURES, LABELS, NAMES, network=""),
            r"labels must be int64 \[40\]",
        ),
        (
            lambda path: plot_weights(path, FEATURES[:3], FEATURES[:3, 0], title="", network=""),
            "at least 4 points .*, got 3 points",
        ),
        (lambda path: plot_weights(path, FEATURES, LABELS[1:], title="", network=""), r"weights must be \[40\]"),
        (lambda path: plot_weights(path, FEATURES / 0, LABELS, title="", network=""), "features must be .* finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(
    call: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []


def test_images_and_neighbors_that_do_not_fit_and_other_endings_are_refused(
    tiny_images: LabeledImages, tmp_path: Path
) -> None:
    images = tiny_images.images
    with pytest.raises(ValueError, match="an equal number"):
        plot_neighbors(tmp_path / "picture.png", images, images[1:], torch.zeros(len(images)))
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        plot_neighbors(tmp_path / "picture.png", images, images, torch.zeros(len(images)), count=0)
    with pytest.raises(ValueError, match="expected a real image for each"):
        plot_preview(tmp_path / "picture.png", images, tiny_images.labels, NAMES, real_images=images[1:])
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        plot_preview(tmp_path / "picture.png", images, tiny_images.labels, NAMES, columns=0)
    with pytest.raises(ValueError, match=r"ends in \.png, got .*picture\.jpg"):
        plot_preview(tmp_path / "picture.jpg", images, tiny_images.labels, NAMES)
    assert list(tmp_path.iterdir()) == []

from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_images

from itgan_data.datasets import CIFAR10
from itgan_data.images import (
    LabeledImages,
    Normalization,
    image_grid,
    signed_to_uint8,
    signed_to_unit,
    to_pil,
    uint8_to_unit,
    unit_to_signed,
    unit_to_uint8,
)

EVERY_BYTE = torch.arange(256).to(torch.uint8)


class TestRanges:
    def test_every_byte_survives_the_round_trip(self) -> None:
        unit = uint8_to_unit(EVERY_BYTE)
        assert (unit[0], unit[-1]) == (0.0, 1.0)
        assert torch.equal(unit_to_uint8(unit), EVERY_BYTE)
        assert torch.equal(signed_to_uint8(unit_to_signed(unit)), EVERY_BYTE)

    def test_signed_is_twice_as_wide_around_zero(self) -> None:
        assert unit_to_signed(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1.0, 0.0, 1.0]
        assert signed_to_unit(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0.0, 0.5, 1.0]

    def test_bytes_are_the_nearest_and_clamped(self) -> None:
        unit = torch.tensor([-0.3, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.7])
        before = unit.clone()
        assert unit_to_uint8(unit).tolist() == [0, 0, 1, 255, 255]
        assert torch.equal(unit, before)


class TestNormalization:
    def test_standardized_images_have_mean_zero_and_deviation_one_if_the_statistics_are_theirs(self) -> None:
        unit = (
            torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))
            * torch.tensor([1, 0.5, 2])[:, None, None]
        )
        channels = unit.transpose(0, 1).flatten(1)
        normalization = Normalization(channels.mean(1).tolist(), channels.std(1).tolist())
        standardized = normalization.standardize(unit).transpose(0, 1).flatten(1)
        torch.testing.assert_close(standardized.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(standardized.std(1), torch.ones(3))

    @pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5)])
    def test_to_unit_is_the_inverse(self, shape: tuple[int, ...]) -> None:
        unit = torch.rand(shape, dtype=torch.float64)
        there = CIFAR10.normalization.standardize(unit)
        assert there.dtype == torch.float64
        torch.testing.assert_close(CIFAR10.normalization.to_unit(there), unit)

    def test_lists_from_json_are_as_good_as_tuples(self) -> None:
        assert Normalization([0.5], [0.2]) == Normalization((0.5,), (0.2,))
        assert hash(Normalization([0.5], [0.2])) == hash(Normalization((0.5,), (0.2,)))

    @pytest.mark.parametrize(
        ("mean", "std", "message"),
        [
            ((0.5,), (0.1, 0.1), "one value a channel, got 1 and 2"),
            ((), (), "one value a channel, got 0 and 0"),
            ((0.5, 0.5), (0.1, 0.0), "std must be positive"),
        ],
    )
    def test_bad_statistics_are_refused(self, mean: Any, std: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Normalization(mean, std)


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_pil_has_the_same_pixels(channels: int, mode: str) -> None:
    pixels = make_images(1, 5, channels).images[0, :, :3]
    image = to_pil(pixels)
    assert (image.mode, image.size) == (mode, (5, 3))
    assert np.array_equal(np.array(image).reshape(3, 5, channels), pixels.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_each_image_in_its_place(channels: int) -> None:
    images = make_images(5, 4, channels).images
    grid = torch.from_numpy(np.array(image_grid(uint8_to_unit(images), columns=3))).permute(2, 0, 1)
    assert grid.shape == (3, 2 + 2 * 6, 2 + 3 * 6)
    for number, image in enumerate(images):
        top, left = 2 + number // 3 * 6, 2 + number % 3 * 6
        assert torch.equal(grid[:, top : top + 4, left : left + 4], image.expand(3, 4, 4))
        grid[:, top : top + 4, left : left + 4] = 255
    assert (grid == 255).all()  # the rest is white


class TestLabeledImages:
    def test_an_item_is_a_pil_image_and_an_int(self) -> None:
        images = make_images()
        image, label = images[3]
        assert np.array_equal(np.array(image), images.images[3].permute(1, 2, 0).numpy())
        assert (label, type(label)) == (1, int)

    def test_a_batch_is_unit_floats_in_the_order_asked_for(self) -> None:
        images = make_images()
        unit, labels = images.unit_batch(torch.tensor([5, 0, 5]), epoch=3)
        assert unit.dtype == torch.float32
        assert torch.equal(unit_to_uint8(unit), images.images[[5, 0, 5]])
        assert labels.tolist() == [1, 0, 1]

    def test_a_selection_keeps_all_class_names(self) -> None:
        images = make_images().select(torch.tensor([0, 2]))
        assert (len(images), images.num_classes, images.classes) == (2, 2, ["cat", "dog"])
        assert images.image_shape == (3, 4, 4)

    def test_the_fingerprint_tells_pixels_labels_and_names_apart(self) -> None:
        images = make_images()
        pixels, labels = images.images.clone(), images.labels.clone()
        assert LabeledImages(pixels, labels, ["cat", "dog"]).fingerprint == images.fingerprint
        others = [
            LabeledImages(pixels ^ 1, labels, images.class_names),
            LabeledImages(pixels, labels.flip(0), images.class_names),
            LabeledImages(pixels, labels, ("cat", "owl")),
            images.select(torch.arange(5)),
        ]
        assert len({images.fingerprint, *(other.fingerprint for other in others)}) == 5

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "images must be uint8"),
            (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"got torch\.uint8 \(2, 4"),
            (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"int64 \[2\], got"),
            (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), r"got torch\.float32"),
            (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 2]), r"0\.\.1, one of 2 classes, got 0\.\.2"),
            (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([-1, 1]), r"got -1\.\.1"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LabeledImages(images, labels, ("cat", "dog"))

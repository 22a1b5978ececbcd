import re
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_images
from PIL import Image

from itgan_data.datasets import CIFAR10
from itgan_data.images import (
    LabeledImages,
    Normalization,
    image_grid,
    image_to_uint8,
    label_to_int,
    signed_to_uint8,
    signed_to_unit,
    to_class_names,
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
            ((0.5,), (0.1, 0.1), "one value per channel, got 1 and 2"),
            ((), (), "one value per channel, got 0 and 0"),
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
            (
                torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
                torch.tensor([0, 2]),
                r"labels must lie in 0\.\.1, got 0\.\.2",
            ),
            (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([-1, 1]), r"got -1\.\.1"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LabeledImages(images, labels, ("cat", "dog"))

    def test_another_order_of_the_same_classes_gives_each_image_the_same_name(self) -> None:
        images = make_images()
        other = images.in_order_of(["dog", "cat"])
        assert [other.classes[label] for label in other.targets] == [images.classes[label] for label in images.targets]
        assert torch.equal(other.images, images.images)
        assert images.in_order_of(("cat", "dog")) is images

    @pytest.mark.parametrize("names", [["cat", "owl"], ["cat"], ["dog", "cat", "owl"], ["0", "1"]])
    def test_other_classes_are_refused_with_both_shown(self, names: list[str]) -> None:
        with pytest.raises(ValueError, match=re.escape("['cat', 'dog'], expected") + ".*" + re.escape(repr(names))):
            make_images().in_order_of(names)

    def test_names_that_occur_twice_leave_an_order_open(self) -> None:
        pixels, labels = make_images().images, torch.arange(6) % 3
        images = LabeledImages(pixels, labels, ["crane", "crane", "dog"])
        assert images.in_order_of(["crane", "crane", "dog"]) is images
        with pytest.raises(ValueError, match=r"crane.*expected 3.*occur twice"):
            images.in_order_of(["dog", "crane", "crane"])


LEVELS = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(3, 16, 16)  # every byte in every channel
GREY = LEVELS[0].numpy()
WIDE = GREY.astype(np.uint16) * 257


class TestImageToUint8:
    @pytest.mark.parametrize(
        "image",
        [
            LEVELS,
            *(LEVELS.to(dtype) for dtype in (torch.int16, torch.int32, torch.int64)),
            *(LEVELS.to(dtype) / 255 for dtype in (torch.float16, torch.float32, torch.float64)),
            LEVELS.to(torch.float32) / 255 + 0.4 / 255,
            torch.from_numpy(np.stack([WIDE] * 3)),
            LEVELS.permute(1, 2, 0).numpy(),
            LEVELS.permute(1, 2, 0).numpy().astype(">i8"),
            np.stack([WIDE] * 3, axis=2).astype(">u2"),
            LEVELS.permute(1, 2, 0).numpy() / 255,
            np.frombuffer(LEVELS.permute(1, 2, 0).numpy().tobytes(), np.uint8).reshape(16, 16, 3),  # read-only
            to_pil(LEVELS),
            to_pil(LEVELS).convert("RGBA"),
            to_pil(LEVELS).convert("L").convert("LA"),
        ],
    )
    def test_what_is_certain_gives_the_same_picture_in_three_channels(self, image: Any) -> None:
        assert torch.equal(image_to_uint8(image), LEVELS)

    @pytest.mark.parametrize(
        "image",
        [
            LEVELS[0],
            LEVELS[:1].long(),
            GREY,
            GREY[:, :, None],
            WIDE,
            Image.fromarray(GREY),
            Image.fromarray(WIDE),
            Image.fromarray(WIDE.astype(">u2")),
            Image.fromarray(GREY.astype(np.int32)),
            Image.fromarray((GREY / 255).astype(np.float32)),
        ],
    )
    def test_what_is_certain_gives_the_same_picture_in_grey(self, image: Any) -> None:
        assert torch.equal(image_to_uint8(image), LEVELS[:1])

    @pytest.mark.parametrize("black_and_white", [GREY > 127, torch.from_numpy(GREY > 127)])
    def test_true_is_white(self, black_and_white: Any) -> None:
        assert torch.equal(image_to_uint8(black_and_white), (LEVELS[:1] > 127).to(torch.uint8) * 255)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (
                CIFAR10.normalization.standardize(uint8_to_unit(LEVELS)),
                r"in \[-1.9.*, 2.1.*\]; floats must lie in",
            ),
            (LEVELS.float(), r"float32 with values in \[0, 255\]"),
            (unit_to_signed(uint8_to_unit(LEVELS)), r"\[-1, 1\]"),
            (torch.full((3, 2, 2), torch.nan), "nan"),
            (torch.full((3, 2, 2), torch.inf), "inf"),
            (LEVELS.int() * 257, r"int32 with values in \[0, 6.554e\+04\]; expected 0..255"),
            (LEVELS.to(torch.int8), r"\[-128, 127\]"),
            (GREY.astype(np.uint16), "uint16 with values in .*; expected 0..255, or"),
            (Image.fromarray(GREY.astype(np.float32)), r"\[0, 255\]; floats"),
            (Image.fromarray(WIDE.astype(np.int32)), "expected 0..255"),
            (LEVELS.permute(1, 2, 0), r"shape \(16, 16, 3\)"),
            (LEVELS.numpy(), r"\[H, W, C\] as an array"),
            (torch.zeros(4, 2, 2), "one or three channels"),
            (torch.zeros(3, 0, 2), "shape"),
            (torch.zeros(3, 2, 2, dtype=torch.complex64), "real numbers"),
            (np.array([["a"]]), "must hold numbers"),
            (None, "got NoneType"),
        ],
    )
    def test_what_is_not_certain_is_refused_with_its_range(self, image: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            image_to_uint8(image)


class TestLabels:
    @pytest.mark.parametrize(
        "label", [7, np.int8(7), np.uint64(7), np.array(7), torch.tensor(7), torch.tensor(7, dtype=torch.uint8)]
    )
    def test_integers_of_any_type_are_labels(self, label: Any) -> None:
        assert (label_to_int(label), type(label_to_int(label))) == (7, int)

    @pytest.mark.parametrize(
        ("label", "message"),
        [
            (0.2, "must be an integer, got 0.2$"),
            (np.float32(2), "must be an integer, got np.float32"),
            (torch.tensor(1.0), r"got tensor\(1.\)$"),
            ("cat", "got 'cat'$"),
            (None, "got None$"),
            ([0, 0, 1], r"got \[0, 0, 1\]; of one-hot labels give the argmax"),
            (torch.tensor([0.1, 0.9]), "argmax"),
            (np.array([3]), "one element"),
            (-1, r"label -1 is out of range; expected 0\.\.9"),
            (10, r"expected 0\.\.9"),
            (1 << 70, "out of range"),
        ],
    )
    def test_anything_else_is_refused_by_its_value(self, label: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            label_to_int(label, 10)


class TestClassNames:
    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            ([("tench", "Tinca tinca"), ("goldfish",)], ("tench, Tinca tinca", "goldfish")),
            ([3, np.int64(5)], ("3", "5")),
            (np.array(["a", "b"]), ("a", "b")),
            (np.arange(2), ("0", "1")),
            (["a", "b"], ("a", "b")),
        ],
    )
    def test_names_of_torchvisions_data_sets_become_text(self, names: Any, expected: tuple[str, ...]) -> None:
        assert to_class_names(names) == expected
        pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
        assert LabeledImages(pixels, torch.arange(2), names).class_names == expected

    @pytest.mark.parametrize("names", ["ab", {"a": 0}, 10, [None, None], [b"a"], [["a", 1]], ["a", ""], [0.5]])
    def test_what_is_no_list_of_names_is_refused(self, names: Any) -> None:
        with pytest.raises(ValueError, match="class names must be a sequence"):
            to_class_names(names)

from pathlib import Path

import pytest
import torch

from itgan_data.augmentation import DSA, Augmentation, Compose, CropFlip, diff_augment
from itgan_data.augmentation.operations import OPERATIONS, brightness, color, contrast, saturation
from itgan_data.storage.files import load_tensors

SIZE = 24
AUGMENTATIONS = [
    DSA(),
    CropFlip(),
    diff_augment("color_crop_cutout_flip_scale_rotate"),
    *(DSA(name) for name in OPERATIONS),
]


def make_images(count: int = SIZE, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, 3, 16, 12, generator=torch.Generator().manual_seed(0), dtype=dtype)


def make_draws(augment: Augmentation, count: int = SIZE) -> torch.Tensor:
    return torch.rand(count, augment.num_draws, generator=torch.Generator().manual_seed(1))


class TestPublishedOperations:
    """The code that came with DSA, given the same numbers. It keeps shifts and centres as whole numbers."""

    @pytest.fixture
    def reference(self, fixture_folder: Path) -> dict[str, torch.Tensor]:
        return load_tensors(fixture_folder / "dsa_convnet.safetensors")

    @staticmethod
    def draws_of(reference: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        columns = torch.stack([reference[key] for key in sorted(reference) if key.startswith(f"{name}.draw")], dim=1)
        if name == "crop":  # -4..4
            return (columns + 4.5) / 9
        return (columns + 0.5) / 33 if name == "cutout" else columns  # 0..32

    @pytest.mark.parametrize(
        ("name", "tolerance"),
        [("crop", 0), ("cutout", 0), ("flip", 0), ("scale", 2e-5), ("rotate", 2e-5)],
    )
    def test_strategy_reproduces(self, reference: dict[str, torch.Tensor], name: str, tolerance: float) -> None:
        draws = self.draws_of(reference, name)
        picked = torch.cat([torch.zeros(len(draws), 1), draws], dim=1)
        torch.testing.assert_close(DSA(name)(reference["x"], picked), reference[f"{name}.out"], rtol=0, atol=tolerance)

    @pytest.mark.parametrize("operation", [brightness, saturation, contrast])
    def test_colour_reproduces(self, reference: dict[str, torch.Tensor], operation: Augmentation) -> None:
        name = operation.__name__
        result = operation(reference["x"], self.draws_of(reference, name))
        torch.testing.assert_close(result, reference[f"{name}.out"], rtol=1e-5, atol=1e-5)

    def test_color_is_brightness_then_saturation_then_contrast(self, reference: dict[str, torch.Tensor]) -> None:
        images = reference["x"]
        one, two, three = (self.draws_of(reference, name) for name in ("brightness", "saturation", "contrast"))
        expected = contrast(saturation(brightness(images, one), two), three)
        assert torch.equal(color(images, torch.cat([one, two, three], dim=1)), expected)


@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=repr)
class TestEveryAugmentation:
    def test_is_a_function_of_the_image_and_its_own_draws(self, augment: Augmentation) -> None:
        images, draws = make_images(), make_draws(augment)
        before = images.clone()
        together = augment(images, draws)
        apart = torch.cat([augment(images[row : row + 1], draws[row : row + 1]) for row in range(SIZE)])
        torch.testing.assert_close(together, apart)
        assert torch.equal(images, before)
        assert not torch.equal(together, images)

    def test_equal_draws_are_one_map(self, augment: Augmentation) -> None:
        """Siamese: real and synthetic images of a class see the same, so their differences are those of one map."""
        draws = make_draws(augment, 1).expand(SIZE, -1)
        twice = augment(make_images(1).expand(SIZE, -1, -1, -1), draws)
        torch.testing.assert_close(twice, twice[:1].expand_as(twice))

    def test_gradients_reach_every_image(self, augment: Augmentation) -> None:
        images = make_images().requires_grad_(True)
        augment(images, make_draws(augment)).sin().sum().backward()
        assert images.grad is not None
        assert images.grad.isfinite().all()
        assert (images.grad.flatten(1) != 0).any(dim=1).all()

    def test_draws_may_be_at_the_ends_of_their_range(self, augment: Augmentation) -> None:
        for value in (0.0, 1 - 2**-24):
            draws = torch.full((SIZE, augment.num_draws), value)
            result = augment(make_images(), draws)
            assert result.shape == (SIZE, 3, 16, 12)
            assert result.isfinite().all()

    def test_keeps_the_dtype(self, augment: Augmentation) -> None:
        assert augment(make_images(dtype=torch.float64), make_draws(augment)).dtype == torch.float64


class TestOperations:
    def test_gradient_is_that_of_finite_differences(self) -> None:
        augment = diff_augment("color_crop_cutout_flip_scale_rotate")
        images = make_images(2, torch.float64)[:, :, :6, :5].requires_grad_(True)
        assert torch.autograd.gradcheck(lambda images: augment(images, make_draws(augment, 2)), images)

    def test_the_middle_of_every_range_changes_nothing(self) -> None:
        unscaled = (1 - 1 / 1.2) / (1.2 - 1 / 1.2)
        for name, draws in {
            "color": [0.5, 0.5, 0.5],
            "crop": [0.5, 0.5],
            "flip": [0.5],
            "scale": [unscaled, unscaled],
            "rotate": [0.5],
        }.items():
            rows = torch.tensor([draws]).expand(SIZE, -1)
            torch.testing.assert_close(OPERATIONS[name](make_images(), rows), make_images(), rtol=1e-4, atol=1e-4)

    def test_all_shifts_are_equally_likely_and_reach_an_eighth(self) -> None:
        """A ramp tells the shift; 16 rows and 12 columns shift by up to 2."""
        ramp = (100.0 * torch.arange(1, 17)[:, None] + torch.arange(1, 13)).expand(4000, 1, 16, 12)
        centre = OPERATIONS["crop"](ramp, torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)))[:, 0, 8, 6]
        shifts = (centre - ramp[0, 0, 8, 6]).int().tolist()
        expected = {100 * row + column for row in range(-2, 3) for column in range(-2, 3)}
        assert set(shifts) == expected
        assert all(abs(shifts.count(shift) - 160) < 5 * 160**0.5 for shift in expected)

    def test_cutout_is_a_rectangle_of_half_the_sides(self) -> None:
        images = make_images()
        kept = OPERATIONS["cutout"](images, make_draws(OPERATIONS["cutout"])) == images
        assert (kept.all(dim=1) == kept.any(dim=1)).all()  # the same in all channels
        cut = ~kept[:, 0]
        heights, widths = cut.any(dim=2).sum(dim=1), cut.any(dim=1).sum(dim=1)
        assert torch.equal(cut.sum(dim=(1, 2)), heights * widths)
        assert (heights.max(), widths.max()) == (8, 6)
        assert (heights.min() >= 4, widths.min() >= 3) == (True, True)  # cut off by the border

    @pytest.mark.parametrize("angle", [0.0, 1 - 2**-24])
    def test_a_circle_stays_one_when_an_image_that_is_not_square_is_rotated(self, angle: float) -> None:
        rows, columns = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(48) - 23.5, indexing="ij")
        blob = torch.exp(-(rows**2 + columns**2) / 18).view(1, 1, 16, 48)
        rotated = OPERATIONS["rotate"](blob, torch.tensor([[angle]]))
        torch.testing.assert_close(rotated, blob, rtol=0, atol=0.03)  # sheared, it would differ by 0.24

    def test_scaling_magnifies_or_shrinks(self) -> None:
        square = torch.zeros(2, 1, 16, 16)
        square[:, :, 4:12, 4:12] = 1
        large, small = OPERATIONS["scale"](square, torch.tensor([[0.0, 0.0], [1.0, 1.0]])).sum(dim=(1, 2, 3))
        assert large.item() == pytest.approx(64 * 1.2**2, rel=0.05)
        assert small.item() == pytest.approx(64 / 1.2**2, rel=0.05)


class TestDSA:
    def test_the_first_draw_picks_the_operation(self) -> None:
        images, numbers = make_images(), make_draws(DSA())
        for place, name in enumerate(OPERATIONS):
            numbers[:, 0] = (place + 0.5) / len(OPERATIONS)
            assert torch.equal(DSA()(images, numbers), OPERATIONS[name](images, numbers[:, 1:]))

    def test_all_operations_of_the_strategy_are_used_and_no_other(self) -> None:
        images, strategy = make_images(), "flip_cutout"
        numbers = torch.cat([torch.linspace(0, 0.999, SIZE)[:, None], make_draws(OPERATIONS["cutout"])], dim=1)
        results = DSA(strategy)(images, numbers)
        possible = [OPERATIONS[name](images, numbers[:, 1:]) for name in strategy.split("_")]
        used = torch.tensor([[torch.equal(result[row], results[row]) for result in possible] for row in range(SIZE)])
        assert used.any(dim=1).all()
        assert used.any(dim=0).all()

    @pytest.mark.parametrize(
        ("strategy", "message"),
        [
            ("", "strategy is empty"),
            ("crop_blur", "unknown operation 'blur' in 'crop_blur'; expected color_crop_cutout_flip_scale_rotate"),
            ("crop__flip", "unknown operation ''"),
        ],
    )
    def test_a_bad_strategy_is_refused(self, strategy: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            DSA(strategy)


class TestCropFlip:
    def test_is_a_window_of_the_padded_image_or_of_its_mirror_image(self) -> None:
        images, numbers = make_images(), make_draws(CropFlip())
        padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
        results = CropFlip(padding=2)(images, numbers)
        for result, image in zip(results, padded, strict=True):
            windows = [image[:, row : row + 16, column : column + 12] for row in range(5) for column in range(5)]
            found = [torch.equal(result, window) or torch.equal(result, window.flip(2)) for window in windows]
            assert sum(found) == 1

    def test_half_of_the_images_are_mirrored_unless_switched_off(self) -> None:
        images, numbers = make_images(1).expand(1000, -1, -1, -1), make_draws(CropFlip(), 1000)
        mirrored = (CropFlip(padding=0)(images, numbers) == images.flip(3)).flatten(1).all(dim=1)
        assert 400 < mirrored.sum() < 600
        assert torch.equal(CropFlip(padding=0, flip=False)(images, numbers), images)


class TestCompose:
    def test_each_part_has_draws_of_its_own(self) -> None:
        parts = (CropFlip(), DSA(), OPERATIONS["cutout"])
        composed, images = Compose(*parts), make_images()
        assert composed.num_draws == sum(part.num_draws for part in parts)
        numbers = make_draws(composed)
        expected = images
        for part, columns in zip(parts, numbers.split([part.num_draws for part in parts], dim=1), strict=True):
            expected = part(expected, columns)
        assert torch.equal(composed(images, numbers), expected)

    def test_its_repr_says_what_it_does(self) -> None:
        """Results name their recipe by it, so it must not change from run to run."""
        assert repr(Compose(CropFlip(2), DSA())) == f"Compose({CropFlip(2)!r}, {DSA()!r})"
        assert repr(diff_augment("color_flip")) == "Compose(color, flip)"

    def test_an_empty_policy_changes_nothing(self) -> None:
        nothing = diff_augment("")
        assert nothing.num_draws == 0
        assert torch.equal(nothing(make_images(), torch.zeros(SIZE, 0)), make_images())

    def test_diff_augment_applies_all_of_its_policy(self) -> None:
        augment, images = diff_augment("color_crop_cutout"), make_images()
        numbers = make_draws(augment)
        expected = OPERATIONS["color"](images, numbers[:, :3])
        expected = OPERATIONS["cutout"](OPERATIONS["crop"](expected, numbers[:, 3:5]), numbers[:, 5:])
        assert torch.equal(augment(images, numbers), expected)
        with pytest.raises(ValueError, match="unknown operation 'translation'"):
            diff_augment("color_translation")

from pathlib import Path

import pytest
import torch

from itgan_data.condense.matching import (
    distribution_matching,
    gradient_distance,
    pairwise_regularizer,
    reconstruction,
    total_loss,
)
from itgan_data.storage.files import load_tensors

CLASSES, PAIRS, DIM = 3, 5, 7


def embeddings(seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(CLASSES, PAIRS, DIM, generator=rng, dtype=torch.float64)


class TestDistributionMatching:
    def test_reproduces_the_published_loss(self, fixture_folder: Path) -> None:
        """Of one class; its real and synthetic batches differ in size."""
        reference = load_tensors(fixture_folder / "dsa_convnet.safetensors")
        real, synthetic = (reference[name].mean(dim=0, keepdim=True) for name in ("dm.real", "dm.syn"))
        torch.testing.assert_close(distribution_matching(real, synthetic), reference["dm.loss"].view(1))

    def test_is_apart_for_each_class(self) -> None:
        real, synthetic = embeddings(0).mean(dim=1), embeddings(1).mean(dim=1)
        apart = [distribution_matching(real[[row]], synthetic[[row]]) for row in range(CLASSES)]
        torch.testing.assert_close(distribution_matching(real, synthetic), torch.cat(apart))

    def test_sees_the_mean_only(self) -> None:
        mixed = embeddings(0)[:, torch.randperm(PAIRS, generator=torch.Generator().manual_seed(0))]
        assert (distribution_matching(embeddings(0).mean(dim=1), mixed.mean(dim=1)) < 1e-20).all()


class TestPairwiseRegularizer:
    def test_equals_the_loop_over_classes_and_pairs(self) -> None:
        real, synthetic = embeddings(0), embeddings(1)
        for label in range(CLASSES):
            pairs = [float(((real[label, pair] - synthetic[label, pair]) ** 2).sum()) for pair in range(PAIRS)]
            assert float(pairwise_regularizer(real, synthetic)[label]) == pytest.approx(sum(pairs) / PAIRS)

    def test_bounds_the_distance_of_the_means(self) -> None:
        """By Jensen's inequality; so it is no weaker, and equal where there is one pair a class."""
        real, synthetic = embeddings(0), embeddings(1)
        means = distribution_matching(real.mean(dim=1), synthetic.mean(dim=1))
        assert (pairwise_regularizer(real, synthetic) > means).all()
        one = pairwise_regularizer(real[:, :1], synthetic[:, :1])
        torch.testing.assert_close(one, distribution_matching(real[:, 0], synthetic[:, 0]))


class TestGradientDistance:
    SHAPES = ((4, 3, 2, 2), (4,), (5, 6))  # a convolution, its bias, a linear layer

    @classmethod
    def gradients(cls, seed: int) -> list[torch.Tensor]:
        rng = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in cls.SHAPES]

    def test_is_the_sum_over_output_units_of_one_minus_the_cosine(self) -> None:
        real, synthetic = self.gradients(0), self.gradients(1)
        total = 0.0
        for layer in (0, 2):
            for one, other in zip(real[layer], synthetic[layer], strict=True):
                total += 1 - float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0))
        assert float(gradient_distance(real, synthetic)) == pytest.approx(total, rel=1e-5)

    def test_lies_between_equal_and_opposite_whatever_the_length(self) -> None:
        real = self.gradients(0)
        equal = gradient_distance(real, [3 * gradient for gradient in real])
        opposite = gradient_distance(real, [-0.5 * gradient for gradient in real])
        assert float(equal) == pytest.approx(0, abs=1e-4)
        assert float(opposite) == pytest.approx(2 * (4 + 5), rel=1e-4)

    def test_ignores_parameters_of_one_dimension(self) -> None:
        real, synthetic = self.gradients(0), self.gradients(1)
        other = [synthetic[0], synthetic[1] * -7, synthetic[2]]
        assert gradient_distance(real, synthetic) == gradient_distance(real, other)

    def test_counts_a_unit_without_gradient_as_orthogonal(self) -> None:
        real = self.gradients(0)
        none = [torch.zeros_like(gradient).requires_grad_(True) for gradient in real]
        distance = gradient_distance(real, none)
        assert float(distance.detach()) == 4 + 5
        assert all(part.isfinite().all() for part in torch.autograd.grad(distance, [none[0], none[2]]))


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 2.0), (1.0, 10.0), (0.25, 4.0)])
def test_the_weight_moves_from_one_term_to_the_other(weight: float, expected: float) -> None:
    assert total_loss(torch.tensor(2.0), torch.tensor(10.0), weight) == expected


class TestReconstruction:
    IMAGES = (4, 3, 2, 2)

    @staticmethod
    def losses(pixel_weight: float, rows: slice = slice(None)) -> torch.Tensor:
        rng = torch.Generator().manual_seed(0)
        features = [torch.randn(4, DIM, generator=rng)[rows] for _ in range(2)]
        images = [torch.randn(TestReconstruction.IMAGES, generator=rng)[rows] for _ in range(2)]
        return reconstruction(*features, *images, pixel_weight)

    def test_is_equation_1(self) -> None:
        """Both distances are means: over the features and over the pixels."""
        features, images = torch.zeros(1, DIM), torch.zeros(1, 3, 2, 2)
        feature = torch.cat([torch.full((1, 1), 7.0), torch.zeros(1, DIM - 1)], dim=1)
        pixel = images.clone()
        pixel[0, 0, 0, 0] = 6.0
        assert reconstruction(feature, features, pixel, images, 0.5).tolist() == [49 / DIM + 0.5 * 36 / 12]

    def test_of_an_image_does_not_depend_on_the_others(self) -> None:
        assert self.losses(1.0).shape == (4,)
        torch.testing.assert_close(self.losses(1.0, slice(1, 3)), self.losses(1.0)[1:3])

    def test_is_zero_for_equal_images_and_positive_otherwise(self) -> None:
        features, images = torch.randn(4, DIM), torch.randn(self.IMAGES)
        assert (reconstruction(features, features, images, images, 1.0) == 0).all()
        assert (self.losses(0.0) > 0).all()
        assert (self.losses(1.0) > self.losses(0.0)).all()

from pathlib import Path

import pytest
import torch

from itgan_data.condense.matching import distribution_matching, pairwise_regularizer, reconstruction, total_loss
from itgan_data.files import load_tensors

CLASSES, PAIRS, DIM = 3, 5, 7


def embeddings(seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(CLASSES, PAIRS, DIM, generator=rng, dtype=torch.float64)


class TestDistributionMatching:
    def test_reproduces_the_published_loss(self, fixture_folder: Path) -> None:
        """Of one class; its real and synthetic batches differ in size."""
        reference = load_tensors(fixture_folder / "dsa_convnet.safetensors")
        real, synthetic = (reference[name].mean(dim=0, keepdim=True) for name in ("dm.real", "dm.syn"))
        torch.testing.assert_close(distribution_matching(real, synthetic), reference["dm.loss"].squeeze())

    def test_is_summed_over_classes(self) -> None:
        real, synthetic = embeddings(0).mean(dim=1), embeddings(1).mean(dim=1)
        apart = [distribution_matching(real[[row]], synthetic[[row]]) for row in range(CLASSES)]
        torch.testing.assert_close(distribution_matching(real, synthetic), torch.stack(apart).sum())

    def test_sees_the_mean_only(self) -> None:
        mixed = embeddings(0)[:, torch.randperm(PAIRS, generator=torch.Generator().manual_seed(0))]
        assert distribution_matching(embeddings(0).mean(dim=1), mixed.mean(dim=1)) < 1e-20


class TestPairwiseRegularizer:
    def test_equals_the_loop_over_classes_and_pairs(self) -> None:
        real, synthetic = embeddings(0), embeddings(1)
        total = 0.0
        for label in range(CLASSES):
            for pair in range(PAIRS):
                total += float(((real[label, pair] - synthetic[label, pair]) ** 2).sum()) / PAIRS
        assert float(pairwise_regularizer(real, synthetic)) == pytest.approx(total)

    def test_bounds_the_distance_of_the_means(self) -> None:
        """By Jensen's inequality; so it is no weaker, and equal where there is one pair a class."""
        real, synthetic = embeddings(0), embeddings(1)
        means = distribution_matching(real.mean(dim=1), synthetic.mean(dim=1))
        assert pairwise_regularizer(real, synthetic) > means
        one = pairwise_regularizer(real[:, :1], synthetic[:, :1])
        torch.testing.assert_close(one, distribution_matching(real[:, 0], synthetic[:, 0]))


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

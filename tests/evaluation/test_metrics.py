import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from itgan_data.evaluation.metrics import (
    _BETAS,
    WEIGHT_METHODS,
    WeightMethod,
    compare_features,
    frechet_distance,
    ms_ssim,
    nearest_neighbors,
    precision_recall,
    sample_weights,
)
from itgan_data.images import LabeledImages

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def normal(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def with_moments(mean: torch.Tensor, root: torch.Tensor, seed: int) -> torch.Tensor:
    """Samples whose mean is `mean` and whose covariance is `root.T @ root`, exactly."""
    values = normal(200, len(mean), seed=seed).double()
    values -= values.mean(dim=0)
    whitening = torch.linalg.inv(torch.linalg.cholesky(torch.cov(values.T))).T
    return values @ whitening @ root + mean


class TestFrechetDistance:
    def test_of_a_set_with_itself_is_zero(self) -> None:
        features = normal(300, 8)
        assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)

    def test_of_a_shifted_set_is_the_squared_shift(self) -> None:
        features = normal(300, 8).double()
        for shift in (0.5, 1.0, 2.0):
            assert frechet_distance(features, features + shift) == pytest.approx(8 * shift**2)

    def test_of_known_moments_is_the_closed_form(self) -> None:
        """For diagonal covariances: |difference of means|^2 + sum of squared differences of standard deviations."""
        means = torch.tensor([[1.0, 2.0, 3.0], [0.0, 2.0, 5.0]], dtype=torch.float64)
        stds = torch.tensor([[1.0, 0.5, 2.0], [3.0, 0.5, 1.0]], dtype=torch.float64)
        real, synthetic = (with_moments(means[i], stds[i].diag(), seed=i) for i in range(2))
        expected = (means[0] - means[1]).square().sum() + (stds[0] - stds[1]).square().sum()
        assert frechet_distance(real, synthetic) == pytest.approx(float(expected))

    def test_does_not_depend_on_the_side_or_on_a_rotation(self) -> None:
        real, synthetic = normal(200, 6).double(), normal(150, 6, seed=1).double() @ normal(6, 6, seed=2).double()
        rotation = torch.linalg.qr(normal(6, 6, seed=3).double()).Q
        distance = frechet_distance(real, synthetic)
        assert frechet_distance(synthetic, real) == pytest.approx(distance)
        assert frechet_distance(real @ rotation, synthetic @ rotation) == pytest.approx(distance)

    @pytest.mark.parametrize("count", [20, 1500], ids=["singular covariances", "several blocks"])
    def test_agrees_with_torchmetrics(self, count: int) -> None:
        real, synthetic = normal(count, 32), normal(count, 32, seed=1).relu()
        network = nn.Identity()
        network.num_features = 32
        metric = FrechetInceptionDistance(feature=network)
        metric.update(real.double(), real=True)
        metric.update(synthetic.double(), real=False)
        assert frechet_distance(real, synthetic) == pytest.approx(float(metric.compute()), rel=1e-4)


class TestPrecisionRecall:
    def test_of_a_set_with_itself_are_one(self) -> None:
        features = normal(100, 4)
        assert precision_recall(features, features) == (1.0, 1.0)

    def test_a_dropped_mode_costs_recall_alone(self) -> None:
        modes = torch.tensor([[0.0, 0.0], [100.0, 0.0]])
        real = torch.cat([normal(100, 2, seed=i) + mode for i, mode in enumerate(modes)])
        precision, recall = precision_recall(real, real[:100])
        assert precision == 1.0
        assert recall == 0.5

    def test_outliers_cost_precision_alone(self) -> None:
        real = normal(100, 2)
        outliers = 1000 + 100 * normal(300, 2, seed=1)
        precision, recall = precision_recall(real, torch.cat([real, outliers]))
        assert precision == 0.25
        assert recall == 1.0

    def test_are_those_of_the_definition(self) -> None:
        real, synthetic = normal(60, 3), 0.7 * normal(50, 3, seed=1) + 0.5

        def share_within(points: torch.Tensor, others: torch.Tensor) -> float:
            radii = torch.cdist(others, others).sort(dim=1).values[:, 3]  # column 0 is the point itself
            return float((torch.cdist(points, others) <= radii).any(dim=1).double().mean())

        precision, recall = precision_recall(real, synthetic, neighbors=3)
        assert 0 < precision < 1
        assert 0 < recall < 1
        assert precision == pytest.approx(share_within(synthetic, real))
        assert recall == pytest.approx(share_within(real, synthetic))


def test_compared_features_carry_the_name_of_their_network_and_the_counts() -> None:
    real, synthetic = normal(50, 4), normal(40, 4, seed=1)
    compared = compare_features(real, synthetic, network="ConvNet of 60%")
    assert (compared.network, compared.num_real, compared.num_synthetic) == ("ConvNet of 60%", 50, 40)
    assert compared.frechet_distance == frechet_distance(real, synthetic)
    assert (compared.precision, compared.recall) == precision_recall(real, synthetic)


@pytest.mark.parametrize("function", [frechet_distance, precision_recall, nearest_neighbors])
@pytest.mark.parametrize(
    ("real", "synthetic", "message"),
    [
        (torch.zeros(5, 3), torch.zeros(5, 4), r"equally many features .* \(5, 3\) and \w+ \(5, 4\)"),
        (torch.zeros(5, 3), torch.zeros(0, 3), "at least . samples per set, got"),
        (torch.zeros(5, 3), torch.full((5, 3), torch.nan), "hold values that are not finite"),
    ],
    ids=["other features", "empty", "nan"],
)
def test_features_that_cannot_be_compared_are_refused(
    function: object, real: torch.Tensor, synthetic: torch.Tensor, message: str
) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match=message):
        function(real, synthetic)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 2 samples per set, got real \(1, 3\) and synthetic \(5, 3\)"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="at least 4 samples per set"):
        precision_recall(torch.zeros(5, 3), torch.zeros(3, 3), neighbors=3)
    with pytest.raises(ValueError, match="neighbors must be at least 1, got 0"):
        precision_recall(torch.zeros(5, 3), torch.zeros(5, 3), neighbors=0)


class TestMsSsim:
    def noise(self, count: int, side: int = 32) -> torch.Tensor:
        rng = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=rng)

    @pytest.mark.parametrize("side", [12, 32, 64])
    def test_of_equal_images_is_one(self, side: int) -> None:
        images = self.noise(1, side).expand(4, -1, -1, -1)
        assert ms_ssim(images, torch.zeros(4, dtype=torch.int64)) == pytest.approx(1)

    def test_weights_its_scales_to_one(self) -> None:
        """Constant images of values 0 and 1: at every scale the likeness is luminance alone, c1 / (1 + c1)."""
        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        images[1] = 255
        luminance = 0.01**2 / (1 + 0.01**2)
        expected = luminance ** _BETAS[-1]  # contrast and structure of constant images are one
        assert ms_ssim(images, torch.zeros(2, dtype=torch.int64)) == pytest.approx(expected, rel=1e-3)
        assert sum(_BETAS) == pytest.approx(1)

    def test_falls_as_the_images_of_a_class_grow_apart(self) -> None:
        base, noise = self.noise(1).float(), self.noise(20).float()
        scores = [
            float(ms_ssim(((1 - share) * base + share * noise).to(torch.uint8), torch.zeros(20, dtype=torch.int64)))
            for share in (0.1, 0.4, 1.0)
        ]
        assert 1 > scores[0] > scores[1] > scores[2] >= 0

    def test_compares_within_classes_only(self) -> None:
        """Two images, each repeated: alike within their classes, unlike across them."""
        images = self.noise(2).repeat_interleave(5, dim=0)
        labels = torch.tensor([3] * 5 + [7] * 5)
        assert ms_ssim(images, labels).tolist() == pytest.approx([1, 1])
        assert ms_ssim(images, torch.zeros_like(labels)) < 0.9

    def test_never_pairs_an_image_with_itself(self) -> None:
        first, second = self.noise(2)
        once = ms_ssim(torch.stack([first, second]), torch.zeros(2, dtype=torch.int64), pairs_per_class=1)
        often = ms_ssim(torch.stack([first, second]), torch.zeros(2, dtype=torch.int64), pairs_per_class=50)
        assert once == pytest.approx(float(often), abs=1e-6)
        assert once < 0.5

    def test_a_class_scores_the_same_whatever_the_others_and_another_seed_draws_other_pairs(self) -> None:
        images, labels = self.noise(30), torch.arange(30) % 3
        scores = ms_ssim(images, labels, pairs_per_class=10)
        assert torch.equal(scores[1:], ms_ssim(images[labels > 0], labels[labels > 0], pairs_per_class=10))
        assert torch.equal(scores, ms_ssim(images, labels, pairs_per_class=10))
        assert not torch.equal(scores, ms_ssim(images, labels, pairs_per_class=10, seed=1))

    def test_refuses_what_has_no_pairs(self) -> None:
        images, labels = self.noise(3), torch.tensor([0, 0, 1])
        with pytest.raises(ValueError, match="class 1 has one image"):
            ms_ssim(images, labels)
        with pytest.raises(ValueError, match=r"of at least 12 px, got torch.uint8 \(3, 3, 8, 8\)"):
            ms_ssim(images[..., :8, :8], labels)
        with pytest.raises(ValueError, match="not empty"):
            ms_ssim(images[:0], labels[:0])
        with pytest.raises(ValueError, match=r"images must be uint8 .* got torch.float32"):
            ms_ssim(images / 255, labels)
        with pytest.raises(ValueError, match=r"labels must be int64 \[3\]"):
            ms_ssim(images, labels[:2])
        with pytest.raises(ValueError, match="pairs_per_class must be at least 1, got 0"):
            ms_ssim(images, labels, pairs_per_class=0)


class TestNearestNeighbors:
    def test_of_features_are_those_of_brute_force(self) -> None:
        queries, references = normal(1100, 5).double(), normal(2100, 5, seed=1).double()  # several blocks each way
        expected = (queries[:, None] - references).square().sum(dim=2).sqrt().min(dim=1)
        distances, indices = nearest_neighbors(queries, references)
        assert torch.equal(indices, expected.indices)
        torch.testing.assert_close(distances, expected.values)

    def test_of_images_are_exact_and_a_copy_is_at_distance_zero(self, tiny_images: LabeledImages) -> None:
        images = tiny_images.images
        changed = images[[4, 9]].clone()
        changed[1, 0, 0, 0] ^= 1
        distances, indices = nearest_neighbors(changed, images)
        assert indices.tolist() == [4, 9]
        assert distances.tolist() == [0, 1]

    def test_of_equally_near_ones_the_first_is_taken(self) -> None:
        _, indices = nearest_neighbors(torch.zeros(1, 2), torch.ones(3000, 2))
        assert indices.tolist() == [0]


class TestSampleWeights:
    # Class 0: one synthetic point at 0, real ones at distances 1, 2, 3, 5: w = 0, .2, .4, .8; mu = .35, sigma = .296.
    # Class 1: synthetic at 10 and 14, real ones at 10, 16: sums 4, 8, so w = 0, .5; mu = sigma = .25.
    real = torch.tensor([1.0, 2.0, 10.0, 3.0, 5.0, 16.0]).unsqueeze(1)
    real_labels = torch.tensor([0, 0, 1, 0, 0, 1])
    synthetic = torch.tensor([10.0, 0.0, 14.0]).unsqueeze(1)
    synthetic_labels = torch.tensor([1, 0, 1])

    def weights(self, method: WeightMethod) -> torch.Tensor:
        return sample_weights(self.real, self.real_labels, self.synthetic, self.synthetic_labels, method=method)

    def test_c_is_the_distance_scaled_within_the_class(self) -> None:
        assert self.weights("C").tolist() == pytest.approx([0, 0.2, 0, 0.4, 0.8, 0.5], abs=1e-7)

    def test_a_mu_keeps_what_is_at_least_the_mean(self) -> None:
        assert self.weights("A_mu").tolist() == pytest.approx([0, 0, 0, 0.4, 0.8, 0.5], abs=1e-7)

    def test_a_sigma_keeps_what_is_at_least_a_standard_deviation_below_the_mean(self) -> None:
        assert self.weights("A_sigma").tolist() == pytest.approx([0, 0.2, 0, 0.4, 0.8, 0.5], abs=1e-7)

    def test_b_is_a_sigmoid_of_the_standardized_weight(self) -> None:
        sigma = math.sqrt((0.35**2 + 0.15**2 + 0.05**2 + 0.45**2) / 4)
        expected = [1 / (1 + math.exp(-2 * (w - 0.35) / sigma)) for w in (0, 0.2, 0.4, 0.8)]
        outer = 1 / (1 + math.exp(2))
        expected = [*expected[:2], outer, *expected[2:], 1 - outer]
        assert self.weights("B").tolist() == pytest.approx(expected)

    @settings(max_examples=25, deadline=None)
    @given(
        seed=st.integers(0, 1000),
        count=st.integers(2, 40),
        method=st.sampled_from(WEIGHT_METHODS),
        scale=st.floats(0.01, 100),
    )
    def test_lie_in_their_range_and_grow_with_the_distance_whatever_the_scale(
        self, seed: int, count: int, method: WeightMethod, scale: float
    ) -> None:
        real, synthetic = normal(count, 3, seed=seed).double(), normal(7, 3, seed=seed + 1).double()
        labels, others = torch.zeros(count, dtype=torch.int64), torch.zeros(7, dtype=torch.int64)
        weights = sample_weights(real, labels, synthetic, others, method=method)
        assert weights.dtype == torch.float32
        assert weights.min() >= 0
        assert 0 < weights.max() < 1
        order = torch.cdist(real, synthetic).sum(dim=1).argsort()
        assert (weights[order].diff() >= -1e-6).all()
        scaled = sample_weights(scale * real, labels, scale * synthetic, others, method=method)
        torch.testing.assert_close(weights, scaled, atol=1e-5, rtol=1e-4)

    def test_a_sigma_drops_what_is_far_below_the_mean(self) -> None:
        real = torch.tensor([1.0] + [9.0, 10.0, 11.0] * 5).unsqueeze(1)
        labels = torch.zeros(16, dtype=torch.int64)
        weights = [
            sample_weights(real, labels, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), method=method)
            for method in ("C", "A_sigma", "A_mu")
        ]
        assert [int((method == 0).sum()) for method in weights] == [1, 1, 6]

    def test_the_methods_listed_are_those_of_the_type(self) -> None:
        assert get_args(WeightMethod) == WEIGHT_METHODS

    def test_refuse_what_gives_no_weights(self) -> None:
        with pytest.raises(ValueError, match="unknown method 'D'; expected one of A_mu, A_sigma, B, C"):
            self.weights("D")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="class 1 has no synthetic samples"):
            sample_weights(self.real, self.real_labels, self.synthetic[1:2], self.synthetic_labels[1:2], method="C")
        with pytest.raises(ValueError, match="the 2 real samples of class 0 are equally far"):
            sample_weights(
                torch.ones(2, 1), torch.zeros(2).long(), torch.zeros(3, 1), torch.zeros(3).long(), method="B"
            )
        with pytest.raises(ValueError, match=r"labels must be int64 \[6\], got torch.int64 \(5,\)"):
            sample_weights(self.real, self.real_labels[1:], self.synthetic, self.synthetic_labels, method="C")

"""The gradients of both objectives, at once and in chunks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import TinyGenerator, colored_images
from torch import nn

from itgan_data.augmentation import DSA, Augmentation
from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.network_source import FreshNetworks, PoolSource
from itgan_data.condense.objective import Batch, DistributionObjective, GradientObjective, Matching
from itgan_data.condense.pool import EmbeddingPool
from itgan_data.images import Normalization, signed_to_unit, uint8_to_unit, unit_to_uint8
from itgan_data.networks import create_network

NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
CONFIG = CondenserConfig(real_batch_size=5, normalization=NORMALIZATION)
COUNT = 4  # latents per class


class Recorded:
    """An augmentation that keeps what it was called with."""

    def __init__(self, augment: Augmentation) -> None:
        self.augment = augment
        self.num_draws = augment.num_draws
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        self.calls.append((images.detach().clone(), draws))
        return self.augment(images, draws)


IMAGES = colored_images()
BY_CLASS = [(IMAGES.labels == label).nonzero().squeeze(1) for label in range(3)]
BATCH = Batch(  # each latent with a real image of its class
    torch.randn(3, COUNT, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    torch.stack([indices[:COUNT] for indices in BY_CLASS]),
    torch.arange(3),
)


def make_matching(config: CondenserConfig) -> Matching:
    """In float64, on one of two untrained networks."""
    states = []
    for seed in range(2):
        rng = torch.Generator().manual_seed(seed)
        network = create_network("convnet", 3, image_shape=(3, 8, 8), width=8, rng=rng).double()
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
    networks = PoolSource(EmbeddingPool(network, states, [0.5, 0.5]), seed=0)
    generator = TinyGenerator().double().requires_grad_(False)
    matching = Matching(generator, networks, colored_images(), BY_CLASS, config)
    matching.augment = Recorded(matching.augment)
    return matching


def distribution(config: CondenserConfig) -> DistributionObjective:
    matching = make_matching(config)
    return DistributionObjective(matching, lambda images: matching.networks.network.embed(images.double()))


def gradient_matching(config: CondenserConfig) -> GradientObjective:
    matching = make_matching(config)
    return GradientObjective(matching, lambda images: matching.networks.network(images.double()))


OBJECTIVES = {"distribution": distribution, "gradient": gradient_matching}


class TestDistribution:
    @pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("step", range(4))
    def test_all_classes_at_once_equal_the_loop_over_classes(self, weight: float, step: int) -> None:
        objective = distribution(replace(CONFIG, regularizer_weight=weight))
        losses, gradient = objective.gradient(BATCH, group=0, step=step)
        (real, rows), *_ = objective.matching.augment.calls
        latents = BATCH.latents.clone().requires_grad_(True)
        for label in range(3):

            def embed(images: torch.Tensor, label: int = label) -> torch.Tensor:
                return objective.embed(DSA()(images, rows[5 * label].expand(len(images), -1)))

            unit = signed_to_unit(objective.matching.generate(latents[label], torch.full((COUNT,), label)))
            synthetic = embed(NORMALIZATION.standardize(unit))
            paired = embed(NORMALIZATION.standardize(uint8_to_unit(IMAGES.images[BATCH.sources[label]])))
            matching = (embed(real[5 * label : 5 * label + 5]).mean(0) - synthetic.mean(0)).square().sum()
            regularizer = (paired - synthetic).square().sum(dim=1).mean()
            expected = (1 - weight) * matching + weight * regularizer
            torch.testing.assert_close(losses[label], expected.detach(), rtol=1e-5, atol=0)
            (expected_gradient,) = torch.autograd.grad(expected, latents)
            assert (gradient - expected_gradient)[label].abs().max() < 1e-5 * expected_gradient.abs().max()

    def test_a_class_shares_its_augmentation_and_no_other_has_it(self) -> None:
        objective = distribution(replace(CONFIG, regularizer_weight=0.5))
        objective.gradient(BATCH, group=0, step=0)
        augment = objective.matching.augment
        real, synthetic, paired = (draws.view(3, -1, augment.num_draws) for _, draws in augment.calls)
        for draws in (real, synthetic, paired):
            assert torch.equal(draws, real[:, :1].expand_as(draws))
        assert len(real[:, 0].unique(dim=0)) == 3

    def test_gradients_reach_the_latents_only_in_one_pass(self) -> None:
        objective = distribution(CONFIG)
        passes = []
        objective.matching.generate.register_forward_hook(lambda module, inputs, images: passes.append(len(images)))
        losses, gradient = objective.gradient(BATCH, group=0, step=0)
        assert passes == [12]
        assert not losses.requires_grad
        assert (gradient != 0).any(dim=2).all()
        for module in (objective.matching.generate, objective.matching.networks.network):
            assert not [parameter for parameter in module.parameters() if parameter.grad is not None]

    @pytest.mark.parametrize("chunk_size", [None, 3], ids=["whole", "in chunks"])
    @pytest.mark.parametrize("images_at_once", [1, 2, 5, 8])
    def test_no_pass_holds_more_images_than_asked_for_and_the_gradient_is_that_of_one_pass(
        self, images_at_once: int, chunk_size: int | None
    ) -> None:
        config = replace(CONFIG, regularizer_weight=0.3, chunk_size=chunk_size)
        objective = distribution(config)
        losses, gradient = objective.gradient(BATCH, group=0, step=1)
        objective.matching.images_at_once = images_at_once
        objective.matching.augment.calls.clear()
        found, found_gradient = objective.gradient(BATCH, group=0, step=1)
        assert max(len(images) for images, _ in objective.matching.augment.calls) <= images_at_once
        torch.testing.assert_close(found, losses, rtol=1e-9, atol=0)
        assert (found_gradient - gradient).abs().max() < 1e-9 * gradient.abs().max()

    def test_only_batch_norm_needs_all_images_in_one_pass(self) -> None:
        large = replace(CONFIG, real_batch_size=10**6)
        for norm, passes in (("instance", 3), ("batch", 1)):
            config = replace(large, networks=FreshNetworks(norm=norm))
            matching = Matching(nn.Identity(), None, IMAGES, [], config)  # type: ignore[arg-type]
            assert len(matching.blocks(3, config.real_batch_size)) == passes


class TestGradient:
    @pytest.mark.parametrize("strategy", ["", CONFIG.strategy])
    def test_equals_a_plain_computation(self, strategy: str) -> None:
        """Gradients by `backward`, published cosines one output unit at a time, derivatives by finite differences."""
        objective = gradient_matching(replace(CONFIG, strategy=strategy))
        losses, gradient = objective.gradient(BATCH, group=0, step=1)
        network, augment = objective.matching.networks.network, objective.matching.augment
        real = [call for call in augment.calls if len(call[0]) == 5]

        def distance(latents: torch.Tensor, label: int) -> float:
            images, rows = real[label]
            unit = signed_to_unit(objective.matching.generate(latents, torch.full((len(latents),), label)))
            pair = (images, NORMALIZATION.standardize(unit))
            weights = []
            for shown in pair:
                network.zero_grad()
                shown = augment.augment(shown, rows[:1].expand(len(shown), -1))
                F.cross_entropy(network(shown.double()), torch.full((len(shown),), label)).backward()
                weights.append([p.grad.clone() for p in network.parameters() if p.ndim > 1])
            network.zero_grad(set_to_none=True)
            return sum(
                1 - float(one.flatten() @ other.flatten() / (one.norm() * other.norm() + 1e-6))
                for ours, theirs in zip(*weights, strict=True)
                for one, other in zip(ours, theirs, strict=True)
            )

        for label in range(3):
            assert float(losses[label]) == pytest.approx(distance(BATCH.latents[label], label), rel=1e-6)
            shift = torch.zeros_like(BATCH.latents[label])
            shift[1, 2] = 1e-4
            ahead, behind = (distance(BATCH.latents[label] + sign * shift, label) for sign in (1, -1))
            assert float(gradient[label, 1, 2]) == pytest.approx((ahead - behind) / 2e-4, rel=1e-4, abs=1e-6)

    def test_is_smallest_for_the_real_images_themselves(self) -> None:
        """With no more real images than latents, made by the generator, and no augmentation."""
        objective = gradient_matching(replace(CONFIG, strategy="", real_batch_size=1))
        matching = objective.matching
        one = Batch(BATCH.latents[:, :1], BATCH.sources[:, :1], BATCH.classes)
        shown = matching.generate(one.latents.flatten(0, 1), one.labels)
        matching.real = lambda places, uniforms: NORMALIZATION.standardize(  # type: ignore[method-assign]
            signed_to_unit(shown[[int(IMAGES.labels[places[0, 0]])]])
        )
        losses, _ = objective.gradient(one, group=0, step=0)
        assert (losses < 0.1).all()  # not zero: the published formula adds 1e-6 to the lengths
        others = Batch(-one.latents, one.sources, one.classes)
        assert (objective.gradient(others, group=0, step=0)[0] > 1).all()


@pytest.mark.parametrize("name", OBJECTIVES)
class TestBoth:
    def test_real_images_are_of_their_class_and_new_every_step_and_group(self, name: str) -> None:
        known = {image.numpy().tobytes(): place for place, image in enumerate(IMAGES.images)}
        objective = OBJECTIVES[name](CONFIG)
        calls = objective.matching.augment.calls
        seen = []
        for group, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
            calls.clear()
            objective.gradient(BATCH, group=group, step=step)
            real = [(images, draws) for images, draws in calls if len(images) % 5 == 0]
            shown = unit_to_uint8(NORMALIZATION.to_unit(torch.cat([images for images, _ in real])))
            places = torch.tensor([known[image.contiguous().numpy().tobytes()] for image in shown])
            assert torch.equal(IMAGES.labels[places], torch.arange(3).repeat_interleave(5))
            seen.append((places.tolist(), [draws.tolist() for _, draws in real]))
        assert seen[3] == seen[0]
        for drawn in zip(*seen[:3], strict=True):
            assert all(drawn[one] != drawn[other] for one, other in ((0, 1), (0, 2), (1, 2)))

    def test_a_class_is_learned_alike_whatever_is_learned_beside_it(self, name: str) -> None:
        objective = OBJECTIVES[name](replace(CONFIG, strategy="crop_flip"))
        losses, gradient = objective.gradient(BATCH, group=1, step=3)
        alone = Batch(BATCH.latents[1:2], BATCH.sources[1:2], BATCH.classes[1:2])
        loss, own_gradient = objective.gradient(alone, group=1, step=3)
        torch.testing.assert_close(loss, losses[1:2], rtol=1e-9, atol=0)
        torch.testing.assert_close(own_gradient, gradient[1:2], rtol=1e-9, atol=1e-12)

    def test_nothing_is_copied_to_the_host(self, name: str) -> None:
        """Tensors on PyTorch's meta device have no content: reading one on the host is an error."""
        objective = OBJECTIVES[name](replace(CONFIG, chunk_size=3))
        matching, network = objective.matching, objective.matching.networks.network
        matching.augment = matching.augment.augment  # does not keep what it sees
        for module in (matching.generate, network):
            module.float().to("meta")
        for state in matching.networks.pool.states:
            state.update(network.state_dict())
        matching.real_images.images = IMAGES.images.to("meta")
        matching.device = torch.device("meta")
        remote = Batch(BATCH.latents.float().to("meta"), BATCH.sources, BATCH.classes)
        objective = type(objective)(matching, network.embed if name == "distribution" else network)
        for step in range(8):  # several augmentations
            losses, gradient = objective.gradient(remote, group=0, step=step)
            assert losses.device.type == gradient.device.type == "meta"


@pytest.mark.parametrize("chunk_size", [1, 2, 3, COUNT, 9], ids=lambda size: f"chunks of {size}")
@pytest.mark.parametrize("strategy", ["", CONFIG.strategy], ids=["plain", "DSA"])
@pytest.mark.parametrize(("name", "weight"), [("distribution", 0.0), ("distribution", 0.3), ("gradient", 0.0)])
def test_chunks_have_the_gradient_of_the_whole(name: str, chunk_size: int, strategy: str, weight: float) -> None:
    config = replace(CONFIG, strategy=strategy, regularizer_weight=weight)
    losses, gradient = OBJECTIVES[name](config).gradient(BATCH, group=0, step=2)
    chunked = replace(config, chunk_size=chunk_size)
    objective = OBJECTIVES[name](chunked)
    sizes = []
    objective.matching.generate.register_forward_hook(lambda module, inputs, images: sizes.append(len(images)))
    found, found_gradient = objective.gradient(BATCH, group=0, step=2)
    assert max(sizes) <= chunk_size * (1 if name == "gradient" else 3)
    torch.testing.assert_close(found, losses, rtol=1e-9, atol=0)
    assert (found_gradient - gradient).abs().max() < 1e-9 * gradient.abs().max()

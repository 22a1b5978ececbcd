"""The gradients of both objectives, at once and in chunks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from itgan_data.augmentation import DSA, Augmentation
from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.network_source import FreshNetworks, PoolSource
from itgan_data.condense.objective import Batch, DistributionObjective, GradientObjective, Matching
from itgan_data.condense.pool import EmbeddingPool
from itgan_data.images import LabeledImages, Normalization, signed_to_unit, uint8_to_unit, unit_to_uint8
from itgan_data.networks import create_network

NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
CONFIG = CondenserConfig(real_batch_size=5, normalization=NORMALIZATION)
COUNT = 4  # latents a class


class Recorded:
    """An augmentation that keeps what it was called with."""

    def __init__(self, augment: Augmentation) -> None:
        self.augment = augment
        self.num_draws = augment.num_draws
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        self.calls.append((images.detach().clone(), draws))
        return self.augment(images, draws)


@pytest.fixture
def batch(tiny_images: LabeledImages) -> Batch:
    """Four latents a class, each with a real image of its class."""
    sources = torch.stack([(tiny_images.labels == label).nonzero().squeeze(1)[:COUNT] for label in range(3)])
    latents = torch.randn(3, COUNT, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batch(latents, sources, torch.arange(3))


def make_matching(generator: nn.Module, images: LabeledImages, config: CondenserConfig) -> Matching:
    """In float64, on one of two untrained networks."""
    generator.double().requires_grad_(False)
    states = []
    for seed in range(2):
        rng = torch.Generator().manual_seed(seed)
        network = create_network("convnet", 3, image_shape=(3, 8, 8), width=8, rng=rng).double()
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
    networks = PoolSource(EmbeddingPool(network, states, [0.5, 0.5]), seed=0)
    by_class = [(images.labels == label).nonzero().squeeze(1) for label in range(3)]
    matching = Matching(generator, networks, images, by_class, config)
    matching.augment = Recorded(matching.augment)
    return matching


def distribution(generator: nn.Module, images: LabeledImages, config: CondenserConfig) -> DistributionObjective:
    matching = make_matching(generator, images, config)
    return DistributionObjective(matching, lambda images: matching.networks.network.embed(images.double()))


def gradient_matching(generator: nn.Module, images: LabeledImages, config: CondenserConfig) -> GradientObjective:
    matching = make_matching(generator, images, config)
    return GradientObjective(matching, lambda images: matching.networks.network(images.double()))


OBJECTIVES = {"distribution": distribution, "gradient": gradient_matching}


class TestDistribution:
    @pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("step", range(4))
    def test_all_classes_at_once_equal_the_loop_over_classes(
        self, tiny_generator: nn.Module, tiny_images: LabeledImages, batch: Batch, weight: float, step: int
    ) -> None:
        objective = distribution(tiny_generator, tiny_images, replace(CONFIG, regularizer_weight=weight))
        losses, gradient = objective.gradient(batch, group=0, step=step)
        (real, rows), *_ = objective.matching.augment.calls
        latents = batch.latents.clone().requires_grad_(True)
        for label in range(3):

            def embed(images: torch.Tensor, label: int = label) -> torch.Tensor:
                return objective.embed(DSA()(images, rows[5 * label].expand(len(images), -1)))

            unit = signed_to_unit(tiny_generator(latents[label], torch.full((COUNT,), label)))
            synthetic = embed(NORMALIZATION.standardize(unit))
            paired = embed(NORMALIZATION.standardize(uint8_to_unit(tiny_images.images[batch.sources[label]])))
            matching = (embed(real[5 * label : 5 * label + 5]).mean(0) - synthetic.mean(0)).square().sum()
            regularizer = (paired - synthetic).square().sum(dim=1).mean()
            expected = (1 - weight) * matching + weight * regularizer
            torch.testing.assert_close(losses[label], expected.detach(), rtol=1e-5, atol=0)
            (expected_gradient,) = torch.autograd.grad(expected, latents)
            assert (gradient - expected_gradient)[label].abs().max() < 1e-5 * expected_gradient.abs().max()

    def test_a_class_shares_its_augmentation_and_no_other_has_it(
        self, tiny_generator: nn.Module, tiny_images: LabeledImages, batch: Batch
    ) -> None:
        objective = distribution(tiny_generator, tiny_images, replace(CONFIG, regularizer_weight=0.5))
        objective.gradient(batch, group=0, step=0)
        augment = objective.matching.augment
        real, synthetic, paired = (draws.view(3, -1, augment.num_draws) for _, draws in augment.calls)
        for draws in (real, synthetic, paired):
            assert torch.equal(draws, real[:, :1].expand_as(draws))
        assert len(real[:, 0].unique(dim=0)) == 3

    def test_gradients_reach_the_latents_only_in_one_pass(
        self, tiny_generator: nn.Module, tiny_images: LabeledImages, batch: Batch
    ) -> None:
        objective = distribution(tiny_generator, tiny_images, CONFIG)
        passes = []
        tiny_generator.register_forward_hook(lambda module, inputs, images: passes.append(len(images)))
        losses, gradient = objective.gradient(batch, group=0, step=0)
        assert passes == [12]
        assert not losses.requires_grad
        assert (gradient != 0).any(dim=2).all()
        for module in (tiny_generator, objective.matching.networks.network):
            assert not [parameter for parameter in module.parameters() if parameter.grad is not None]

    @pytest.mark.parametrize("chunk_size", [None, 3], ids=["whole", "in chunks"])
    @pytest.mark.parametrize("images_at_once", [1, 2, 5, 8])
    def test_no_pass_holds_more_images_than_asked_for_and_the_gradient_is_that_of_one_pass(
        self,
        tiny_generator: nn.Module,
        tiny_images: LabeledImages,
        batch: Batch,
        images_at_once: int,
        chunk_size: int | None,
    ) -> None:
        config = replace(CONFIG, regularizer_weight=0.3, chunk_size=chunk_size)
        objective = distribution(tiny_generator, tiny_images, config)
        losses, gradient = objective.gradient(batch, group=0, step=1)
        objective.matching.images_at_once = images_at_once
        objective.matching.augment.calls.clear()
        found, found_gradient = objective.gradient(batch, group=0, step=1)
        assert max(len(images) for images, _ in objective.matching.augment.calls) <= images_at_once
        torch.testing.assert_close(found, losses, rtol=1e-9, atol=0)
        assert (found_gradient - gradient).abs().max() < 1e-9 * gradient.abs().max()

    def test_only_batch_norm_needs_all_images_in_one_pass(self, tiny_images: LabeledImages) -> None:
        large = replace(CONFIG, real_batch_size=10**6)
        for norm, passes in (("instance", 3), ("batch", 1)):
            config = replace(large, networks=FreshNetworks(norm=norm))
            matching = Matching(nn.Identity(), None, tiny_images, [], config)  # type: ignore[arg-type]
            assert len(matching.blocks(3, config.real_batch_size)) == passes


class TestGradient:
    @pytest.mark.parametrize("strategy", ["", CONFIG.strategy])
    def test_equals_a_plain_computation(
        self, tiny_generator: nn.Module, tiny_images: LabeledImages, batch: Batch, strategy: str
    ) -> None:
        """Gradients by `backward`, published cosines one output unit at a time, derivatives by finite differences."""
        objective = gradient_matching(tiny_generator, tiny_images, replace(CONFIG, strategy=strategy))
        losses, gradient = objective.gradient(batch, group=0, step=1)
        network, augment = objective.matching.networks.network, objective.matching.augment
        real = [call for call in augment.calls if len(call[0]) == 5]

        def distance(latents: torch.Tensor, label: int) -> float:
            images, rows = real[label]
            unit = signed_to_unit(tiny_generator(latents, torch.full((len(latents),), label)))
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
            assert float(losses[label]) == pytest.approx(distance(batch.latents[label], label), rel=1e-6)
            shift = torch.zeros_like(batch.latents[label])
            shift[1, 2] = 1e-4
            ahead, behind = (distance(batch.latents[label] + sign * shift, label) for sign in (1, -1))
            assert float(gradient[label, 1, 2]) == pytest.approx((ahead - behind) / 2e-4, rel=1e-4, abs=1e-6)

    def test_is_smallest_for_the_real_images_themselves(
        self, tiny_generator: nn.Module, tiny_images: LabeledImages, batch: Batch
    ) -> None:
        """With no more real images than latents, made by the generator, and no augmentation."""
        objective = gradient_matching(tiny_generator, tiny_images, replace(CONFIG, strategy="", real_batch_size=1))
        matching = objective.matching
        one = Batch(batch.latents[:, :1], batch.sources[:, :1], batch.classes)
        shown = tiny_generator(one.latents.flatten(0, 1), one.labels)
        matching.real = lambda places, uniforms: NORMALIZATION.standardize(  # type: ignore[method-assign]
            signed_to_unit(shown[[int(tiny_images.labels[places[0, 0]])]])
        )
        losses, _ = objective.gradient(one, group=0, step=0)
        assert (losses < 0.1).all()  # not zero: the published formula adds 1e-6 to the lengths
        others = Batch(-one.latents, one.sources, one.classes)
        assert (objective.gradient(others, group=0, step=0)[0] > 1).all()


@pytest.mark.parametrize("name", OBJECTIVES)
class TestBoth:
    def test_real_images_are_of_their_class_and_new_every_step_and_group(
        self, tiny_generator: nn.Module, tiny_images: LabeledImages, batch: Batch, name: str
    ) -> None:
        known = {image.numpy().tobytes(): place for place, image in enumerate(tiny_images.images)}
        objective = OBJECTIVES[name](tiny_generator, tiny_images, CONFIG)
        calls = objective.matching.augment.calls
        seen = []
        for group, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
            calls.clear()
            objective.gradient(batch, group=group, step=step)
            real = [(images, draws) for images, draws in calls if len(images) % 5 == 0]
            shown = unit_to_uint8(NORMALIZATION.to_unit(torch.cat([images for images, _ in real])))
            places = torch.tensor([known[image.contiguous().numpy().tobytes()] for image in shown])
            assert torch.equal(tiny_images.labels[places], torch.arange(3).repeat_interleave(5))
            seen.append((places.tolist(), [draws.tolist() for _, draws in real]))
        assert seen[3] == seen[0]
        for drawn in zip(*seen[:3], strict=True):
            assert all(drawn[one] != drawn[other] for one, other in ((0, 1), (0, 2), (1, 2)))

    def test_a_class_is_learned_alike_whatever_is_learned_beside_it(
        self, tiny_generator: nn.Module, tiny_images: LabeledImages, batch: Batch, name: str
    ) -> None:
        objective = OBJECTIVES[name](tiny_generator, tiny_images, replace(CONFIG, strategy="crop_flip"))
        losses, gradient = objective.gradient(batch, group=1, step=3)
        alone = Batch(batch.latents[1:2], batch.sources[1:2], batch.classes[1:2])
        loss, own_gradient = objective.gradient(alone, group=1, step=3)
        torch.testing.assert_close(loss, losses[1:2], rtol=1e-9, atol=0)
        torch.testing.assert_close(own_gradient, gradient[1:2], rtol=1e-9, atol=1e-12)

    def test_nothing_is_copied_to_the_host(
        self, tiny_generator: nn.Module, tiny_images: LabeledImages, batch: Batch, name: str
    ) -> None:
        """Tensors on PyTorch's meta device have no content: reading one on the host is an error."""
        objective = OBJECTIVES[name](tiny_generator, tiny_images, replace(CONFIG, chunk_size=3))
        matching, network = objective.matching, objective.matching.networks.network
        matching.augment = matching.augment.augment  # does not keep what it sees
        for module in (tiny_generator, network):
            module.float().to("meta")
        for state in matching.networks.pool.states:
            state.update(network.state_dict())
        tiny_images.images = tiny_images.images.to("meta")
        matching.device = tiny_images.images.device
        remote = Batch(batch.latents.float().to("meta"), batch.sources, batch.classes)
        objective = type(objective)(matching, network.embed if name == "distribution" else network)
        for step in range(8):  # several augmentations
            losses, gradient = objective.gradient(remote, group=0, step=step)
            assert losses.device.type == gradient.device.type == "meta"


@pytest.mark.parametrize("chunk_size", [1, 2, 3, COUNT, 9], ids=lambda size: f"chunks of {size}")
@pytest.mark.parametrize("strategy", ["", CONFIG.strategy], ids=["plain", "DSA"])
@pytest.mark.parametrize(("name", "weight"), [("distribution", 0.0), ("distribution", 0.3), ("gradient", 0.0)])
def test_chunks_have_the_gradient_of_the_whole(
    tiny_generator: nn.Module,
    tiny_images: LabeledImages,
    batch: Batch,
    name: str,
    chunk_size: int,
    strategy: str,
    weight: float,
) -> None:
    config = replace(CONFIG, strategy=strategy, regularizer_weight=weight)
    losses, gradient = OBJECTIVES[name](tiny_generator, tiny_images, config).gradient(batch, group=0, step=2)
    chunked = replace(config, chunk_size=chunk_size)
    objective = OBJECTIVES[name](tiny_generator, tiny_images, chunked)
    sizes = []
    tiny_generator.register_forward_hook(lambda module, inputs, images: sizes.append(len(images)))
    found, found_gradient = objective.gradient(batch, group=0, step=2)
    assert max(sizes) <= chunk_size * (1 if name == "gradient" else 3)
    torch.testing.assert_close(found, losses, rtol=1e-9, atol=0)
    assert (found_gradient - gradient).abs().max() < 1e-9 * gradient.abs().max()

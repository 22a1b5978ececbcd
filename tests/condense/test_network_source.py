"""Fresh networks: what is drawn, what is trained along, what is kept."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from itgan_data.augmentation import DSA, Augmentation, Compose
from itgan_data.condense.network_source import FreshNetworks, FreshSource

ALONG = FreshNetworks(momentum=0.5, width=8, outer_steps=4, inner_epochs=2, lr=0.1, batch_size=5)
LABELS = torch.arange(12) % 3
PATTERNS = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
IMAGES = 0.3 * torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + PATTERNS[LABELS]


def make_source(config: FreshNetworks = ALONG, augment: Augmentation | None = None, seed: int = 0) -> FreshSource:
    return FreshSource(config, 3, (3, 8, 8), augment=augment or Compose(), seed=seed, device=torch.device("cpu"))


def synthetic() -> tuple[torch.Tensor, torch.Tensor]:
    return IMAGES, LABELS


def weights(source: FreshSource) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in source.network.parameters()])


def steps(source: FreshSource, first: int, last: int) -> torch.Tensor:
    for step in range(first, last):
        source.load(0, step)
        source.train_along(synthetic, 0, step)
    return weights(source)


def test_another_network_for_every_step_and_group_but_the_same_again(global_rng_untouched: None) -> None:
    source, seen = make_source(FreshNetworks(width=8)), []
    for group, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        source.load(group, step)
        seen.append(weights(source))
        assert source.state(step + 1) == {}
    assert torch.equal(seen[0], seen[3])
    assert len(torch.stack(seen).unique(dim=0)) == 3


def test_a_network_learns_the_synthetic_images_until_the_next_is_drawn() -> None:
    source = make_source(replace(ALONG, outer_steps=9, inner_epochs=8))
    source.load(0, 0)
    with torch.no_grad():
        before = F.cross_entropy(source.network(IMAGES), LABELS)
    steps(source, 0, 8)
    with torch.no_grad():
        assert F.cross_entropy(source.network(IMAGES), LABELS) < 0.5 * before
    kept = weights(source)
    source.load(0, 8)
    source.train_along(synthetic, 0, 8)  # the last step of this network: nobody would see it trained
    assert torch.equal(weights(source), kept)
    source.load(0, 9)
    assert not torch.equal(weights(source), kept)


def test_training_is_that_of_pytorchs_sgd() -> None:
    """One batch an epoch, so that the order does not matter."""
    source = make_source(replace(ALONG, batch_size=12))
    source.load(0, 0)
    reference = make_source()
    reference.load(0, 0)
    network = reference.network.requires_grad_(True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.5)
    for _ in range(3 * 2):
        optimizer.zero_grad()
        F.cross_entropy(network(IMAGES), LABELS).backward()
        optimizer.step()
    torch.testing.assert_close(steps(source, 0, 3), weights(reference), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("augment", [Compose(), DSA("color_crop_flip")])
@pytest.mark.parametrize("stop", range(1, 7))
def test_what_is_kept_of_a_network_is_enough_to_go_on(augment: Augmentation, stop: int) -> None:
    whole = steps(make_source(augment=augment), 0, 7)
    first = make_source(augment=augment)
    steps(first, 0, stop)
    state = {name: tensor.clone() for name, tensor in first.state(stop).items()}
    assert (state == {}) == (stop % ALONG.outer_steps == 0)
    second = make_source(augment=augment)
    second.restore(state)
    assert torch.equal(steps(second, stop, 7), whole)


def test_batch_norm_takes_its_statistics_from_the_batch() -> None:
    source = make_source(FreshNetworks(width=8, norm="batch"))
    source.load(0, 0)
    together = source.network.embed(IMAGES)
    assert (together - torch.cat([source.network.embed(part) for part in IMAGES.split(6)])).abs().max() > 1e-2
    unlike = make_source(FreshNetworks(width=8))
    unlike.load(0, 0)
    parts = torch.cat([unlike.network.embed(part) for part in IMAGES.split(6)])
    torch.testing.assert_close(unlike.network.embed(IMAGES), parts)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"network must be 'convnet', .* or 'mobilenet_v2', got 'resnet81'"):
        FreshNetworks(network="resnet81")
    with pytest.raises(ValueError, match="inner_epochs train a network between its outer_steps; raise outer_steps"):
        replace(ALONG, outer_steps=1)

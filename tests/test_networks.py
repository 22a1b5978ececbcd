from pathlib import Path

import pytest
import torch

from itgan_data.networks import NETWORKS, create_network
from itgan_data.storage.files import load_tensors


def images(count: int = 2, side: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_the_linear_layer_of_the_embedding(name: str, global_rng_untouched: None) -> None:
    network = create_network(name, 7).eval()
    with torch.no_grad():
        embedding = network.embed(images())
        assert embedding.shape == (2, network.classifier.in_features)
        assert network(images()).shape == (2, network.num_classes) == (2, 7)
        assert torch.equal(network(images()), network.classifier(embedding))


def test_convnet_reproduces_the_published_one(fixture_folder: Path) -> None:
    reference = load_tensors(fixture_folder / "dsa_convnet.safetensors")
    network = create_network("convnet", 10, width=16)
    prefix = "convnet.sd."
    network.load_state_dict({k.removeprefix(prefix): v for k, v in reference.items() if k.startswith(prefix)})
    with torch.no_grad():
        torch.testing.assert_close(network.embed(reference["x"]), reference["convnet.embed"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(network(reference["x"]), reference["convnet.logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet18", 11.17), ("vgg19", 20.04), ("wrn16_8", 10.96), ("mobilenet_v2", 2.24)]
)
def test_sizes_are_those_of_the_literature(name: str, millions: float) -> None:
    parameters = sum(parameter.numel() for parameter in create_network(name, 10).parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.01)


def test_an_image_does_not_depend_on_its_batch_under_instance_norm() -> None:
    network = create_network("convnet", 10, width=8)
    together = network(images(4))
    apart = torch.cat([network(image) for image in images(4).split(1)])
    torch.testing.assert_close(together, apart)


def test_weights_follow_the_rng_and_nothing_else(global_rng_untouched: None) -> None:
    def weight(seed: int) -> torch.Tensor:
        network = create_network("convnet", 10, width=8, rng=torch.Generator().manual_seed(seed))
        return network.classifier.weight.detach()

    assert torch.equal(weight(3), weight(3))
    assert not torch.equal(weight(3), weight(4))


def test_one_rng_gives_a_pool_of_different_networks() -> None:
    rng = torch.Generator().manual_seed(0)
    first, second = (create_network("convnet", 10, width=8, rng=rng) for _ in range(2))
    assert not torch.equal(first.classifier.weight, second.classifier.weight)


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_convnet_takes_other_shapes_and_norms(norm: str) -> None:
    network = create_network("convnet", 3, image_shape=(1, 28, 20), width=4, depth=2, norm=norm)
    assert network(torch.zeros(2, 1, 28, 20)).shape == (2, 3)
    assert network.classifier.in_features == 4 * 7 * 5


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown network 'resnet81'; expected one of convnet, resnet18, vgg19"):
        create_network("resnet81", 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "unknown norm 'layer'; expected one of instance, batch, none"),
        ({"depth": 6}, "images of 64 px for depth 6"),
        ({"width": 0}, "got width 0"),
    ],
)
def test_bad_convnet_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_network("convnet", 10, **options)


def test_options_without_effect_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="resnet18 ignores them"):
        create_network("resnet18", 10, width=64)

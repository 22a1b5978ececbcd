"""Generators that other implementations released, as ours."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from itgan_data.bundle.writing import load_bundle, save_bundle
from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.generators.frozen import fold
from itgan_data.generators.importers import import_generator, import_training_form
from itgan_data.generators.store import load_generator, save_generator
from itgan_data.latents.stored import LatentSet
from itgan_data.storage.files import load_tensors

SMALL = (32, 32, 32, 32)
RELEASED = {
    "biggan_itgan_cifar10": BigGANConfig(channels=SMALL),
    "biggan_shared_hier_attn": BigGANConfig(
        channels=SMALL, latent_dim=80, shared_dim=32, hierarchical=True, attention_size=16
    ),
    "studiogan_big_resnet": BigGANConfig(
        channels=SMALL,
        latent_dim=80,
        shared_dim=128,
        hierarchical=True,
        attention_size=16,
        bn_eps=1e-4,
        spectral_norm=False,
    ),
    "mimicry_cgan_pd": BigGANConfig(channels=SMALL, upsampling="bilinear", spectral_norm=False),
}
WRAPPERS = {"studiogan_big_resnet": "state_dict", "mimicry_cgan_pd": "model_state_dict"}
each_released = pytest.mark.parametrize("name", RELEASED)


@pytest.fixture
def checkpoint(name: str, fixture_folder: Path) -> Path:
    """One that the original implementation wrote, of few channels."""
    return fixture_folder / f"{name}.pth"


@pytest.fixture
def reference(name: str, fixture_folder: Path) -> dict[str, torch.Tensor]:
    """Latents and labels, and the images that the original implementation makes of them."""
    return load_tensors(fixture_folder / f"{name}.io.safetensors")


def rewritten(checkpoint: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """The same checkpoint with tensors replaced, or removed."""
    content = torch.load(checkpoint, weights_only=True)
    wrapper = WRAPPERS.get(checkpoint.stem)
    state = content[wrapper] if wrapper else content
    state = {name: value for name, value in (state | changes).items() if value is not None}
    torch.save({wrapper: state} if wrapper else state, folder / "changed.pth")
    return folder / "changed.pth"


@each_released
class TestReleased:
    @pytest.mark.parametrize("read", [import_generator, import_training_form])
    def test_the_reference_images_are_reproduced(
        self, read: Any, checkpoint: Path, reference: dict[str, torch.Tensor], global_rng_untouched: None
    ) -> None:
        generator = read(checkpoint)
        assert not generator.training
        with torch.no_grad():
            images = generator(reference["latents"], reference["labels"])
        torch.testing.assert_close(images, reference["images"], rtol=0, atol=1e-5)

    def test_sizes_are_read_off_the_shapes(self, name: str, checkpoint: Path) -> None:
        assert import_generator(checkpoint).config == import_training_form(checkpoint).config == RELEASED[name]

    def test_labels_and_latents_change_the_images(self, checkpoint: Path, reference: dict[str, torch.Tensor]) -> None:
        generator, latents, labels = import_generator(checkpoint), reference["latents"], reference["labels"]
        for other in (generator(latents, (labels + 1) % 10), generator(latents.roll(1, dims=0), labels)):
            assert (other - reference["images"]).abs().amax(dim=(1, 2, 3)).min() > 0.01

    def test_gradients_reach_the_latents(self, checkpoint: Path, reference: dict[str, torch.Tensor]) -> None:
        latents = reference["latents"].requires_grad_(True)
        import_generator(checkpoint)(latents, reference["labels"]).square().sum().backward()
        assert latents.grad is not None
        assert (latents.grad != 0).all()

    def test_it_survives_being_saved(
        self, checkpoint: Path, reference: dict[str, torch.Tensor], tmp_path: Path
    ) -> None:
        generator = import_generator(checkpoint)
        save_generator(tmp_path, generator)
        loaded = load_generator(tmp_path)
        images = loaded(reference["latents"], reference["labels"])
        assert torch.equal(images, generator(reference["latents"], reference["labels"]))

    def test_it_goes_into_a_bundle(self, checkpoint: Path, reference: dict[str, torch.Tensor], tmp_path: Path) -> None:
        config = {
            "dataset": "toy",
            "class_names": [str(label) for label in range(10)],
            "normalization": {"mean": [0.5] * 3, "std": [0.2] * 3},
            "method": "imported",
            "training": {},
            "metrics": {},
        }
        latents = LatentSet(reference["latents"], reference["labels"])
        save_bundle(tmp_path, import_generator(checkpoint), latents, config=config, preview=False)
        images = load_bundle(tmp_path).generator(reference["latents"], reference["labels"])
        torch.testing.assert_close(images, reference["images"], rtol=0, atol=0.02)  # stored in float16


TO_BIGGAN_PYTORCH = (
    (r"^blocks\.(\d+)\.attention\.strength$", r"blocks.\1.1.gamma"),
    (r"^blocks\.(\d+)\.attention\.query", r"blocks.\1.1.theta"),
    (r"^blocks\.(\d+)\.attention\.key", r"blocks.\1.1.phi"),
    (r"^blocks\.(\d+)\.attention\.value", r"blocks.\1.1.g"),
    (r"^blocks\.(\d+)\.attention\.output", r"blocks.\1.1.o"),
    (r"^blocks\.(\d+)\.(?!1\.)", r"blocks.\1.0."),
    (r"(\.bn\d\.)(gain|bias)$", r"\1\2.weight"),
    (r"^shared$", "shared.weight"),
    (r"\.shortcut\.", ".conv_sc."),
    (r"^output\.(gain|bias)$", r"output_layer.0.\1"),
    (r"^output\.bn\.", "output_layer.0."),
    (r"^output\.conv\.", "output_layer.2."),
    (r"\.running_", ".stored_"),
    (r"\.u$", ".u0"),
)


@pytest.mark.parametrize(
    "options",
    [
        {"shared_dim": 6},
        {"shared_dim": 6, "hierarchical": True, "latent_dim": 15, "channels": (12, 8, 16, 8, 4), "attention_size": 32},
        {"num_classes": 3, "channels": (8, 8, 4, 8, 4, 4)},
    ],
    ids=["shared 32 px", "hierarchical 64 px", "tables 128 px"],
)
def test_other_sizes_of_the_biggan_pytorch_family(options: dict[str, Any], tmp_path: Path) -> None:
    """No checkpoint of the original implementation has them here, so ours is written under its names."""
    generator = BigGAN(BigGANConfig(**{"latent_dim": 8, "channels": (8, 8, 8, 8), **options})).eval()
    rng = torch.Generator().manual_seed(1)
    state = {}
    for name, tensor in generator.state_dict().items():
        tensor += 0.2 * torch.rand(tensor.shape, generator=rng) - (0 if name.endswith("running_var") else 0.1)
        for pattern, replacement in TO_BIGGAN_PYTORCH:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    torch.save(state, tmp_path / "G_ema.pth")
    imported = import_generator(tmp_path / "G_ema.pth")
    assert imported.config == generator.config
    latents, labels = torch.randn(6, generator.latent_dim, generator=rng), torch.arange(6) % generator.num_classes
    assert torch.equal(imported(latents, labels), fold(generator)(latents, labels))


@pytest.mark.parametrize("name", ["biggan_itgan_cifar10", "mimicry_cgan_pd"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {"G": {f"module._orig_mod.{key}": value for key, value in state.items()}, "step": 3},
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
        lambda state: {re.sub(r"^(block.?\d)", r"\1._orig_mod", key): value for key, value in state.items()},
        lambda state: {"G": {key: value + 1 for key, value in state.items()}, "G_ema": state, "D": {"a": state}},
    ],
    ids=[
        "DataParallel",
        "compiled",
        "compiled, then parallel",
        "parallel, then compiled",
        "compiled blocks",
        "average",
    ],
)
def test_a_checkpoint_is_found_in_its_wrapping(
    wrap: Any, checkpoint: Path, reference: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save(wrap(content.get(WRAPPERS.get(checkpoint.stem), content)), tmp_path / "file.pth")
    images = import_generator(tmp_path / "file.pth")(reference["latents"], reference["labels"])
    torch.testing.assert_close(images, reference["images"], rtol=0, atol=1e-5)


class TestRefused:
    def test_several_generators_are_not_chosen_from(self, fixture_folder: Path, tmp_path: Path) -> None:
        state = torch.load(fixture_folder / "biggan_itgan_cifar10.pth", weights_only=True)
        torch.save({"first": state, "second": state}, tmp_path / "file.pth")
        with pytest.raises(ValueError, match=r"holds several generators \(first, second\); save one of them alone"):
            import_generator(tmp_path / "file.pth")

    def test_an_unknown_family(self, tmp_path: Path) -> None:
        torch.save({"mapping.fc0.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
        with pytest.raises(
            ValueError, match=r"unknown family \(first keys \['mapping.*'\]\); expected IT-GAN"
        ) as caught:
            import_generator(tmp_path / "other.pth")
        assert all(family in str(caught.value) for family in ("BigGAN-PyTorch", "StudioGAN big_resnet", "mimicry"))

    def test_a_wrapper_around_something_else(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {"a": torch.zeros(1)}, "step": 3}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"unknown family \(first keys \['a'\]\)"):
            import_generator(tmp_path / "other.pth")

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("biggan_itgan_cifar10", {"blocks.1.0.conv1.weight": None}),
            ("biggan_itgan_cifar10", {"blocks.1.0.mystery.weight": torch.zeros(3)}),
            ("biggan_itgan_cifar10", {"output_layer.2.bias": torch.zeros(7)}),
            ("biggan_itgan_cifar10", {"blocks.0.0.conv1.weight": torch.zeros(3)}),
            ("biggan_itgan_cifar10", {"linear.weight": "text"}),
            ("biggan_itgan_cifar10", {"linear.bias": torch.zeros(512, dtype=torch.int64)}),
            ("biggan_shared_hier_attn", {"blocks.1.1.theta.weight": None}),
            ("biggan_shared_hier_attn", {"shared.weight": torch.zeros(10, 31)}),
            ("biggan_shared_hier_attn", {"blocks.0.1.gamma": torch.zeros(())}),
            ("studiogan_big_resnet", {"linear0.weight_u": None}),
            ("studiogan_big_resnet", {"linear0.weight_u": torch.zeros(9, 512)}),
            ("studiogan_big_resnet", {"blocks.2.0.sigma": torch.zeros(2)}),
            ("mimicry_cgan_pd", {"block2.b1.embed.weight": torch.zeros(10, 63)}),
            ("mimicry_cgan_pd", {"block4.c_sc.weight": None}),
        ],
    )
    def test_tensors_that_do_not_fit_in_one_line(
        self, name: str, changes: dict[str, Any], checkpoint: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=r"changed\.pth does not fit a BigGAN of") as caught:
            import_generator(rewritten(checkpoint, tmp_path, changes))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "missing", "named"),
        [
            ("biggan_itgan_cifar10", "blocks.1.0.conv1.weight", "it has no 'blocks.1.conv1.weight'"),
            ("studiogan_big_resnet", "blocks.0.0.bn1.gain.weight_orig", "blocks.0.bn1.gain.weight"),
            ("mimicry_cgan_pd", "block3.c2.bias", 'Missing key(s) in state_dict: "blocks.1.conv2.bias"'),
        ],
    )
    def test_a_key_that_is_missing_is_named(self, checkpoint: Path, tmp_path: Path, missing: str, named: str) -> None:
        with pytest.raises(ValueError, match=re.escape(named)):
            import_generator(rewritten(checkpoint, tmp_path, {missing: None}))

    @pytest.mark.parametrize("name", ["mimicry_cgan_pd"])
    def test_one_that_makes_black_images_only(self, checkpoint: Path, tmp_path: Path) -> None:
        black = {"c5.weight": torch.zeros(3, 32, 3, 3), "c5.bias": torch.full((3,), -20.0)}
        with pytest.raises(ValueError, match=r"changed\.pth is of no use: .* the same image whatever"):
            import_generator(rewritten(checkpoint, tmp_path, black))

    @pytest.mark.parametrize(
        ("name", "mark"),
        [
            ("biggan_itgan_cifar10", "linear.weight"),
            ("biggan_itgan_cifar10", "linear.u0"),
            ("biggan_itgan_cifar10", "blocks.0.0.bn1.gain.weight"),
            ("studiogan_big_resnet", "bn4.weight"),
            ("mimicry_cgan_pd", "block2.c1.weight"),
        ],
    )
    def test_a_checkpoint_without_the_marks_of_its_family(self, mark: str, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="unknown family"):
            import_generator(rewritten(checkpoint, tmp_path, {mark: None}))

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("mimicry_cgan_pd", {"c5.bias": torch.full((3,), torch.nan)}),
            ("mimicry_cgan_pd", {"b5.running_var": torch.full((32,), -1.0)}),
        ],
    )
    def test_weights_that_are_not_finite(
        self, changes: dict[str, torch.Tensor], checkpoint: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="holds weights that are not finite"):
            import_generator(rewritten(checkpoint, tmp_path, changes))

    def test_sizes_of_which_the_file_has_nothing(self, fixture_folder: Path, tmp_path: Path) -> None:
        changes = {"blocks.0.0.conv1.weight": torch.zeros(60_000, 60_000, 0, 3)}
        with pytest.raises(ValueError, match="does not fit a BigGAN"):
            import_generator(rewritten(fixture_folder / "biggan_itgan_cifar10.pth", tmp_path, changes))

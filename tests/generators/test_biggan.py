"""The training form of BigGAN and the frozen one that is folded from it."""

import copy
import functools
import itertools
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from itgan_data.bundle.writing import load_bundle, save_bundle
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.generators.biggan import BigGAN, BigGANConfig, SelfAttention
from itgan_data.generators.frozen import FrozenBigGAN, fold
from itgan_data.generators.frozen_layers import NearestConv2d
from itgan_data.generators.spectral import SpectralConv2d
from itgan_data.generators.store import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    build_generator,
    describe_generator,
    load_generator,
    save_generator,
)
from itgan_data.latents.stored import LatentSet
from itgan_data.storage.files import load_tensors, read_json, save_tensors, sha256_of, write_json

CONFIG = BigGANConfig(num_classes=3, latent_dim=9, channels=(12, 16, 8))
CONDITIONS = {"tables": {}, "shared": {"shared_dim": 5}, "hierarchical": {"shared_dim": 5, "hierarchical": True}}
VARIANTS = {
    f"{name}-{side}-{upsampling}-{'spectral' if spectral else 'plain'}": replace(
        CONFIG, **condition, attention_size=side, upsampling=upsampling, spectral_norm=spectral
    )
    for (name, condition), side, upsampling, spectral in itertools.product(
        CONDITIONS.items(), (0, 8), ("nearest", "bilinear"), (True, False)
    )
}
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
LABELS = torch.arange(9) % 3
BUNDLE_CONFIG = {
    "dataset": "toy",
    "class_names": ["a", "b", "c"],
    "normalization": {"mean": [0.5] * 3, "std": [0.2] * 3},
    "method": "IT-GAN",
    "training": {},
    "metrics": {},
}


def make_latents(count: int = 9, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, CONFIG.latent_dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def trained_generator(dtype: torch.dtype = torch.float32, config: BigGANConfig = CONFIG) -> BigGAN:
    """One whose batch statistics, singular vectors and class tables are far from where they began."""
    return copy.deepcopy(_trained_generator(dtype, config))


@functools.cache
def _trained_generator(dtype: torch.dtype, config: BigGANConfig) -> BigGAN:
    generator = BigGAN(config).to(dtype)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=rng, dtype=dtype)
        for seed in range(20):
            generator(make_latents(seed=seed, dtype=dtype), LABELS)
    return generator.eval()


@pytest.fixture
def generator() -> BigGAN:
    return trained_generator()


@pytest.fixture
def frozen(generator: BigGAN) -> FrozenBigGAN:
    return fold(generator)


class TestConfig:
    def test_the_default_is_the_references_generator(self) -> None:
        generator = BigGAN(BigGANConfig())
        assert sum(parameter.numel() for parameter in generator.parameters()) == 4_304_387
        assert generator.image_shape == (3, 32, 32)

    @pytest.mark.parametrize(("channels", "side"), [((8, 8), 8), ((8, 8, 8), 16), ((4, 8, 4, 8, 4), 64)])
    def test_every_block_doubles_the_side(self, channels: tuple[int, ...], side: int) -> None:
        generator = BigGAN(BigGANConfig(channels=channels, latent_dim=4)).eval()
        images = generator(torch.randn(2, 4), torch.tensor([0, 9]))
        assert images.shape == (2, *generator.image_shape) == (2, 3, side, side)

    def test_json_gives_it_back(self) -> None:
        description = json.loads(json.dumps(describe_generator(fold(BigGAN(CONFIG)))))
        assert BigGANConfig(**description["arguments"]) == CONFIG

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
            ({"latent_dim": -1}, "latent_dim must be at least 1, got -1"),
            ({"channels": (8,)}, "channels must have 2 to 8 entries, got 1"),
            ({"channels": (8, 0)}, "each of channels must be at least 1, got 0"),
            ({"channels": (8, 1 << 17)}, "each of channels must be at most 65536, got 131072"),
            ({"channels": (8,) * 9}, "channels must have 2 to 8 entries, got 9"),
            ({"num_classes": 1 << 17}, "num_classes must be at most 65536, got 131072"),
            ({"shared_dim": -1}, "shared_dim must be at least 0, got -1"),
            ({"upsampling": "bicubic"}, "upsampling must be 'nearest' or 'bilinear', got 'bicubic'"),
            ({"hierarchical": True}, "join a shared embedding; set shared_dim"),
            ({"hierarchical": True, "shared_dim": 4, "latent_dim": 81}, "must be a multiple of that, got 81"),
            ({"attention_size": 4}, r"attention_size must be 0, .*one of \[8, 16, 32\]\); got 4"),
            ({"attention_size": 8, "channels": (8, 4, 8)}, r"at least 8 channels .*one of \[16\]"),
            ({"attention_size": 128, "channels": (8,) * 7}, r"at most 64 px .*one of \[8, 16, 32, 64\]\); got 128"),
        ],
    )
    def test_bad_values_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            BigGANConfig(**options)


class TestTrainingForm:
    def test_weights_follow_the_rng_and_nothing_else(self, global_rng_untouched: None) -> None:
        first, again, other = (
            BigGAN(CONFIG, rng=torch.Generator().manual_seed(seed)).linear.weight for seed in (3, 3, 4)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_spectral_norm_comes_to_the_largest_singular_value(self) -> None:
        conv = SpectralConv2d(5, 7, 3, torch.Generator().manual_seed(0))
        for _ in range(200):
            conv(torch.zeros(1, 5, 4, 4))
        normalized = conv.eval().normalized_weight()
        assert torch.linalg.matrix_norm(normalized.flatten(1), ord=2).item() == pytest.approx(1, abs=1e-4)
        divisor = conv.weight / normalized
        torch.testing.assert_close(divisor, divisor[0, 0, 0, 0].expand_as(divisor))

    def test_images_are_signed_and_differ_by_class_and_latent(self, generator: BigGAN) -> None:
        images = generator(make_latents(), LABELS)
        assert images.abs().max() <= 1
        assert images.std() > 0.1
        for other in (generator(make_latents(), LABELS.roll(1)), generator(make_latents(seed=9), LABELS)):
            assert (other - images).abs().amax(dim=(1, 2, 3)).min() > 0.05

    def test_every_chunk_of_hierarchical_latents_changes_the_images(self) -> None:
        config = VARIANTS["hierarchical-0-nearest-spectral"]
        generator = trained_generator(config=config)
        latents = make_latents()
        for first in range(0, config.latent_dim, 3):
            moved = latents.clone()
            moved[:, first : first + 3] += 1
            assert (generator(moved, LABELS) - generator(latents, LABELS)).abs().amax(dim=(1, 2, 3)).min() > 0.01

    def test_attention_is_absent_at_first_and_gathers_from_everywhere(self) -> None:
        maps = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
        attention = SelfAttention(16, CONFIG, torch.Generator().manual_seed(0))
        assert torch.equal(attention(maps), maps)
        torch.nn.init.ones_(attention.strength)
        (gradient,) = torch.autograd.grad(attention(maps)[0, :, 0, 0].sum(), maps)
        assert (gradient[0].abs().sum(dim=0) > 0).float().mean() > 0.5
        assert not gradient[1].any()

    def test_training_moves_the_statistics_and_evaluation_does_not(self, generator: BigGAN) -> None:
        def buffers() -> list[torch.Tensor]:
            return [buffer.clone() for buffer in generator.buffers()]

        before = buffers()
        generator(make_latents(), LABELS)
        assert all(map(torch.equal, buffers(), before))
        generator.train()(make_latents(), LABELS)
        assert not any(map(torch.equal, buffers(), before))

    @every_variant
    def test_gradients_reach_every_parameter(self, config: BigGANConfig) -> None:
        generator = trained_generator(config=config)
        generator.train()(make_latents(), LABELS).square().sum().backward()
        for name, parameter in generator.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


class TestFold:
    @every_variant
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
    def test_images_are_equal(self, config: BigGANConfig, dtype: torch.dtype, tolerance: float) -> None:
        generator = trained_generator(dtype, config)
        latents = make_latents(dtype=dtype)
        expected = generator(latents, LABELS)
        images = fold(generator)(latents, LABELS)
        assert images.dtype == dtype
        torch.testing.assert_close(images, expected, rtol=0, atol=tolerance)

    @every_variant
    def test_gradients_are_equal(self, config: BigGANConfig) -> None:
        generator = trained_generator(torch.float64, config)
        gradients = []
        for form in (generator, fold(generator)):
            latents = make_latents(dtype=torch.float64).requires_grad_(True)
            (gradient,) = torch.autograd.grad(form(latents, LABELS).square().sum(), latents)
            gradients.append(gradient)
        assert gradients[0].abs().amax(dim=0).min() > 0.001
        torch.testing.assert_close(*gradients)

    def test_a_shared_embedding_leaves_no_trace(self) -> None:
        shared, tables = (fold(BigGAN(VARIANTS[f"{name}-0-nearest-spectral"])) for name in ("shared", "tables"))
        assert {name: tensor.shape for name, tensor in shared.state_dict().items()} == {
            name: tensor.shape for name, tensor in tables.state_dict().items()
        }

    @pytest.mark.parametrize("training", [True, False])
    def test_leaves_the_training_form_as_it_was(self, generator: BigGAN, training: bool) -> None:
        generator.train(training)
        before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
        fold(generator)
        assert generator.training is training
        assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())

    def test_shares_no_memory_with_it(self, generator: BigGAN, frozen: FrozenBigGAN) -> None:
        before = frozen(make_latents(), LABELS)
        with torch.no_grad():
            for tensor in (*generator.parameters(), *generator.buffers()):
                tensor.zero_()
        assert torch.equal(frozen(make_latents(), LABELS), before)


def test_parity_convolutions_equal_upsampling_and_convolution() -> None:
    rng = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 5, 4, 6, generator=rng, dtype=torch.float64)
    conv = NearestConv2d(5, 7).double()
    for _ in range(2):  # other weights, other sums
        weights = {name: torch.randn(tensor.shape, generator=rng) for name, tensor in conv.state_dict().items()}
        assert weights.keys() == {"weight", "bias"}
        conv.load_state_dict(weights)
        expected = F.conv2d(F.interpolate(maps, scale_factor=2.0, mode="nearest"), conv.weight, conv.bias, padding=1)
        torch.testing.assert_close(conv(maps), expected)


class TestFrozenForm:
    @every_variant
    @pytest.mark.parametrize("chunk", [1, 5])
    def test_an_image_does_not_depend_on_its_batch(self, config: BigGANConfig, chunk: int) -> None:
        frozen, latents = fold(trained_generator(torch.float64, config)), make_latents(dtype=torch.float64)
        whole = frozen(latents, LABELS)
        parts = [frozen(*pair) for pair in zip(latents.split(chunk), LABELS.split(chunk), strict=True)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
    def test_a_copy_gives_the_same_images(self, frozen: FrozenBigGAN, copied: Any) -> None:
        assert torch.equal(copied(frozen)(make_latents(), LABELS), frozen(make_latents(), LABELS))

    @pytest.mark.parametrize("variant", ["tables-0-nearest-spectral", "hierarchical-8-bilinear-plain"])
    def test_is_one_graph_for_the_compiler(self, variant: str) -> None:
        frozen = fold(trained_generator(config=VARIANTS[variant]))
        expected = frozen(make_latents(), LABELS)
        frozen.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(frozen(make_latents(), LABELS), expected)

    def test_training_mode_changes_nothing(self, frozen: FrozenBigGAN) -> None:
        before = frozen(make_latents(), LABELS)
        assert torch.equal(frozen.train()(make_latents(), LABELS), before)

    def test_gradients_reach_the_latents_only(self, frozen: FrozenBigGAN) -> None:
        latents = make_latents().requires_grad_(True)
        frozen(latents, LABELS).square().sum().backward()
        assert latents.grad is not None
        assert (latents.grad != 0).any(dim=1).all()
        assert not [name for name, parameter in frozen.named_parameters() if parameter.requires_grad]
        assert not [name for name, parameter in frozen.named_parameters() if parameter.grad is not None]

    @pytest.mark.parametrize("variant", ["tables-0-nearest-spectral", "hierarchical-8-bilinear-plain"])
    def test_bfloat16_is_near(self, variant: str) -> None:
        frozen = fold(trained_generator(config=VARIANTS[variant]))
        exact = frozen(make_latents(), LABELS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = frozen(make_latents(), LABELS)
        assert rounded.dtype == torch.bfloat16
        assert (rounded.float() - exact).abs().mean() < 0.03 * exact.std()

    def test_half_latents_are_taken(self, frozen: FrozenBigGAN) -> None:
        latents = make_latents().half()
        assert torch.equal(frozen(latents, LABELS), frozen(latents.float(), LABELS))


class TestSaveAndLoad:
    @pytest.fixture
    def folder(self, tmp_path: Path, frozen: FrozenBigGAN) -> Path:
        save_generator(tmp_path / "generator", frozen)
        return tmp_path / "generator"

    @every_variant
    def test_round_trip(self, tmp_path: Path, config: BigGANConfig, global_rng_untouched: None) -> None:
        frozen = fold(trained_generator(config=config))
        save_generator(tmp_path, frozen)
        loaded = load_generator(tmp_path)
        assert loaded.config == frozen.config
        assert torch.equal(loaded(make_latents(), LABELS), frozen(make_latents(), LABELS))
        assert not any(parameter.requires_grad for parameter in loaded.parameters())

    @pytest.mark.parametrize("variant", ["shared-8-nearest-spectral", "hierarchical-8-bilinear-plain"])
    def test_round_trip_through_a_bundle(self, tmp_path: Path, variant: str) -> None:
        frozen = fold(trained_generator(config=VARIANTS[variant]))
        save_bundle(tmp_path, frozen, LatentSet(make_latents(), LABELS), config=BUNDLE_CONFIG, preview=False)
        loaded = load_bundle(tmp_path).generator
        torch.testing.assert_close(loaded(make_latents(), LABELS), frozen(make_latents(), LABELS), rtol=0, atol=0.02)

    def test_a_description_without_options_is_the_default(self, frozen: FrozenBigGAN) -> None:
        old = {name: getattr(CONFIG, name) for name in ("num_classes", "latent_dim", "channels", "bn_eps")}
        built = build_generator({"architecture": "biggan", "arguments": old}, frozen.state_dict())
        assert built.config == CONFIG

    def test_float16_halves_the_file_and_is_used_in_float32(self, folder: Path, frozen: FrozenBigGAN) -> None:
        large = (folder / WEIGHTS_FILE).stat().st_size
        save_generator(folder, frozen, dtype=torch.float16)
        assert (folder / WEIGHTS_FILE).stat().st_size < 0.6 * large
        images = load_generator(folder)(make_latents(), LABELS)
        assert images.dtype == torch.float32
        torch.testing.assert_close(images, frozen(make_latents(), LABELS), rtol=0, atol=0.02)

    def test_class_names_are_kept_and_must_be_as_many_as_the_classes(self, folder: Path, frozen: FrozenBigGAN) -> None:
        assert load_generator(folder).class_names is None
        names = tuple(f"class {label}" for label in range(frozen.num_classes))
        save_generator(folder, frozen, class_names=names)
        loaded = load_generator(folder)
        assert loaded.class_names == names
        save_generator(folder, loaded)  # which knows them
        assert load_generator(folder).class_names == names
        assert SyntheticDataset(loaded, LatentSet(make_latents(), LABELS)).classes == list(names)
        for wrong in (["a"], "ab", [None] * frozen.num_classes):
            write_json(folder / CONFIG_FILE, {**read_json(folder / CONFIG_FILE), "class_names": wrong})
            with pytest.raises(ValueError, match=r"class.names must"):
                load_generator(folder)

    def test_a_damaged_file_is_refused(self, folder: Path) -> None:
        content = (folder / WEIGHTS_FILE).read_bytes()
        (folder / WEIGHTS_FILE).write_bytes(content[:-4])
        with pytest.raises(ValueError, match=r"generator\.safetensors does not match its sha256"):
            load_generator(folder)

    @pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
    def test_a_missing_file_is_named(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"holds no {name}; expected a bundle or a trained generator"):
            load_generator(folder)

    def test_a_folder_of_something_else_is_refused(self, folder: Path) -> None:
        (folder / CONFIG_FILE).write_text("{}")
        with pytest.raises(ValueError, match="has no key 'generator'"):
            load_generator(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"linear.bias": None}, r"'linear\.bias': expected shape \(192,\), got None"),
            ({"extra": torch.zeros(2)}, r"'extra': expected shape None, got \(2,\)"),
            ({"linear.bias": torch.zeros(3)}, r"'linear\.bias': expected shape \(192,\), got \(3,\)"),
            ({"linear.bias": torch.full((192,), torch.nan)}, "'linear.bias' holds values that are not finite"),
        ],
    )
    def test_tensors_that_do_not_fit_are_refused(self, folder: Path, change: dict[str, Any], message: str) -> None:
        tensors = load_tensors(folder / WEIGHTS_FILE) | change
        save_tensors(folder / WEIGHTS_FILE, {name: tensor for name, tensor in tensors.items() if tensor is not None})
        config = json.loads((folder / CONFIG_FILE).read_text())
        config["sha256"][WEIGHTS_FILE] = sha256_of(folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            load_generator(folder)

    @pytest.mark.parametrize(
        ("description", "message"),
        [
            ({"architecture": "stylegan", "arguments": {}}, "unknown architecture 'stylegan'; expected 'biggan'"),
            ({"architecture": "biggan"}, "the arguments of the generator are not those of a BigGAN"),
            ({"architecture": "biggan", "arguments": {"depth": 3}}, "are not those of a BigGAN .*depth"),
            ({"architecture": "biggan", "arguments": {"latent_dim": 0}}, "latent_dim must be at least 1"),
            ({"architecture": "biggan", "arguments": {"hierarchical": 1}}, "hierarchical must be true or false, got 1"),
            ({"architecture": "biggan", "arguments": {"upsampling": "area" * 99}}, r"or 'bilinear', got 'area.{75}\)$"),
            ({"architecture": "biggan", "arguments": {"attention_size": 2**40}}, "attention_size must be 0, or"),
        ],
    )
    def test_an_unknown_description_is_refused(self, description: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build_generator(description, {})

    def test_only_the_frozen_form_is_described(self, generator: BigGAN) -> None:
        with pytest.raises(ValueError, match="a BigGAN is stored in its frozen form; fold it first"):
            describe_generator(generator)

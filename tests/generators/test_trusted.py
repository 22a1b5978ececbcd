"""Generators that are not of this package: stored in bundles, and built of trusted classes alone."""

import copy
import importlib
import json
import math
import re
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import TinyGenerator
from hub_server import LoopbackHub
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from itgan_data import ITGANCIFAR10, LatentSet, Pixels, SyntheticDataset, load_bundle, load_generator, save_bundle
from itgan_data.bundle.writing import Bundle, describe_bundle, push_bundle
from itgan_data.datasets import CIFAR10
from itgan_data.generators.store import save_generator
from itgan_data.images import Normalization
from itgan_data.storage.files import load_tensors, save_tensors, sha256_of


class Decoder(nn.Module):
    """A decoder with what state dicts have besides weights: statistics, a counter, a buffer that is not stored."""

    def __init__(self, width: int = 4, num_classes: int = 3, slope: float = 0.2) -> None:
        super().__init__()
        self.arguments: Mapping[str, Any] = {"width": width, "num_classes": num_classes, "slope": slope}
        self.latent_dim, self.num_classes, self.image_shape = 5, num_classes, (3, 32, 32)
        self.input = nn.Linear(self.latent_dim + num_classes, width * 64)
        self.norm = nn.BatchNorm2d(width)
        self.output = nn.Conv2d(width, 3, 3, padding=1)
        self.slope = slope
        self.register_buffer("brightness", torch.tensor([0.1, 0.0, -0.1]).view(3, 1, 1), persistent=False)

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        classes = nn.functional.one_hot(labels, self.num_classes).to(latents.dtype)
        maps = self.norm(self.input(torch.cat([latents, classes], 1)).view(len(latents), -1, 8, 8))
        maps = nn.functional.interpolate(nn.functional.leaky_relu(maps, self.slope), scale_factor=4)
        return torch.tanh(self.output(maps).view(-1, *self.image_shape) + self.brightness)


class Another(Decoder):
    """The same under another name."""


class Looking(TinyGenerator):
    """Looks at what it draws."""

    arguments: Mapping[str, Any] = {}

    def __init__(self) -> None:
        super().__init__()
        self.scale = float(self.directions.detach().std())


class Tied(TinyGenerator):
    """Two names of one parameter."""

    arguments: Mapping[str, Any] = {}

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.directions = nn.Parameter(torch.randn(6, 192))
        self.classes = self.directions


class Dimmed(Pixels):
    """Darker pixels."""

    def __init__(self, side: int) -> None:
        super().__init__((3, side, side), 3, Normalization((0.5,) * 3, (0.2,) * 3))

    @property
    def arguments(self) -> dict[str, Any]:
        return {"side": self.image_shape[1]}

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return super().forward(latents, labels) - 0.1


def about(num_classes: int) -> dict[str, Any]:
    return {
        "dataset": "toy",
        "class_names": [str(label) for label in range(num_classes)],
        "normalization": {"mean": [0.5] * 3, "std": [0.2] * 3},
        "method": "IT-GAN",
        "training": {},
        "metrics": {},
    }


def latents_of(generator: Any) -> LatentSet:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(2 * generator.num_classes) % generator.num_classes
    return LatentSet(torch.randn(len(labels), generator.latent_dim, generator=rng), labels)


def save(folder: Path, generator: nn.Module, dtype: torch.dtype = torch.float32, **options: Any) -> Bundle:
    latents = latents_of(generator)
    return save_bundle(folder, generator, latents, config=about(generator.num_classes), dtype=dtype, **options)


def images_of(generator: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        images: torch.Tensor = generator(*latents_of(generator).batch(torch.arange(6)))
    return images


def edit(folder: Path, **changes: Any) -> None:
    """Change what `config.json` says of the generator."""
    config = json.loads((folder / "config.json").read_text())
    config["generator"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def refusal(folder: Path, **options: Any) -> str:
    messages = set()
    for load in (load_bundle, load_generator):
        with pytest.raises(ValueError, match=r".") as error:
            load(folder, **options)
        messages.add(str(error.value))
    (message,) = messages
    assert "\n" not in message
    assert len(message) < 1000
    return message


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """Trained for a few batches, as its statistics show, and still in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = Decoder()
        for _ in range(3):
            decoder(3 * torch.randn(16, 5), torch.arange(16) % 3)
    return decoder


@pytest.fixture
def folder(tmp_path: Path, decoder: Decoder) -> Path:
    save(tmp_path / "bundle", decoder, preview=False)
    return tmp_path / "bundle"


class TestRoundTrip:
    def test_a_trusted_class_gives_the_same_images(
        self, folder: Path, decoder: Decoder, global_rng_untouched: None
    ) -> None:
        bundle = load_bundle(folder, trust=[Another, Decoder])
        assert type(bundle.generator) is Decoder
        assert bundle.config["generator"] == {"architecture": "test_trusted:Decoder", "arguments": decoder.arguments}
        tensors = bundle.generator.state_dict()
        assert tensors["norm.num_batches_tracked"] == 3
        assert all(torch.equal(tensors[name], tensor) for name, tensor in decoder.state_dict().items())
        assert torch.equal(images_of(bundle.generator), images_of(copy.deepcopy(decoder).eval()))

    def test_it_is_frozen(self, folder: Path) -> None:
        generator = load_generator(folder, trust=Decoder)
        assert not generator.training
        assert not [tensor for tensor in generator.parameters() if tensor.requires_grad]

    def test_saving_leaves_it_as_it_was(self, tmp_path: Path, decoder: Decoder, global_rng_untouched: None) -> None:
        before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
        save(tmp_path / "bundle", decoder)
        assert decoder.training
        assert all(parameter.requires_grad for parameter in decoder.parameters())
        assert all(torch.equal(before[name], tensor) for name, tensor in decoder.state_dict().items())

    def test_half_precision_is_for_floats_alone(self, tmp_path: Path, decoder: Decoder) -> None:
        saved = save(tmp_path / "bundle", decoder, dtype=torch.float16).generator
        stored = load_tensors(tmp_path / "bundle" / "generator.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}
        assert {tensor.dtype for tensor in saved.state_dict().values()} == {torch.float32, torch.int64}
        torch.testing.assert_close(images_of(saved), images_of(copy.deepcopy(decoder).eval()), rtol=0, atol=0.01)

    def test_a_generator_alone_is_stored_too(self, tmp_path: Path, decoder: Decoder) -> None:
        save_generator(tmp_path, decoder)
        assert torch.equal(images_of(load_generator(tmp_path, trust=Decoder)), images_of(copy.deepcopy(decoder).eval()))

    @pytest.mark.parametrize("generator", [Tied(), Dimmed(8)], ids=["tied parameters", "a subclass of ours"])
    def test_others_round_trip(self, tmp_path: Path, generator: nn.Module) -> None:
        loaded = save(tmp_path / "bundle", generator).generator
        assert type(loaded) is type(generator)
        assert torch.equal(images_of(loaded), images_of(generator))

    def test_the_drop_in_takes_it(self, tmp_path: Path) -> None:
        config = {**about(10), "class_names": CIFAR10.class_names}
        generator = Decoder(num_classes=10)
        save_bundle(tmp_path / "bundle", generator, latents_of(generator), config=config, preview=False)
        dataset = ITGANCIFAR10(source=tmp_path / "bundle", trust=Decoder)
        assert len(dataset) == 20
        with pytest.raises(ValueError, match="pass it as `trust`"):
            ITGANCIFAR10(source=tmp_path / "bundle")

    def test_the_card_shows_how_to_load_it(self, folder: Path) -> None:
        code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
        assert "from test_trusted import Decoder  # its code is not in the bundle: read it first" in code
        names: dict[str, Any] = {}
        exec(code.replace("path/to/this/folder", str(folder)), names)
        assert isinstance(names["dataset"], SyntheticDataset)

    def test_through_the_hub(self, hub: LoopbackHub, folder: Path, decoder: Decoder) -> None:
        hub.tokens["secret"] = "org"
        with pytest.raises(ValueError, match="pass it as `trust`"):
            push_bundle(folder, "org/name", token="secret")
        push_bundle(folder, "org/name", token="secret", trust=Decoder)
        push_bundle(load_bundle(folder, trust=Decoder), "org/other", token="secret")
        pulled = load_bundle("org/name", trust=Decoder).generator
        assert torch.equal(images_of(pulled), images_of(copy.deepcopy(decoder).eval()))
        with pytest.raises(ValueError, match="pass it as `trust`"):
            load_bundle("org/other")


class TestTrust:
    def test_without_it_the_class_is_named_and_nothing_is_built(self, folder: Path) -> None:
        message = "the generator is a test_trusted:Decoder, which is not of this package; if you have read its code"
        assert refusal(folder).startswith(message)
        assert "(trusted so far: test_trusted:Another)" in refusal(folder, trust=Another)

    def test_a_bundle_is_described_without_it(self, folder: Path) -> None:
        config, sizes = describe_bundle(folder)
        assert config["generator"]["architecture"] == "test_trusted:Decoder"
        assert "generator.safetensors" in sizes

    @pytest.mark.parametrize("architecture", ["{}:Decoder", "{}:run", "{}.Decoder", "{}"])
    def test_nothing_is_imported_because_a_file_says_so(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
    ) -> None:
        mark = tmp_path / "imported"
        (tmp_path / "tempting.py").write_text(
            f"open({str(mark)!r}, 'w')\nfrom test_trusted import Decoder\nrun = print"
        )
        monkeypatch.syspath_prepend(tmp_path)
        edit(folder, architecture=architecture.format("tempting"))
        for trust in ((), Decoder, [Another, Decoder]):
            assert "tempting" in refusal(folder, trust=trust)
        describe_bundle(folder)
        assert not mark.exists()
        assert "tempting" not in sys.modules

    @pytest.mark.parametrize("trust", ["test_trusted:Decoder", ["test_trusted:Decoder"], [int], [Decoder()]])
    def test_it_takes_classes_of_modules(self, folder: Path, trust: Any) -> None:
        assert refusal(folder, trust=trust).startswith("trust takes classes of modules, such as trust=Decoder, got ")

    def test_a_class_of_another_name_does_not_do(self, folder: Path) -> None:
        edit(folder, architecture="test_trusted:Another")
        assert "which is not of this package (trusted so far: test_trusted:Decoder)" in refusal(folder, trust=Decoder)

    @pytest.mark.parametrize("architecture", [None, 3, [], "", "a:b:c", "a b:c", "os.system('ls'):x", "a" * 300 + ":b"])
    def test_what_is_no_name_is_unknown(self, folder: Path, architecture: object) -> None:
        edit(folder, architecture=architecture)
        assert refusal(folder, trust=Decoder).startswith("unknown architecture ")


class TestHostileFiles:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "TypeError: expected an object, got list"),
            (None, "TypeError: expected an object, got NoneType"),
            ({"depth": 3}, "unexpected keyword argument 'depth'"),
            ({"self": 3}, "multiple values for argument 'self'"),
            ({"width": "8"}, "do not build a Decoder (TypeError: "),
            ({"width": -8}, "do not build a Decoder (RuntimeError: "),
            ({"width": 8}, "expected shape (512,), got (256,)"),
            ({"width": 2**36}, "expected shape (4398046511104,), got (256,)"),
            ({"width": 2**62}, "do not build a Decoder ("),
            ({"num_classes": 0}, "a generator has the attributes latent_dim and num_classes"),
            ({"num_classes": [3]}, "do not build a Decoder ("),
            ({"slope": [[[[0.2] * 5] * 5] * 5] * 5, "width": 8}, "expected shape"),
        ],
        ids=repr,
    )
    def test_arguments_that_do_not_fit_are_refused(self, folder: Path, arguments: object, message: str) -> None:
        edit(folder, arguments=arguments)
        assert message in refusal(folder, trust=Decoder)

    JSON = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
        max_leaves=5,
    )

    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=st.sampled_from(["width", "num_classes", "slope", "self", "depth"]), value=JSON)
    def test_any_argument_is_refused_or_fits(self, folder: Path, decoder: Decoder, name: str, value: object) -> None:
        edit(folder, arguments={**decoder.arguments, name: value})
        try:
            tensors = load_generator(folder, trust=Decoder).state_dict()
        except ValueError:
            refusal(folder, trust=Decoder)
        else:
            assert all(torch.equal(tensors[key], tensor) for key, tensor in decoder.state_dict().items())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"norm.running_mean": None}, "'norm.running_mean': expected shape (4,), got None"),
            ({"brightness": torch.zeros(3, 1, 1)}, "'brightness': expected shape None, got (3, 1, 1)"),
            ({"norm.num_batches_tracked": torch.tensor(3.0)}, "expected one of (torch.int64,), got torch.float32"),
            ({"norm.running_var": torch.ones(4, dtype=torch.int64)}, "got torch.int64"),
            ({"norm.running_var": torch.full((4,), torch.nan)}, "holds values that are not finite"),
        ],
        ids=str,
    )
    def test_tensors_that_do_not_fit_are_refused(self, folder: Path, change: dict[str, Any], message: str) -> None:
        path = folder / "generator.safetensors"
        tensors = {**load_tensors(path), **change}
        save_tensors(path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
        config = json.loads((folder / "config.json").read_text())
        config["sha256"][path.name] = sha256_of(path)
        (folder / "config.json").write_text(json.dumps(config))
        assert message in refusal(folder, trust=Decoder)


class TestSaving:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"arguments": None}, "has no attribute `arguments`; give it one: the mapping of JSON values with which"),
            ({"arguments": {"width": torch.ones(())}}, "arguments must hold JSON values"),
            ({"arguments": {"slope": math.nan}}, "arguments must hold JSON values"),
            ({"arguments": {"depth": 4}}, "the arguments {'depth': 4} do not build a Decoder"),
            ({"arguments": {"width": 8}}, "'input.bias': expected shape (512,), got (256,)"),
            (
                {"arguments": {}, "slope": 0.9},
                "with the same tensors makes other images; let `arguments` hold all that",
            ),
            ({"image_shape": (3, 32)}, "Decoder has latent_dim=5, num_classes=3, image_shape=(3, 32)"),
            ({"forward": lambda latents, labels: latents}, "must make float images [8, 3, 32, 32] of 8 latents"),
            ({"forward": lambda latents, labels: torch.zeros(len(latents), 3, 32, 32)}, "makes the same image"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_generator_that_could_not_be_loaded_is_not_saved(
        self, tmp_path: Path, decoder: Decoder, change: dict[str, Any], message: str
    ) -> None:
        decoder = copy.deepcopy(decoder)
        for name, value in change.items():
            setattr(decoder, name, value)
        with pytest.raises(ValueError, match=re.escape(message)):
            save(tmp_path / "bundle", decoder)
        assert list(tmp_path.iterdir()) == []

    def test_a_constructor_that_looks_at_tensors_is_told_why_it_cannot(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"do not build a Looking .* built on torch.device\('meta'\) first"):
            save(tmp_path / "bundle", Looking())

    def test_a_class_that_nobody_can_import_is_not_saved(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Local(Decoder):
            pass

        advice = "cannot be imported by other programs; define it at the top level of a .py file"
        with pytest.raises(ValueError, match=f"Local {advice}"):
            save(tmp_path / "bundle", Local())
        monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))  # as in a notebook
        monkeypatch.setattr(Another, "__module__", "__main__")
        with pytest.raises(ValueError, match=f"Another {advice}"):
            save(tmp_path / "bundle", Another())

    def test_the_class_of_a_script_is_named_as_others_import_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "scripted.py").write_text(SCRIPT)
        runpy.run_path(str(tmp_path / "scripted.py"), run_name="__main__")
        runpy.run_module("scripted", run_name="__main__", alter_sys=True)
        importlib.import_module("scripted").tell()
        assert capsys.readouterr().out == "scripted:Outer.Decoder\n" * 3


SCRIPT = """
from torch import nn
from itgan_data.generators.trusted import import_path

class Outer:
    class Decoder(nn.Module):
        pass

def tell():
    print(import_path(Outer.Decoder))

if __name__ == "__main__":
    tell()
"""

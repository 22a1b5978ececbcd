"""A bundle is data from anyone: whatever is wrong with it ends in our own error, before it takes memory."""

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itgan_data.bundle.writing import load_bundle
from itgan_data.generators.store import load_generator
from itgan_data.storage.files import (
    MAX_JSON_BYTES,
    TensorInfo,
    load_tensors,
    open_tensors,
    read_json,
    save_tensors,
    sha256_of,
)

stress = load_script("benchmarks/stress_bundles.py")
SIZES = "generator", "arguments"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Bundles with latents in float16, in int8 and in shards, that no test changes."""
    made: list[Path] = stress.make_bundles(tmp_path_factory.mktemp("bases"))
    return made


@pytest.fixture
def folder(bases: list[Path], tmp_path: Path) -> Path:
    shutil.copytree(bases[0], tmp_path / "bundle")
    return tmp_path / "bundle"


def change(folder: Path, value: Any, *keys: str | int) -> None:
    """Set one value of `config.json`."""
    config = json.loads((folder / "config.json").read_text())
    place = config
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


def renew(folder: Path, name: str) -> None:
    change(folder, sha256_of(folder / name), "sha256", name)


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        load_bundle(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


class TestConfiguration:
    @pytest.mark.parametrize(
        ("keys", "value", "message"),
        [
            (("format",), "x" * 5000, "expected 'itgan-data-bundle'"),
            (("format_version",), True, "format version True, this release reads 1 to 2; it is damaged"),
            (("format_version",), 1.0, "format version 1.0"),
            (("generator",), [], "no object 'generator'"),
            (("generator", "architecture"), ["biggan"], "unknown architecture"),
            ((*SIZES, "channels"), [2**62] * 3, "channels must be at most 65536"),
            ((*SIZES, "channels"), [8] * 10**5, "channels must have 2 to 8 entries, got 100000"),
            ((*SIZES, "channels"), [65536] * 3, "expected shape .*, got "),
            ((*SIZES, "channels"), 8, "channels must be a list, got 8"),
            ((*SIZES, "channels"), [8, True, 8], "each of channels must be a whole number, got True"),
            ((*SIZES, "num_classes"), 65536, "expected shape .*, got "),
            ((*SIZES, "num_classes"), 3.0, "num_classes must be a whole number"),
            ((*SIZES, "latent_dim"), True, "latent_dim must be a whole number"),
            ((*SIZES, "bn_eps"), "0", "bn_eps must be a finite number"),
            ((*SIZES, "__class__"), "os.system", "unexpected keyword argument '__class__'"),
            (("image", "range"), "unit", "'range': 'signed'"),
            (("image", "shape"), [3, 16, 32], r"the shape \[3, 16, 16\]"),
            (("latents", "count"), 10**18, r"latents must .*|holds 12 latents, expected 1000000000000000000"),
            (("latents", "count"), 11, "holds 12 latents, expected 11"),
            (
                ("latents", "dim"),
                17,
                r"latents must be float16 \[12, 17\] by the configuration, got float16 \[12, 16\]",
            ),
            (("latents", "dtype"), "int8", r"latent_scale must be float32 \[16\] by the configuration, got None"),
            (("latents", "dtype"), "object", "one of the dtypes float32, float16, int8"),
            (("sha256",), {}, "sha256 must name generator.safetensors"),
            (("sha256", "../../etc/passwd"), "0" * 64, "sha256 must name generator.safetensors"),
            (("sha256", "latents.safetensors"), None, "does not match its sha256"),
            (("class_names",), "cat", "class_names must be a list, got 'cat'"),
            (("class_names",), ["cat", "dog", 3], "each of class_names must be text, got 3"),
            (("class_names",), ["cat"] * 10**4, "must name the generator's 3 classes, got 10000"),
            (("normalization", "mean"), [0.5, True, 0.5], "each of mean must be a finite number, got True"),
            (("normalization", "std"), [0.2], "mean and std must have one value per channel"),
            (("normalization", "std"), [0.2, 0.2, -0.2], "each of std must be positive, got -0.2"),
            (("normalization",), {"mean": [0.5], "std": [0.2]}, "must have the 3 channels"),
            (("dataset",), None, "dataset must be text, got None"),
            (("training",), [], "training must be an object"),
        ],
    )
    def test_an_impossible_value_is_refused(
        self, folder: Path, keys: tuple[str, ...], value: object, message: str
    ) -> None:
        change(folder, value, *keys)
        with pytest.raises(ValueError, match=message):
            load_bundle(folder)
        refusal(folder)

    @pytest.mark.parametrize(
        ("writer", "advice"),
        [
            ("0.9.1", "install itgan_data>=0.9.1, which wrote it"),
            (None, "install a newer release of itgan_data"),
            ("0.9; rm -rf /", "install a newer release of itgan_data"),
        ],
    )
    def test_a_newer_format_says_what_to_install(self, folder: Path, writer: str | None, advice: str) -> None:
        change(folder, 3, "format_version")
        change(folder, writer, "package_version")
        assert refusal(folder).endswith(f"format version 3, this release reads 1 to 2; {advice}")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"format"', '"format": "x", "format"', "a key occurs twice"),
            ("0.5", "NaN", "NaN where a finite number is expected"),
            ("0.5", "1e999", "1e999 where a finite number is expected"),
            ("0.5", "9" * 5000, "an integer of 5000 digits"),
            ("0.5", "[" * 5000 + "]" * 5000, "not valid JSON"),
            ("0.5", "\ud800", "not valid JSON"),
            ("{", "{\ufeff", "not valid JSON"),
        ],
    )
    def test_json_that_readers_understand_in_different_ways_is_refused(
        self, folder: Path, old: str, new: str, message: str
    ) -> None:
        text = (folder / "config.json").read_text().replace(old, new, 1)
        (folder / "config.json").write_bytes(text.encode(errors="surrogatepass"))
        assert message in refusal(folder)

    def test_a_huge_configuration_is_not_read(self, folder: Path) -> None:
        with open(folder / "config.json", "r+b") as file:
            file.truncate(MAX_JSON_BYTES + 1)
        assert "bytes of JSON, expected at most" in refusal(folder)

    JSON = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=10), values, max_size=4),
        max_leaves=8,
    )

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(value=JSON, place=st.integers(0, 2**32), remove=st.booleans())
    def test_any_value_anywhere_is_refused_or_harmless(
        self, bases: list[Path], folder: Path, value: object, place: int, remove: bool
    ) -> None:
        config = json.loads((bases[0] / "config.json").read_text())
        container = random.Random(place).choice(list(stress.containers(config)))
        keys = list(container) if isinstance(container, dict) else range(len(container))
        if keys:
            key = keys[place % len(keys)]
            container[key] = value
            if remove:
                del container[key]
        (folder / "config.json").write_text(json.dumps(config))
        result, detail = stress.outcome(folder, load_bundle(bases[0]), renewed=False)
        assert result in ("refused", "equal"), detail


def entry(values: bytes) -> bytes:
    """A header of one tensor."""
    return b'{"a": {"dtype": ' + values + b"}}"


class TestTensorFiles:
    @pytest.mark.parametrize(
        ("header", "message"),
        [
            (b"[]", "invalid type: sequence"),
            (b'{"a": 1}', "invalid type: integer"),
            (entry(b'"F32", "shape": [2], "data_offsets": [0, 4]'), "invalid shape"),
            (entry(b'"F32", "shape": [1], "data_offsets": [4, 8]'), "invalid offset"),
            (entry(b'"F32", "shape": [2], "data_offsets": [0, 8]'), "file not fully covered"),
            (entry(b'"F32", "shape": [-1], "data_offsets": [0, -4]'), "invalid value: integer `-1`"),
            (entry(b'"F32", "shape": [true], "data_offsets": [0, 4]'), "invalid type: boolean"),
            (entry(b'"OBJ", "shape": [1], "data_offsets": [0, 4]'), "unknown variant"),
            (entry(b'["F32"], "shape": [1], "data_offsets": [0, 4]'), "invalid type: sequence"),
            (entry(b'"F32", "shape": [1], "data_offsets": [0, 4, 8]'), "invalid length 3"),
            (entry(b'"F32", "shape": [4611686018427387904], "data_offsets": [0, 4]'), "overflow"),
            (entry(b'"F8_E4M3", "shape": [4], "data_offsets": [0, 4]'), "'a' is F8_E4M3 of 1 dimensions"),
            (entry(b'"F32", "shape": [1,1,1,1,1,1,1,1,1], "data_offsets": [0, 4]'), "'a' is F32 of 9 dimensions"),
            (entry(b'"F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32"'), "a key occurs twice"),
            (b"\xff\xff", "not a safetensors file"),
        ],
    )
    def test_a_header_that_the_data_contradict_is_refused(self, tmp_path: Path, header: bytes, message: str) -> None:
        (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        for read in (open_tensors, load_tensors):
            with pytest.raises(ValueError, match="file is truncated or not a safetensors file") as error:
                read(tmp_path / "file")
            assert message in str(error.value)

    @pytest.mark.parametrize("length", [1 << 40, (1 << 64) - 1])
    def test_a_header_that_says_it_is_huge_is_not_read(self, tmp_path: Path, length: int) -> None:
        (tmp_path / "file").write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(ValueError, match=f"a header of {length} bytes in a file of 10"):
            open_tensors(tmp_path / "file")

    def test_what_is_whole_is_described_without_being_read(self, tmp_path: Path) -> None:
        save_tensors(tmp_path / "file", {"a": torch.zeros(2, 3), "b": torch.tensor(True)})
        assert open_tensors(tmp_path / "file").infos == {
            "a": TensorInfo(torch.float32, (2, 3)),
            "b": TensorInfo(torch.bool, ()),
        }

    def test_a_sparse_file_of_a_terabyte_costs_nothing(self, folder: Path) -> None:
        os.truncate(folder / "latents.safetensors", 1 << 40)
        assert f"has {1 << 40} bytes, expected at most" in refusal(folder)

    @pytest.mark.parametrize(
        ("file", "name", "edit", "message"),
        [
            ("latents", "latents", lambda t: t.double(), "latents must be float16 [12, 16]"),
            ("latents", "labels", lambda t: t.int(), "labels must be int64 [12]"),
            ("latents", "labels", lambda t: t - 1, "labels must not be negative, got -1"),
            ("latents", "labels", lambda t: t + 1, "labels must lie in 0..2 for this generator, got 3"),
            ("latents", "latents", lambda t: t * math.nan, "latents must be finite"),
            ("latents", "source_index", lambda t: t[None], "source_index must be int64 [12]"),
            ("generator", "linear.bias", lambda t: t.double(), "expected one of"),
            ("generator", "linear.bias", lambda t: t.float() * math.inf, "not finite"),
            ("generator", "linear.weight", lambda t: t.flatten(), "expected shape"),
        ],
    )
    def test_a_tensor_of_another_kind_is_refused(
        self, folder: Path, file: str, name: str, edit: Callable[[torch.Tensor], torch.Tensor], message: str
    ) -> None:
        path = folder / f"{file}.safetensors"
        tensors = load_tensors(path)
        save_tensors(path, tensors | {name: edit(tensors[name])})
        renew(folder, path.name)
        assert message in refusal(folder)

    def test_a_tensor_that_nobody_asked_for_is_refused(self, folder: Path) -> None:
        path = folder / "latents.safetensors"
        save_tensors(path, load_tensors(path) | {"extra": torch.zeros(1)})
        renew(folder, path.name)
        assert "extra must be None by the configuration, got float32 [1]" in refusal(folder)

    def test_a_generator_is_checked_wherever_it_is_read(self, folder: Path) -> None:
        change(folder, [65536] * 3, *SIZES, "channels")  # 100 TB
        for load in (load_bundle, load_generator):
            with pytest.raises(ValueError, match="expected shape"):
                load(folder)
        content = bytearray((folder / "generator.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "generator.safetensors").write_bytes(content)
        for load in (load_bundle, load_generator):
            with pytest.raises(ValueError, match="does not match its sha256"):
                load(folder)

    def test_latents_beside_those_that_were_checked_are_refused(self, bases: list[Path], tmp_path: Path) -> None:
        sharded = next(base for base in bases if base.name == "shards")
        shutil.copytree(sharded, tmp_path / "bundle")
        shutil.copy(bases[0] / "latents.safetensors", tmp_path / "bundle")  # would be read in place of the shards
        assert "holds other latents than those of its config.json" in refusal(tmp_path / "bundle")


@pytest.mark.parametrize("first", range(0, 112, 28))
def test_mutations_end_in_our_own_error_or_in_an_equal_bundle(bases: list[Path], tmp_path: Path, first: int) -> None:
    """Four of each kind; benchmarks/stress_bundles.py runs thousands."""
    originals = [load_bundle(base) for base in bases]
    for number in range(first, first + 28):
        result = stress.run_one(originals, tmp_path / str(number), number)
        assert result.outcome in ("refused", "equal", "another"), result
        assert result.seconds < stress.SECONDS


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "has no config.json" in refusal(folder)


def test_a_link_is_followed_as_in_the_clients_cache(folder: Path) -> None:
    expected = read_json(folder / "config.json")
    (folder / "config.json").rename(folder.parent / "elsewhere")
    (folder / "config.json").symlink_to(folder.parent / "elsewhere")
    assert load_bundle(folder).config == expected

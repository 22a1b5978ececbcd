from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import benchmark_script, run_tiny

from itgan_data.latents.stored import LatentSet
from itgan_data.storage.files import read_json


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with benchmark_script("methods") as module:
        yield module


def test_every_method_ends_in_as_many_images(script: ModuleType, tmp_path: Path) -> None:
    names = [name for name in script.ROWS if name not in script.CORESETS]  # which take half a minute
    result = run_tiny(script, tmp_path, "--rows", ",".join(names))
    assert result.exit_code == 0, result.output
    rows = read_json(tmp_path / "out.json")["rows"]
    assert list(rows) == names
    assert {row["key"]["num_images"] for row in rows.values()} == {20}
    for name in script.METHODS:
        learned = LatentSet.load(tmp_path / "work" / name / "latents.safetensors")
        assert learned.labels.bincount().tolist() == [2] * 10
        assert learned.latent_dim == (3 * 32 * 32 if name in script.PIXELS else 16)


def test_a_scale_changes_methods_that_there_are(script: ModuleType) -> None:
    for scale in script.SCALES.values():
        assert set(scale.changes) <= set(script.METHODS)

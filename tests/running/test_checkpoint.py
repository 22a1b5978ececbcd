import json
from pathlib import Path
from typing import Any

import pytest
import torch

from itgan_data.running.checkpoint import MANIFEST, Checkpoint, Checkpointer
from itgan_data.storage import files

CONFIG = {"lr": 0.1, "model": {"width": 8, "channels": (1, 2)}, "minutes": 5}
TENSORS = {
    "weight": torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "step": torch.tensor(3.0),
    "count": torch.tensor([2**40]),
    "half": torch.tensor([0.1, 0.2], dtype=torch.bfloat16),
    "none:yet": torch.zeros(0, 5),
}


def save(folder: Path, tensors: dict[str, torch.Tensor] = TENSORS, step: int = 1, **options: Any) -> None:
    Checkpointer(folder, CONFIG, **options).save(tensors, step)


def load(folder: Path, config: dict[str, Any] = CONFIG, **options: Any) -> Checkpoint | None:
    return Checkpointer(folder, config, **options).load()


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    found = load(folder)
    assert found is not None
    return found.tensors


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        assert left[name].dtype == tensor.dtype
        assert left[name].shape == tensor.shape
        assert torch.equal(left[name], tensor)


def test_everything_comes_back(tmp_path: Path) -> None:
    save(tmp_path / "new" / "folder", step=7)
    found = load(tmp_path / "new" / "folder")
    assert found is not None
    assert found.step == 7
    assert_same(found.tensors, TENSORS)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load(tmp_path / "nowhere") is None


@pytest.mark.parametrize("limit", [4, 12, 37, 1000])
@pytest.mark.parametrize("sizes", [[], [0], [1, 1, 1], [9, 3, 0, 30, 2]])
def test_pieces_hold_no_more_than_they_may(tmp_path: Path, sizes: list[int], limit: int) -> None:
    tensors = {f"t{number}": torch.arange(float(size)) + number for number, size in enumerate(sizes)}
    save(tmp_path, tensors, piece_bytes=limit)
    assert_same(loaded(tmp_path), tensors)
    pieces = [files.load_tensors(file).values() for file in tmp_path.glob("*.safetensors")]
    assert max(sum(chunk.nbytes for chunk in piece) for piece in pieces) <= limit


def test_files_stay_under_16_megabytes(tmp_path: Path) -> None:
    large = {"small": torch.ones(1000), "large": torch.arange(9_000_000, dtype=torch.float32)}
    save(tmp_path, large)
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert sum(sizes) > 36_000_000
    assert max(sizes) < 16_000_000
    assert_same(loaded(tmp_path), large)


def test_a_new_checkpoint_replaces_the_old_files(tmp_path: Path) -> None:
    save(tmp_path, piece_bytes=16)
    (tmp_path / ".step-00000001-000.safetensors.x").write_text("what a killed write leaves")
    save(tmp_path, {"one": torch.ones(1)}, step=2)
    assert len(list(tmp_path.iterdir())) == 2
    assert_same(loaded(tmp_path), {"one": torch.ones(1)})


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", [1, 2], ids=["same step", "next step"])
@pytest.mark.parametrize("renames", range(5))
def test_a_kill_at_any_moment_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, renames: int
) -> None:
    """A checkpoint has four pieces here, so five files are renamed into place."""
    save(tmp_path, piece_bytes=32)
    rename, left = files.os.replace, iter(range(renames))

    def rename_or_die(*paths: Any) -> None:
        if next(left, None) is None:
            raise Killed
        rename(*paths)

    changed = {name: tensor + 1 for name, tensor in TENSORS.items()}
    monkeypatch.setattr(files.os, "replace", rename_or_die)
    with pytest.raises(Killed):
        save(tmp_path, changed, step=step, piece_bytes=32)
    assert_same(loaded(tmp_path), TENSORS)
    monkeypatch.undo()
    save(tmp_path, changed, step=step, piece_bytes=32)
    assert_same(loaded(tmp_path), changed)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.2}, r"lr=0\.1, not 0\.2; use that configuration again or another folder"),
        ({"model": {"width": 9, "channels": (1, 2)}}, r"model\.width=8, not 9"),
        ({"model": {"width": 8, "channels": (1, 3)}}, r"model\.channels=\[1, 2\], not \[1, 3\]"),
        ({"model": None}, r"model=\{"),
        ({"seed": 0}, "seed=None, not 0"),
    ],
)
def test_another_configuration_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, CONFIG | change)


def test_fields_without_effect_may_differ(tmp_path: Path) -> None:
    save(tmp_path)
    other = CONFIG | {"minutes": 9, "model": {"width": 9, "channels": (1, 2)}}
    with pytest.raises(ValueError, match=r"model\.width"):
        load(tmp_path, other, may_differ=("minutes",))
    assert load(tmp_path, other, may_differ=("minutes", "model.width")) is not None


class TestDamage:
    @pytest.fixture
    def piece(self, tmp_path: Path) -> Path:
        save(tmp_path)
        (piece,) = tmp_path.glob("*.safetensors")
        return piece

    def test_a_missing_piece_is_refused(self, piece: Path) -> None:
        piece.unlink()
        with pytest.raises(ValueError, match=r"is missing or damaged; remove .* to start over"):
            loaded(piece.parent)

    def test_one_flipped_bit_is_noticed(self, piece: Path) -> None:
        content = bytearray(piece.read_bytes())
        content[-1] ^= 1
        piece.write_bytes(content)
        with pytest.raises(ValueError, match="is missing or damaged"):
            loaded(piece.parent)

    def test_a_truncated_manifest_is_refused(self, piece: Path) -> None:
        manifest = piece.parent / MANIFEST
        manifest.write_text(manifest.read_text()[:-20])
        with pytest.raises(ValueError, match="not valid JSON"):
            loaded(piece.parent)


def test_the_manifest_is_readable_json(tmp_path: Path) -> None:
    save(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["step"] == 1
    assert manifest["config"]["model"]["width"] == 8

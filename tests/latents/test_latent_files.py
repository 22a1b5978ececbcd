import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from itgan_data.latents.files import StoredRows, encode
from itgan_data.latents.stored import LatentSet
from itgan_data.storage.files import load_tensors, open_tensors, save_tensors, write_json

NAME = "latents.safetensors"
INDEX = "latents.safetensors.index.json"
COUNT, WIDTH = 7, 3
MATRIX = torch.arange(COUNT * WIDTH, dtype=torch.float32).view(COUNT, WIDTH)
ROW_BYTES = WIDTH * 4 + 8  # a float32 latent and its label


def save_filled(folder: Path, value: float, rows_per_file: int) -> None:
    """A set that tells by its values which save they are from."""
    latents = LatentSet(torch.full((COUNT, WIDTH), value), torch.arange(COUNT))
    latents.save(folder / NAME, dtype=torch.float32, max_shard_bytes=rows_per_file * ROW_BYTES)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def stored_matrix(tmp_path_factory: pytest.TempPathFactory) -> StoredRows:
    """`MATRIX` in three files."""
    folder = tmp_path_factory.mktemp("rows")
    parts = []
    for number, rows in enumerate(MATRIX.split([2, 4, 1])):
        save_tensors(path := folder / f"{number}", {"other": torch.ones(5), "matrix": rows})
        parts.append(StoredRows.open(open_tensors(path), "matrix"))
    return StoredRows.concatenate(parts)


class TestStoredRows:
    @given(indices=st.lists(st.integers(-COUNT, COUNT - 1), max_size=12))
    def test_places_give_what_a_tensor_gives(self, stored_matrix: StoredRows, indices: list[int]) -> None:
        places = torch.tensor(indices, dtype=torch.int64)
        assert torch.equal(stored_matrix[places], MATRIX[places])

    @given(
        mask=st.lists(st.booleans(), min_size=COUNT, max_size=COUNT), start=st.integers(0, 8), stop=st.integers(0, 8)
    )
    def test_masks_and_slices_do_too(self, stored_matrix: StoredRows, mask: list[bool], start: int, stop: int) -> None:
        assert torch.equal(stored_matrix[torch.tensor(mask)], MATRIX[torch.tensor(mask)])
        assert torch.equal(stored_matrix[start:stop], MATRIX[start:stop])

    def test_files_of_several_types_are_read_as_one_that_holds_them(self, tmp_path: Path) -> None:
        parts = []
        for dtype in (torch.float16, torch.int8):
            save_tensors(path := tmp_path / str(dtype), encode(MATRIX, dtype))
            parts.append(StoredRows.open(open_tensors(path), "latents"))
        assert [part.dtype for part in parts] == [torch.float16, torch.float32]
        both = StoredRows.concatenate(parts)
        assert both.shape == (2 * COUNT, WIDTH)
        torch.testing.assert_close(both[:], torch.cat([MATRIX, MATRIX]), rtol=0, atol=0.1)

    def test_a_matrix_of_any_float_type_is_read(self, tmp_path: Path) -> None:
        for dtype in (torch.float64, torch.bfloat16):
            save_tensors(tmp_path / "file", {"matrix": MATRIX.to(dtype)})
            stored = StoredRows.open(open_tensors(tmp_path / "file"), "matrix")
            assert torch.equal(stored[:], MATRIX.to(dtype))


class TestIndex:
    @pytest.mark.parametrize(
        "content",
        [
            {},
            {"shards": []},
            {"shards": {}},
            {"shards": 3},
            {"shards": {"../latents-00001-of-00001.safetensors": 1}},
            {"shards": {"/etc/passwd": 1}},
            {"shards": {"latents-00002-of-00002.safetensors": 1, "latents-00001-of-00002.safetensors": 1}},
            {"shards": {"latents-00001-of-00003.safetensors": 1, "latents-00002-of-00003.safetensors": 1}},
            {"shards": {f"latents-0000{number}-of-00001.safetensors": 1 for number in (1, 2)}},
        ],
    )
    def test_only_the_names_that_save_gives_are_followed(self, tmp_path: Path, content: dict[str, Any]) -> None:
        save_filled(tmp_path, 1.0, rows_per_file=2)
        write_json(tmp_path / INDEX, content)
        with pytest.raises(ValueError, match=r"index\.json must name latents-00001-of-000NN\.safetensors"):
            LatentSet.load(tmp_path / NAME, mmap=True)

    def test_a_damaged_index_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / INDEX).write_text("{")
        with pytest.raises(ValueError, match="not valid JSON"):
            LatentSet.load(tmp_path / NAME)

    def test_neither_file_nor_index_is_told_apart(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=rf"does not exist, nor does {INDEX}"):
            LatentSet.load(tmp_path / NAME)

    def test_a_shard_that_is_missing_or_of_another_size_is_refused(self, tmp_path: Path) -> None:
        save_filled(tmp_path, 1.0, rows_per_file=2)
        shard = tmp_path / "latents-00003-of-00004.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"00003-of-00004\.safetensors is of \d+ bytes, expected \d+"):
            LatentSet.load(tmp_path / NAME, mmap=True)
        shard.unlink()
        with pytest.raises(ValueError, match=r"00003-of-00004\.safetensors is missing"):
            LatentSet.load(tmp_path / NAME, mmap=True)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"latents": torch.ones(2, WIDTH + 1)}, r"latents of one width, got \[3, 4\]"),
            ({"source_index": torch.arange(2)}, "1 of 4 parts have source_index"),
            ({"soft_labels": torch.ones(2, 9)}, "1 of 4 parts have soft_labels"),
        ],
    )
    def test_shards_that_do_not_belong_together_are_refused(
        self, tmp_path: Path, changes: dict[str, torch.Tensor], message: str
    ) -> None:
        save_filled(tmp_path, 1.0, rows_per_file=2)
        shard = tmp_path / "latents-00002-of-00004.safetensors"
        save_tensors(shard, {**load_tensors(shard), **changes})
        index = json.loads((tmp_path / INDEX).read_text())
        index["shards"][shard.name] = shard.stat().st_size
        write_json(tmp_path / INDEX, index)
        with pytest.raises(ValueError, match=rf"do not belong together: .*{message}"):
            LatentSet.load(tmp_path / NAME, mmap=True)


class TestReplacing:
    @pytest.mark.parametrize(("before", "after"), [(7, 2), (2, 7), (2, 2), (2, 3), (7, 7)])
    def test_an_older_set_is_replaced_whole(self, tmp_path: Path, before: int, after: int) -> None:
        (tmp_path / "new").mkdir()
        save_filled(tmp_path / "new", 2.0, after)
        others = {"latents.json", "latents-1-of-2.safetensors", "other-00001-of-00002.safetensors", "old"}
        for folder in (tmp_path / "old", tmp_path / "old" / "old"):
            folder.mkdir()
        for name in others - {"old"}:
            (tmp_path / "old" / name).touch()
        save_filled(tmp_path / "old", 1.0, before)
        save_filled(tmp_path / "old", 2.0, after)
        assert set(names_in(tmp_path / "old")) == set(names_in(tmp_path / "new")) | others
        assert (LatentSet.load(tmp_path / "old" / NAME).latents == 2.0).all()

    def test_an_error_in_a_later_shard_leaves_the_older_set(self, tmp_path: Path) -> None:
        save_filled(tmp_path, 1.0, rows_per_file=2)
        before = names_in(tmp_path)
        values = torch.ones(COUNT, WIDTH)
        values[-1] = 1e6
        with pytest.raises(ValueError, match="overflows"):
            LatentSet(values, torch.arange(COUNT)).save(tmp_path / NAME, max_shard_bytes=30)
        assert names_in(tmp_path) == before
        assert (LatentSet.load(tmp_path / NAME).latents == 1.0).all()

    @pytest.mark.parametrize(("before", "after"), [(4, 4), (7, 4), (4, 7)])
    def test_a_killed_save_never_leaves_a_mixture(
        self, tmp_path: Path, killed_at_rename: Callable[..., bool], before: int, after: int
    ) -> None:
        found, number = [], 0
        killed = True
        while killed:
            number += 1
            folder = tmp_path / f"{number}"
            folder.mkdir()
            save_filled(folder, 1.0, before)
            killed = killed_at_rename(number, save_filled, folder, 2.0, after)
            try:
                values = LatentSet.load(folder / NAME).latents.unique().tolist()
            except FileNotFoundError:
                values = []
            found.append(values)
            save_filled(folder, 3.0, after)  # the next save clears away what was left
            assert LatentSet.load(folder / NAME).latents.unique().tolist() == [3.0]
        assert number > 1
        assert found[-1] == [2.0]
        assert all(values in ([1.0], [2.0], []) for values in found)
        assert found[0] == [1.0]
        if 7 in (before, after):  # a single file takes the place of shards, or they of it, without a gap
            assert [] not in found


MEASURE = """
import sys
from pathlib import Path
import torch
from itgan_data.latents import LatentSet

def number(file, field):
    lines = Path("/proc/self", file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

def use(path):
    latents = LatentSet.load(path, mmap=True)
    latents.batch(torch.arange(0, len(latents), 1 + len(latents) // 256))
    return latents

torch.set_num_threads(1)
use(Path(sys.argv[1], "tiny"))
for read in (use, LatentSet.load):
    resident, disk = number("status", "VmRSS") * 1024, number("io", "rchar")
    latents = read(Path(sys.argv[1], "large"))
    print(number("status", "VmRSS") * 1024 - resident, number("io", "rchar") - disk)
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux tells what a process reads")
def test_a_batch_of_a_large_set_reads_its_own_rows_alone(tmp_path: Path) -> None:
    count, width = 100_000, 128
    for name, rows in (("tiny", 1), ("large", count)):
        zeros = torch.zeros(rows, width)
        LatentSet(zeros, torch.arange(rows) % 10).save(tmp_path / name, dtype=torch.float32, max_shard_bytes=2**24)
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    batch, everything = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    size = count * width * 4
    assert len(names_in(tmp_path)) == 1 + math.ceil(size / 2**24) + 1
    assert batch[0] < size / 5
    assert batch[1] < size / 50
    assert min(everything) > 0.9 * size  # so the measure can see it

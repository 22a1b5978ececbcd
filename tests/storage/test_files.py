import hashlib
import json
import math
from pathlib import Path

import pytest
import torch

from itgan_data.storage.files import (
    all_finite,
    check_writable,
    fingerprint,
    load_tensors,
    read_json,
    save_tensors,
    sha256_of,
    write_atomically,
    write_json,
)

TENSORS = {
    "map": torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "transposed": torch.arange(6).view(2, 3).t(),
    "half": torch.ones(2, dtype=torch.float16, requires_grad=True),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 5),
}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestWriteAtomically:
    def test_a_file_appears_whole_and_its_folder_with_it(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "er" / "file.txt"
        with write_atomically(path) as temporary:
            temporary.write_text("half")
            assert not path.exists()
            assert temporary.parent == path.parent  # a rename within one folder is atomic
            assert temporary.suffix == ".txt"  # some writers choose the format by it
        assert path.read_text() == "half"
        assert names_in(path.parent) == ["file.txt"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_error_leaves_the_old_file_and_nothing_else(self, tmp_path: Path, error: type[BaseException]) -> None:
        path = tmp_path / "file"
        path.write_text("old")

        def write_half() -> None:
            with write_atomically(path) as temporary:
                temporary.write_text("new")
                raise error

        with pytest.raises(error):
            write_half()
        assert path.read_text() == "old"
        assert names_in(tmp_path) == ["file"]

    def test_other_users_can_read_the_file(self, tmp_path: Path) -> None:
        with write_atomically(tmp_path / "file"):
            pass
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_sha256_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(dtype: torch.dtype) -> None:
    for size in (1, 7, 100, 4099):  # shorter and longer than what is computed at once
        values = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert all_finite(values)
        for place in (0, size // 2, size - 1):
            for odd in (math.nan, math.inf, -math.inf):
                changed = values.clone()
                changed[place] = odd
                assert not all_finite(changed)
                assert not all_finite(changed.expand(3, size).t())
    assert all_finite(torch.zeros(0))
    assert all_finite(torch.arange(3))


class TestFingerprint:
    def test_depends_on_names_types_shapes_and_values(self) -> None:
        ones = torch.ones(2, 3)
        different = [
            {"a": ones},
            {"b": ones},
            {"a": ones.view(3, 2)},
            {"a": ones.double()},
            {"a": ones.view(torch.int32)},  # the same bytes
            {"a": ones * 2},
            {"a": ones, "b": ones},
        ]
        assert len({fingerprint(tensors) for tensors in different}) == len(different)

    def test_does_not_depend_on_the_layout_in_memory(self) -> None:
        maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
        assert fingerprint({"a": maps}) == fingerprint({"a": maps.to(memory_format=torch.channels_last)})

    def test_takes_any_tensor(self) -> None:
        odd = {"empty": torch.zeros(0, 2), "bool": torch.tensor(True), "bf16": torch.ones(2, dtype=torch.bfloat16)}
        assert fingerprint(odd) == fingerprint({name: tensor.clone() for name, tensor in odd.items()})


class TestCheckWritable:
    @pytest.mark.parametrize("place", ["there", "absent", "absent/deeper/still"])
    def test_what_can_be_written_leaves_no_trace(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "there").mkdir()
        check_writable(tmp_path / place, folder=True)
        check_writable(tmp_path / place / "new.png", folder=False)
        assert names_in(tmp_path) == ["there"]
        assert names_in(tmp_path / "there") == []

    @pytest.mark.parametrize(
        ("place", "folder", "message"),
        [
            ("file", True, "is a file; expected a folder"),
            ("folder", False, "is a folder; expected a file"),
            ("file/below", True, r"cannot be written .Not a directory"),
            ("file/below.png", False, r"cannot be written .Not a directory"),
            ("/proc/nowhere/out", True, "/proc/nowhere/out cannot be written"),
            ("x" * 250, True, "File name too long"),
            ("x" * 300, False, "File name too long"),
        ],
    )
    def test_what_cannot_is_refused(self, tmp_path: Path, place: str, folder: bool, message: str) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
        with pytest.raises(ValueError, match=message):
            check_writable(tmp_path / place, folder=folder)


class TestJson:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_byte_order_marks_and_blank_lines_at_the_end_are_passed_over(self, tmp_path: Path, encoding: str) -> None:
        (tmp_path / "a.json").write_text('{"a": "é"}\n\n', encoding=encoding)
        assert read_json(tmp_path / "a.json") == {"a": "é"}

    def test_round_trips_in_the_order_given(self, tmp_path: Path) -> None:
        content = {"b": [1, 2.5, None], "a": {"ü": True}}
        write_json(tmp_path / "file.json", content)
        assert list(read_json(tmp_path / "file.json").items()) == list(content.items())

    @pytest.mark.parametrize("content", [{"a": float("nan")}, {"a": {1, 2}}])
    def test_what_is_no_json_is_not_written(self, tmp_path: Path, content: dict[str, object]) -> None:
        write_json(tmp_path / "file.json", {"old": 1})
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "file.json", content)
        assert read_json(tmp_path / "file.json") == {"old": 1}

    @pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"[" * 100_000])
    def test_a_damaged_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "file.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"file\.json is not valid JSON"):
            read_json(tmp_path / "file.json")

    def test_only_an_object_will_do(self, tmp_path: Path) -> None:
        (tmp_path / "file.json").write_text(json.dumps([1]))
        with pytest.raises(ValueError, match="must hold a JSON object, got list"):
            read_json(tmp_path / "file.json")

    def test_a_missing_file_is_told_apart(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            read_json(tmp_path / "file.json")


class TestTensors:
    def test_round_trip(self, tmp_path: Path) -> None:
        save_tensors(tmp_path / "file", TENSORS)
        loaded = load_tensors(tmp_path / "file")
        assert loaded.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert loaded[name].dtype == tensor.dtype
            torch.testing.assert_close(loaded[name], tensor.detach(), rtol=0, atol=0)

    def test_equal_tensors_give_equal_bytes(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            save_tensors(tmp_path / name, {key: tensor.detach().clone() for key, tensor in TENSORS.items()})
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()

    @pytest.mark.parametrize("share", [0.01, 0.1, 0.9, 0.999])
    def test_a_truncated_file_is_refused(self, tmp_path: Path, share: float) -> None:
        save_tensors(tmp_path / "file", TENSORS)
        content = (tmp_path / "file").read_bytes()
        (tmp_path / "file").write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match="file is truncated or not a safetensors file"):
            load_tensors(tmp_path / "file")

    def test_a_missing_file_is_told_apart(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nothing does not exist"):
            load_tensors(tmp_path / "nothing")

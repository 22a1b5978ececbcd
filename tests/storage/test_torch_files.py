"""Files of `torch.save` are data."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from itgan_data.storage import torch_files
from itgan_data.storage.files import check_sha256, load_tensors
from itgan_data.storage.torch_files import read_torch_file


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (Path("harm"), "done")


@pytest.mark.parametrize("modern", [True, False])
def test_what_was_saved_is_read(tmp_path: Path, modern: bool) -> None:
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    torch.save(
        {"step": 3, "state_dict": {"weight": weights}}, tmp_path / "a.pth", _use_new_zipfile_serialization=modern
    )
    content = read_torch_file(tmp_path / "a.pth")
    assert content["step"] == 3
    assert torch.equal(content["state_dict"]["weight"], weights)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Malicious()}, tmp_path / "torch.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
    for name in ("torch.pth", "plain.pth"):
        with pytest.raises(ValueError, match=rf"{name} holds whole objects .* needs code to load, which is refused"):
            read_torch_file(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_a_file_cut_short_or_changed_is_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(9.0)}, tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "whole.pth").read_bytes()
    messages = []
    for place in range(0, len(whole), 7):
        for damaged in (whole[:place], whole[:place] + b"\xff" + whole[place + 1 :]):
            (tmp_path / "damaged.pth").write_bytes(damaged)
            try:
                read_torch_file(tmp_path / "damaged.pth")
            except ValueError as error:
                messages.append(str(error))
    assert len(messages) > len(whole) / 7  # a changed number is not found out
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "is an HTML page"),
        (b"<HTML><body>404</body></HTML>", "is an HTML page"),
        (b"labels,1,2", "is damaged, or no file of torch.save"),
    ],
)
def test_what_a_failed_download_leaves_is_told_apart(tmp_path: Path, content: bytes, message: str) -> None:
    """Here, and wherever a safetensors file or one with a checksum is expected."""
    (path := tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=f"file {message}"):
        read_torch_file(path)
    if "damaged" not in message:
        for read in (load_tensors, lambda path: check_sha256(path, {"file": "0" * 64})):
            with pytest.raises(ValueError, match=f"file {message}"):
                read(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_cut_short_is_called_so(tmp_path: Path, share: float) -> None:
    torch.save({"weight": torch.arange(999.0)}, tmp_path / "file.pth")
    content = (tmp_path / "file.pth").read_bytes()
    (tmp_path / "file.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"file\.pth is truncated: .* its end is missing"):
        read_torch_file(tmp_path / "file.pth")


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.Sequential(nn.ReLU()), nn.BatchNorm1d(2)])
def test_a_whole_module_is_called_so(tmp_path: Path, module: nn.Module) -> None:
    for content in (module, {"generator": module, "step": 3}):
        torch.save(content, tmp_path / "file.pth")
        with pytest.raises(ValueError, match=r"holds whole objects \(torch\.nn\..*save `module\.state_dict\(\)`"):
            read_torch_file(tmp_path / "file.pth")


def test_a_generator_and_its_average_may_share_what_is_stored(tmp_path: Path) -> None:
    state = {"weight": torch.randn(100, 100)}
    torch.save({"G": state, "G_ema": {"weight": state["weight"].t()}, "shadow": dict(state)}, tmp_path / "file.pth")
    assert torch.equal(read_torch_file(tmp_path / "file.pth")["G_ema"]["weight"], state["weight"].t())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_torch_file(tmp_path / "nothing.pth")


@pytest.mark.parametrize(("content", "got"), [(torch.zeros(1), "Tensor"), ([1], "list"), ({1: 2}, "dict")])
def test_anything_but_names_and_values_is_refused(tmp_path: Path, content: object, got: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"must hold a dictionary with names for keys, got {got}"):
        read_torch_file(tmp_path / "other.pth")


def test_a_view_that_repeats_one_number_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(1).expand(1 << 20, 1 << 20)}}, tmp_path / "large.pth")
    with pytest.raises(ValueError, match=rf"describes {1 << 42} bytes of tensors, but has \d+$"):
        read_torch_file(tmp_path / "large.pth")


@pytest.mark.parametrize("tensor", [torch.eye(4).to_sparse(), torch.empty(4, device="meta")], ids=["sparse", "meta"])
def test_tensors_that_are_not_plain_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"state_dict": {"weight": tensor}}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="holds a tensor that is sparse or without values"):
        read_torch_file(tmp_path / "odd.pth")


def test_a_dictionary_that_holds_itself_is_read(tmp_path: Path) -> None:
    content: dict[str, object] = {"weight": torch.zeros(2)}
    content["state_dict"] = content
    torch.save(content, tmp_path / "loop.pth")
    assert read_torch_file(tmp_path / "loop.pth").keys() == content.keys()


def test_an_archive_that_grows_as_it_is_read_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1 << 16)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"bomb\.pth has \d{4} bytes and unpacks to \d{6}, which torch\.save never"):
        read_torch_file(tmp_path / "bomb.pth")


def test_a_file_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, tmp_path / "file.pth")
    size = (tmp_path / "file.pth").stat().st_size
    monkeypatch.setattr(torch_files, "MAX_BYTES", size - 1)
    with pytest.raises(ValueError, match=f"has {size} bytes, expected at most {size - 1}"):
        read_torch_file(tmp_path / "file.pth")

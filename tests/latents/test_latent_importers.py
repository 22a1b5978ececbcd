"""Released latents, which come without labels."""

from pathlib import Path
from typing import Any

import pytest
import torch

from itgan_data.latents.importers import import_latents, read_labels
from itgan_data.latents.stored import LatentSet

LABELS = torch.arange(500) % 10


@pytest.fixture
def released(fixture_folder: Path) -> Path:
    """A file of the released layout, of 500 latents."""
    return fixture_folder / "EfficientGAN_final_CIFAR10_ConvNet_lrz0.001_exp0.pt"


def test_row_i_is_training_image_i(released: Path) -> None:
    latents = import_latents(released, LABELS)
    assert (len(latents), latents.latent_dim, latents.num_classes) == (500, 128, 10)
    assert torch.equal(latents.latents, torch.load(released, weights_only=True)["z_eff_all"])
    assert torch.equal(latents.labels, LABELS)
    assert latents.source_index is not None
    assert latents.source_index.tolist() == list(range(500))


def test_they_round_trip_through_our_files(released: Path, tmp_path: Path) -> None:
    latents = import_latents(released, LABELS)
    latents.save(tmp_path / "latents.safetensors", dtype=torch.float32)
    loaded = LatentSet.load(tmp_path / "latents.safetensors")
    assert torch.equal(loaded.latents, latents.latents)
    assert torch.equal(loaded.labels, latents.labels)
    assert loaded.source_index is not None


def test_those_of_the_inversion_in_half_precision(tmp_path: Path) -> None:
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).half()
    torch.save({"z_inverse_all": values}, tmp_path / "GANInversion_final.pt")
    latents = import_latents(tmp_path / "GANInversion_final.pt", torch.tensor([0, 0, 2, 1]))
    assert torch.equal(latents.latents, values.float())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:-1], "has 500 latents and there are 499 labels; give the labels of all training images"),
        (LABELS[:0], "has 500 latents and there are 0 labels"),
        (LABELS.float(), r"labels must be an int64 tensor \[500\].*got torch\.float32 \[500\]"),
        (LABELS.view(2, 250), r"labels must be an int64 tensor \[500\].*got torch\.int64 \[2, 250\]"),
        (LABELS - 1, "labels must not be negative, got -1"),
        (None, r"labels must be an int64 tensor \[500\].*got NoneType"),
        (LABELS.tolist(), r"labels must be an int64 tensor \[500\].*got list"),
    ],
    ids=["one too few", "none at all", "floats", "two columns", "negative", "missing", "list"],
)
def test_labels_that_do_not_fit_are_refused_in_one_line(released: Path, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        import_latents(released, labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"must hold one of \('z_eff_all', 'z_inverse_all'\) alone, got \[\]"),
        ({"z": torch.zeros(2, 3)}, r"alone, got \['z'\]"),
        ({"z_eff_all": torch.zeros(2, 3), "epoch": 1}, r"alone, got \['z_eff_all', 'epoch'\]"),
        ({"z_eff_all": torch.zeros(2)}, r"latents as a float tensor \[N, latent_dim\], got torch\.float32 \[2\]"),
        ({"z_eff_all": torch.zeros(2, 3, dtype=torch.int64)}, r"got torch\.int64 \[2, 3\]"),
        ({"z_eff_all": [1.0, 2.0]}, "got list"),
        ({"z_eff_all": torch.tensor([[0.0], [torch.nan]])}, r"latents must be finite, got NaN .*\(first: 1\)"),
        (torch.zeros(2, 3), "must hold a dictionary with names for keys, got Tensor"),
    ],
)
def test_other_contents_are_refused_in_one_line(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "latents.pt")
    with pytest.raises(ValueError, match=message) as caught:
        import_latents(tmp_path / "latents.pt", torch.tensor([0, 1]))
    assert "\n" not in str(caught.value)


def test_labels_are_read_from_lines_of_text(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        for end in ("", "\n", "\r\n\r\n \n"):
            (tmp_path / "labels.txt").write_text(f"6\n 9 \n10\r\n0{end}", encoding=encoding)
            assert read_labels(tmp_path / "labels.txt").tolist() == [6, 9, 10, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"6\n-1\n", "line 2 of .* must be a label, such as 6, got '-1'"),
        (b"6\n\n9\n", "line 2 of .* got ''"),
        (b"frog\n", "line 1 of .* got 'frog'"),
        (b"6.0\n", "line 1 of .* got '6.0'"),
        (b"6\n\n7\n", "line 2 of .* got ''"),
        (b"9" * 1000, "line 1 of .* got '99999"),
        (b"\x80\x02}q\x00", "is not a text file"),
    ],
)
def test_other_files_of_labels_are_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_labels(tmp_path / "labels.txt")
    assert "\n" not in str(caught.value)

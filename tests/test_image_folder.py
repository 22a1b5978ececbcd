from pathlib import Path

import pytest
from PIL import Image

from itgan_data.datasets import load_images, open_dataset


class TestImageFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Two classes of two training images and one test image, whose red value is 10 times their number."""
        for number, place in enumerate(["train/cat", "train/cat", "train/dog", "train/dog", "test/cat", "test/dog"]):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (10 * number, 0, 0)).save(tmp_path / place / f"{number}.png")
        return tmp_path

    def test_an_image_folder_has_its_splits(self, folder: Path) -> None:
        train, test = (open_dataset(f"imagefolder:{folder}", split) for split in ("train", "test"))
        assert train.classes == test.classes == ["cat", "dog"]
        assert load_images(train).images[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
        assert load_images(train).labels.tolist() == [0, 0, 1, 1]
        assert load_images(test).images[:, 0, 0, 0].tolist() == [40, 50]

    def test_a_folder_without_splits_is_both(self, folder: Path) -> None:
        for split in ("train", "test"):
            assert len(open_dataset(f"imagefolder:{folder / 'train'}", split)) == 4

    def test_an_empty_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        with pytest.raises(ValueError, match="has no images"):
            open_dataset(f"imagefolder:{tmp_path / 'photos'}", "train")

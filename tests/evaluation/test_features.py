import os
from pathlib import Path

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from itgan_data.evaluation.features import FeatureNetwork, inception
from itgan_data.images import LabeledImages


class TestFeatureNetwork:
    network = FeatureNetwork("mean colour", lambda unit: unit.mean(dim=(2, 3)))

    def test_gives_features_of_unit_images(self, tiny_images: LabeledImages) -> None:
        features = self.network.features(tiny_images.images)
        torch.testing.assert_close(features, tiny_images.images.float().mean(dim=(2, 3)) / 255)

    def test_an_image_does_not_depend_on_its_batch(self, tiny_images: LabeledImages) -> None:
        whole = self.network.features(tiny_images.images)
        assert torch.equal(whole, self.network.features(tiny_images.images, batch_size=7))

    def test_keeps_no_gradients(self, tiny_images: LabeledImages) -> None:
        scale = torch.ones((), requires_grad=True)
        network = FeatureNetwork("scaled", lambda unit: scale * unit.flatten(1))
        assert not network.features(tiny_images.images).requires_grad

    def test_refuses_images_of_another_range(self, tiny_images: LabeledImages) -> None:
        with pytest.raises(ValueError, match=r"images must be uint8 .* got torch.float32"):
            self.network.features(tiny_images.images / 255)
        with pytest.raises(ValueError, match=r"not empty, got torch.uint8 \(0, 3, 8, 8\)"):
            self.network.features(tiny_images.images[:0])


class Untrained(FeatureExtractorInceptionV3):
    """The FID's Inception with random weights, whatever file it is given."""

    def load_state_dict(self, *_: object) -> None:
        pass


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


class TestInception:
    def test_gives_what_torch_fidelity_gives_with_the_same_weights(self, tmp_path: Path) -> None:
        torch.save({}, tmp_path / "none.pth")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            original = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=tmp_path / "none.pth")
        torch.save(original.state_dict(), tmp_path / "weights.pth")
        network = inception(tmp_path / "weights.pth")
        images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        features = network.features(images)
        assert network.name == "Inception v3"
        assert features.shape == (2, 2048)
        assert torch.equal(features, original(images)[0])

    def test_runs_no_code_that_the_file_holds(self, tmp_path: Path) -> None:
        torch.save({"fc.weight": Hostile(tmp_path / "made")}, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="needs code to load"):
            inception(tmp_path / "weights.pth")
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("content", [{}, {"fc.weight": torch.zeros(2, 2)}, [1, 2], 3])
    def test_refuses_other_weights(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="no state dict of the FID's Inception"):
            inception(tmp_path / "weights.pth")

    def test_refuses_damaged_files_and_says_so_when_there_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "weights.pth").write_bytes(b"no weights")
        with pytest.raises(ValueError, match="is damaged"):
            inception(tmp_path / "weights.pth")
        with pytest.raises(FileNotFoundError):
            inception(tmp_path / "nowhere.pth")

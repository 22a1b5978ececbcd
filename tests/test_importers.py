import pickle
from pathlib import Path

import pytest
import torch

from itgan_data.files import load_tensors
from itgan_data.generators.importers import import_generator


@pytest.fixture
def released(fixture_folder: Path) -> Path:
    """A checkpoint in the layout of the released IT-GAN generators, of fewer channels."""
    return fixture_folder / "biggan_itgan_cifar10.pth"


def rewritten(released: Path, folder: Path, **changes: torch.Tensor | None) -> Path:
    """The same checkpoint with tensors replaced, or removed."""
    state = torch.load(released, weights_only=True) | changes
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, folder / "changed.pth")
    return folder / "changed.pth"


def test_the_reference_images_are_reproduced(released: Path, fixture_folder: Path, global_rng_untouched: None) -> None:
    reference = load_tensors(fixture_folder / "biggan_itgan_cifar10.io.safetensors")
    generator = import_generator(released)
    assert (generator.latent_dim, generator.num_classes) == (128, 10)
    assert generator.image_shape == tuple(reference["images"].shape[1:])
    images = generator(reference["latents"], reference["labels"])
    torch.testing.assert_close(images, reference["images"], rtol=0, atol=1e-5)


def test_the_classes_are_those_of_the_reference(released: Path, fixture_folder: Path) -> None:
    reference = load_tensors(fixture_folder / "biggan_itgan_cifar10.io.safetensors")
    images = import_generator(released)(reference["latents"], (reference["labels"] + 1) % 10)
    assert (images - reference["images"]).abs().amax(dim=(1, 2, 3)).min() > 0.01


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (Path("harm"), "done")


class TestRefused:
    def test_a_pickle_with_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        torch.save({"linear.u0": Malicious()}, tmp_path / "torch.pth")
        (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
        for name in ("torch.pth", "plain.pth"):
            with pytest.raises(ValueError, match=f"{name} is damaged or needs code to load, which is refused"):
                import_generator(tmp_path / name)
        assert not (tmp_path / "harm").exists()

    @pytest.mark.parametrize("size", [0, 100, 300_000])
    def test_a_truncated_file(self, released: Path, tmp_path: Path, size: int) -> None:
        (tmp_path / "short.pth").write_bytes(released.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"short\.pth is damaged"):
            import_generator(tmp_path / "short.pth")

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            import_generator(tmp_path / "nothing.pth")

    def test_an_unknown_family(self, tmp_path: Path) -> None:
        torch.save({"mapping.fc0.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"unknown family \(first keys \['mapping.*'\]\); expected IT-GAN"):
            import_generator(tmp_path / "other.pth")

    @pytest.mark.parametrize(
        ("content", "got"), [({"state_dict": {"a": torch.zeros(1)}}, r"\['state_dict'\]"), (torch.zeros(1), "Tensor")]
    )
    def test_what_is_no_bare_state_dict(self, tmp_path: Path, content: object, got: str) -> None:
        torch.save(content, tmp_path / "wrapped.pth")
        with pytest.raises(ValueError, match=f"must hold a bare state dict of tensors, got {got}"):
            import_generator(tmp_path / "wrapped.pth")

    @pytest.mark.parametrize(
        "change",
        [
            {"blocks.1.0.conv1.weight": None},
            {"blocks.1.0.attention.weight": torch.zeros(3)},
            {"output_layer.2.bias": torch.zeros(7)},
        ],
        ids=["missing", "unknown", "another shape"],
    )
    def test_tensors_that_do_not_fit_in_one_line(
        self, released: Path, tmp_path: Path, change: dict[str, torch.Tensor | None]
    ) -> None:
        with pytest.raises(ValueError, match="does not fit a BigGAN") as caught:
            import_generator(rewritten(released, tmp_path, **change))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["linear.weight", "linear.u0", "blocks.0.0.bn1.gain.weight"])
    def test_a_checkpoint_without_the_marks_of_the_family(self, released: Path, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match="unknown family"):
            import_generator(rewritten(released, tmp_path, **{name: None}))

import pytest
import torch

from itgan_data.generators.biggan import BigGANConfig
from itgan_data.images import LabeledImages
from itgan_data.latents.fresh import RandomLatents
from itgan_data.pretraining.batches import Batches
from itgan_data.pretraining.config import GeneratorTrainerConfig

CONFIG = GeneratorTrainerConfig(
    generator=BigGANConfig(num_classes=3, latent_dim=5, channels=(8, 8)), batch_size=6, discriminator_steps=2
)
ROWS = torch.arange(6)
MANY = torch.arange(60_000)
WEIGHTS = torch.tensor([1.0, 0.0, 2.0, 4.0, 3.0, 0.0, 0.0, 5.0, 1.0, 0.0])


def grey_images(count: int = 10) -> LabeledImages:
    """Image k is of brightness k all over."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    return LabeledImages(images, torch.arange(count) % 3, ("a", "b", "c"))


def make_batches(weights: torch.Tensor | None = None, config: GeneratorTrainerConfig = CONFIG) -> Batches:
    return Batches(config, grey_images(), weights)


def which(images: torch.Tensor) -> list[int]:
    """The numbers of signed grey images."""
    return ((images[:, 0, 4, 4] + 1) * 127.5).round().long().tolist()


class TestShares:
    @pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["passes", "weighted"])
    @pytest.mark.parametrize("step", [0, 1, 7])
    def test_some_rows_are_those_of_the_whole_batch(self, weights: torch.Tensor | None, step: int) -> None:
        """Batches of six from ten images: some lie in two passes, and some rows in the later one alone."""
        batches = make_batches(weights)
        for part in ([0, 1, 2], [3, 4, 5], [4], [5, 0]):
            rows = torch.tensor(part)
            for method in (batches.real, batches.latents):
                for whole, share in zip(method(step, 1, ROWS), method(step, 1, rows), strict=True):
                    assert torch.equal(share, whole[rows])

    def test_another_update_sees_other_rows(self) -> None:
        batches = make_batches(WEIGHTS)
        updates = [(step, substep) for step in range(3) for substep in range(3)]
        assert len({tuple(batches.latents(*update, ROWS)[0].flatten().tolist()) for update in updates}) == 9
        assert len({tuple(which(batches.real(*update, MANY[:50])[0])) for update in updates}) == 9


def test_labels_do_not_follow_fresh_latents_of_the_same_seed() -> None:
    latents, _ = RandomLatents(len(MANY), 5, 3, truncation=2.0, seed=CONFIG.seed).batch(MANY)
    _, labels = make_batches().latents(0, 0, MANY)
    correlation = torch.corrcoef(torch.stack([*latents.double().unbind(1), labels.double()]))[-1, :-1]
    assert correlation.abs().max() < 5 / len(MANY) ** 0.5


class TestSampleWeights:
    def test_are_probabilities_up_to_scale(self) -> None:
        images, labels = make_batches(WEIGHTS).real(3, 1, MANY)
        shares = torch.bincount(torch.tensor(which(images)), minlength=10) / len(MANY)
        torch.testing.assert_close(shares, WEIGHTS / WEIGHTS.sum(), atol=0.01, rtol=0)
        assert (shares[WEIGHTS == 0] == 0).all()
        assert labels.tolist() == [number % 3 for number in which(images)]
        assert which(make_batches(8 * WEIGHTS).real(3, 1, MANY)[0]) == which(images)

    def test_many_small_ones_count_beside_a_large_one(self) -> None:
        """A sixteenth of the draws falls on 200,000 images whose weights are lost beside the large ones as float32."""
        weights = torch.full((200_003,), 1e-12, dtype=torch.float64)
        weights[:3] = 1e-6
        brightness = (weights < 1e-6).to(torch.uint8).mul(255).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
        images = LabeledImages(brightness, torch.arange(len(weights)) % 3, ("a", "b", "c"))
        shown, _ = Batches(CONFIG, images, weights).real(0, 0, MANY[:20_000])
        assert abs((shown > 0).float().mean() - 0.0625) < 0.006

    def test_the_reference_is_what_training_sees(self) -> None:
        reference = make_batches(WEIGHTS).reference(20_000)
        shares = torch.bincount(reference.images[:, 0, 0, 0].long(), minlength=10) / len(reference)
        torch.testing.assert_close(shares, WEIGHTS / WEIGHTS.sum(), atol=0.02, rtol=0)
        plain = make_batches().reference(7).images[:, 0, 0, 0].tolist()
        assert len(set(plain)) == 7
        assert make_batches().reference(7).images[:, 0, 0, 0].tolist() == plain

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            (torch.ones(9), r"must be float \[10\], one for each real image, got torch\.float32 \(9,\)"),
            (torch.ones(10, dtype=torch.int64), r"must be float \[10\].*, got torch\.int64 \(10,\)"),
            (torch.tensor([-0.1] + [1.0] * 9), "must be finite and not negative"),
            (torch.tensor([float("nan")] + [1.0] * 9), "must be finite and not negative"),
            (torch.zeros(10), "the sample_weights of class 'a' are all zero"),
            (torch.tensor([1.0, 0.0, 1.0] * 3 + [1.0]), "the sample_weights of class 'b' are all zero"),
        ],
    )
    def test_that_do_not_fit_are_refused(self, weights: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_batches(weights)

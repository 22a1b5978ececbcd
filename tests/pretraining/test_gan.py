import itertools
import json
import signal
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_as_near_as_rounding, stops_by
from PIL import Image

from itgan_data.augmentation import diff_augment
from itgan_data.evaluation.features import FeatureNetwork
from itgan_data.generators.biggan import BatchStatistics, BigGAN, BigGANConfig
from itgan_data.generators.frozen import fold
from itgan_data.generators.spectral import SpectralNorm
from itgan_data.generators.store import load_generator
from itgan_data.images import LabeledImages
from itgan_data.pretraining.config import GeneratorTrainerConfig
from itgan_data.pretraining.discriminator import ProjectionDiscriminator, discriminator_hinge, generator_hinge
from itgan_data.pretraining.gan import GeneratorTrainer
from itgan_data.running.checkpoint import MANIFEST
from itgan_data.running.lock import workdir_lock
from itgan_data.running.shards import Shard
from itgan_data.storage.files import read_json

Saved = tuple[int, list[str]]  # the step, and the checksums of all that training goes on from
CONFIG = GeneratorTrainerConfig(
    generator=BigGANConfig(num_classes=3, latent_dim=8, channels=(8, 8, 8, 8)),
    discriminator_channels=8,
    steps=4,
    batch_size=4,
    precision="float32",
    preview_steps=2,
)
# Another value of every field, and what is said of it in a workdir of CONFIG; None where it may differ.
OTHER: dict[str, tuple[Any, str | None]] = {
    "generator": (replace(CONFIG.generator, latent_dim=9), "generator.latent_dim=8, not 9"),
    "discriminator_channels": (9, "discriminator_channels=8, not 9"),
    "initialization": ("orthogonal", "initialization='n02', not 'orthogonal'"),
    "steps": (9, None),
    "batch_size": (6, "batch_size=4, not 6"),
    "micro_batches": (2, "micro_batches=1, not 2"),
    "discriminator_steps": (2, "discriminator_steps=1, not 2"),
    "lr_generator": (1e-3, "lr_generator=0.0002, not 0.001"),
    "lr_discriminator": (1e-3, "lr_discriminator=0.0002, not 0.001"),
    "beta1": (0.5, "beta1=0.0, not 0.5"),
    "beta2": (0.5, "beta2=0.999, not 0.5"),
    "augmentation": ("color", "augmentation='color_crop_cutout', not 'color'"),
    "flips": (False, "flips=True, not False"),
    "ema_decay": (0.5, "ema_decay=0.9999, not 0.5"),
    "precision": ("bfloat16", "precision='float32', not 'bfloat16'"),
    "checkpoint_minutes": (9.0, None),
    "log_steps": (9, None),
    "preview_steps": (9, None),
    "monitor_steps": (9, None),
    "monitor_samples": (9, None),
    "collapse_ratio": (9.0, None),
    "collapse_checks": (9, None),
    "seed": (1, "seed=0, not 1"),
}
LATENTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3


def real_images(count: int = 12, side: int = 32, num_classes: int = 3) -> LabeledImages:
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % num_classes
    return LabeledImages(pixels.to(torch.uint8), labels, [str(label) for label in range(num_classes)])


def make_trainer(workdir: Path, config: GeneratorTrainerConfig = CONFIG, **more: Any) -> GeneratorTrainer:
    return GeneratorTrainer(config, real_images(), workdir=workdir, device="cpu", **more)


def train(workdir: Path, config: GeneratorTrainerConfig = CONFIG) -> BigGAN:
    return make_trainer(workdir, config).run()


PIXELS = FeatureNetwork("mean colours", lambda unit: F.avg_pool2d(unit, 16).flatten(1))


def worsening() -> FeatureNetwork:
    """Features in which what comes later is farther away, whatever it is."""
    calls = itertools.count()
    return FeatureNetwork("growing colours", lambda unit: F.avg_pool2d(unit, 16).flatten(1) + 10.0 ** next(calls))


def everything(workdir: Path) -> Saved:
    """The step and the checksums of all that training goes on from: weights, buffers, averages, optimisers."""
    manifest = read_json(workdir / "checkpoint" / MANIFEST)
    return manifest["step"], list(manifest["pieces"].values())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    train(workdir)
    return everything(workdir)


class TestResuming:
    @pytest.mark.parametrize("step", [1, 2, 3])
    def test_a_prolonged_run_ends_as_a_long_one(
        self, tmp_path: Path, step: int, uninterrupted: Saved, global_rng_untouched: None
    ) -> None:
        train(tmp_path, replace(CONFIG, steps=step))
        assert everything(tmp_path)[0] == step
        train(tmp_path)
        assert everything(tmp_path) == uninterrupted

    @pytest.mark.parametrize("calls", range(5))
    def test_an_error_in_the_middle_of_a_step_spoils_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, uninterrupted: Saved
    ) -> None:
        """Ctrl-C between the updates of the discriminator and of the generator, which take turns."""
        left, update = iter(range(calls)), torch.optim.Adam.step

        def update_or_stop(optimizer: torch.optim.Adam) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            update(optimizer)

        trainer = make_trainer(tmp_path, replace(CONFIG, checkpoint_minutes=1e-9))
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.Adam, "step", update_or_stop)
            with pytest.raises(KeyboardInterrupt):
                trainer.run()
        train(tmp_path)
        assert everything(tmp_path) == uninterrupted

    @pytest.mark.parametrize("rename", [2, 3, 6, 9])
    def test_a_killed_run_goes_on(
        self, tmp_path: Path, rename: int, uninterrupted: Saved, killed_at_rename: Callable[..., bool]
    ) -> None:
        assert killed_at_rename(rename, train, tmp_path, replace(CONFIG, checkpoint_minutes=1e-9))
        train(tmp_path)
        assert everything(tmp_path) == uninterrupted

    def test_a_finished_run_gives_its_generator_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = train(tmp_path)(LATENTS, LABELS)
        monkeypatch.delattr(GeneratorTrainer, "train_step")
        assert torch.equal(train(tmp_path)(LATENTS, LABELS), first)

    def test_a_run_that_has_not_stepped_yet_resumes_too(self, tmp_path: Path, uninterrupted: Saved) -> None:
        make_trainer(tmp_path).save()
        train(tmp_path)
        assert everything(tmp_path) == uninterrupted

    def test_every_field_that_determines_the_work_is_refused_by_name(self, tmp_path: Path) -> None:
        assert OTHER.keys() == {field.name for field in fields(GeneratorTrainerConfig)}  # a new field needs a line
        make_trainer(tmp_path).save()
        for name, (value, message) in OTHER.items():
            if message is None:
                assert make_trainer(tmp_path, replace(CONFIG, **{name: value})).step == 0
                continue
            with pytest.raises(ValueError, match=f"holds work with {message}; use that configuration again"):
                make_trainer(tmp_path, replace(CONFIG, **{name: value}))

    @pytest.mark.parametrize("calls", [0, 1, 4])
    def test_a_signal_lets_the_step_be_finished_and_saved(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        calls: int,
        uninterrupted: Saved,
        stop_signal: signal.Signals,
    ) -> None:
        """Every other update is one of the discriminator."""
        left, update = iter(range(calls)), torch.optim.Adam.step

        def update_and_interrupt(optimizer: torch.optim.Adam) -> None:
            if next(left, "none") == "none":
                monkeypatch.setattr(torch.optim.Adam, "step", update)
                signal.raise_signal(stop_signal)
            update(optimizer)

        trainer = make_trainer(tmp_path)
        monkeypatch.setattr(torch.optim.Adam, "step", update_and_interrupt)
        with stops_by(stop_signal):
            trainer.run()
        assert everything(tmp_path)[0] == calls // 2 + 1
        train(tmp_path)
        assert everything(tmp_path) == uninterrupted

    def test_a_second_run_is_refused(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        with workdir_lock(tmp_path, Shard(1, 1)):
            for start in (trainer.run, partial(make_trainer, tmp_path)):
                with pytest.raises(RuntimeError, match=f"another run is at work in {tmp_path}"):
                    start()

    def test_fewer_steps_than_were_done_are_refused(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        trainer.train_step()
        trainer.train_step()
        trainer.save()
        with pytest.raises(ValueError, match="is at step 2, beyond steps=1; raise steps"):
            make_trainer(tmp_path, replace(CONFIG, steps=1))

    def test_other_data_are_refused(self, tmp_path: Path) -> None:
        make_trainer(tmp_path).save()
        with pytest.raises(ValueError, match="holds work with data="):
            GeneratorTrainer(CONFIG, real_images(13), workdir=tmp_path, device="cpu")

    def test_other_weights_of_the_data_are_refused(self, tmp_path: Path) -> None:
        weights = torch.arange(12.0)
        make_trainer(tmp_path, sample_weights=weights).save()
        assert make_trainer(tmp_path, sample_weights=weights.clone()).step == 0
        with pytest.raises(ValueError, match="holds work with sample_weights="):
            make_trainer(tmp_path, sample_weights=weights + 1)
        with pytest.raises(ValueError, match=r"holds work with sample_weights='\w+', not None"):
            make_trainer(tmp_path)


class TestRun:
    def test_what_it_leaves(self, tmp_path: Path) -> None:
        average = train(tmp_path)
        assert not average.training
        loaded = load_generator(tmp_path / "generator")
        assert torch.equal(loaded(LATENTS, LABELS), fold(average)(LATENTS, LABELS))
        samples = sorted((tmp_path / "samples").iterdir())
        assert [path.name for path in samples] == ["0000002.png", "0000004.png"]
        with Image.open(samples[0]) as grid:
            assert grid.size == (2 + 10 * 34, 2 + 3 * 34)  # ten images of each class
        assert max(file.stat().st_size for file in tmp_path.rglob("*.*")) < 16_000_000

    def test_max_minutes_stops_it_with_a_checkpoint(self, tmp_path: Path) -> None:
        make_trainer(tmp_path).run(max_minutes=0)
        assert everything(tmp_path)[0] == 1
        assert load_generator(tmp_path / "generator").image_shape == (3, 32, 32)

    def test_bfloat16_keeps_float32_weights(self, tmp_path: Path) -> None:
        average = train(tmp_path, replace(CONFIG, precision="bfloat16"))
        assert {tensor.dtype for tensor in average.state_dict().values()} == {torch.float32}
        assert average(LATENTS, LABELS).isfinite().all()

    def test_without_a_decay_the_average_is_the_generator(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, replace(CONFIG, ema_decay=0.0))
        average = trainer.run()
        for name, tensor in trainer.state.generator.state_dict().items():
            torch.testing.assert_close(average.state_dict()[name], tensor)

    def test_the_average_moves_faster_in_the_first_steps(self, tmp_path: Path) -> None:
        state = make_trainer(tmp_path, replace(CONFIG, ema_decay=0.9)).state
        for step, decay in ((0, 0.1), (8, 0.5), (1000, 0.9)):
            state.average.linear.weight.fill_(1.0)
            state.generator.linear.weight.data.fill_(0.0)
            state.update_average(step)
            assert state.average.linear.weight.mean() == pytest.approx(decay)

    def test_the_average_lags_behind_the_generator(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        start = trainer.state.average.linear.weight.clone()
        average = trainer.run().linear.weight
        current = trainer.state.generator.linear.weight
        assert 0 < (average - start).norm() < (current - start).norm()


class TestStep:
    @pytest.mark.parametrize(
        ("training", "loss"), [("lr_discriminator", 0), ("lr_generator", 1)], ids=["discriminator", "generator"]
    )
    def test_each_side_lowers_its_own_loss(self, tmp_path: Path, training: str, loss: int) -> None:
        """The other side stands still."""
        still = {"lr_discriminator": 1e-9, "lr_generator": 1e-9}
        trainer = make_trainer(tmp_path, replace(CONFIG, **(still | {training: 5e-3}), augmentation=""))
        losses = [trainer.train_step()[loss] for _ in range(40)]
        assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.05

    def test_the_discriminator_sees_every_real_image_once_a_pass(self, tmp_path: Path) -> None:
        """Twelve images, two updates of the discriminator with four each a step: two passes are three steps."""
        trainer = make_trainer(tmp_path, replace(CONFIG, augmentation="", flips=False, discriminator_steps=2))
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        trainer.state.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
        for _ in range(3):
            trainer.train_step()
        assert [len(images) for images, _ in seen] == [8, 8, 4] * 3  # real and synthetic; synthetic alone
        known = {image.numpy().tobytes(): number for number, image in enumerate(real_images().images)}
        shown = []
        for images, labels in [call for call in seen if len(call[0]) == 8]:
            for image, label in zip(images[:4], labels[:4], strict=True):
                shown.append(known[((image + 1) * 127.5).round().to(torch.uint8).contiguous().numpy().tobytes()])
                assert label == shown[-1] % 3
        assert sorted(shown[:12]) == sorted(shown[12:]) == list(range(12))
        assert shown[:12] != shown[12:]

    def test_the_discriminator_never_sees_what_has_no_weight(self, tmp_path: Path) -> None:
        config = replace(CONFIG, augmentation="", flips=False, batch_size=50)
        trainer = make_trainer(tmp_path, config, sample_weights=torch.tensor([3.0] * 3 + [1.0] * 3 + [0.0] * 6))
        seen: list[torch.Tensor] = []
        trainer.state.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        trainer.train_step()
        shown = ((seen[0][:50] + 1) * 127.5).round().to(torch.uint8)
        counts = [int((shown == image).flatten(1).all(dim=1).sum()) for image in real_images().images]
        assert sum(counts[:6]) == 50
        assert sum(counts[:3]) > 25

    def test_flips_mirror_about_half_of_the_real_images(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, replace(CONFIG, augmentation="", batch_size=60))
        seen: list[torch.Tensor] = []
        trainer.state.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        trainer.train_step()
        plain = {image.numpy().tobytes() for image in real_images().images}
        shown = ((seen[0][:60] + 1) * 127.5).round().to(torch.uint8).contiguous()
        mirrored = [image.numpy().tobytes() not in plain for image in shown]
        assert 15 < sum(mirrored) < 45
        assert all(image.flip(2).contiguous().numpy().tobytes() in plain for image in shown[torch.tensor(mirrored)])

    def test_real_and_synthetic_images_are_augmented(self, tmp_path: Path) -> None:
        calls = []

        class Recorded:
            num_draws = diff_augment("cutout").num_draws

            def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
                calls.append(draws)
                return diff_augment("cutout")(images, draws)

        trainer = make_trainer(tmp_path)
        trainer.batches.augment = Recorded()  # type: ignore[assignment]
        trainer.train_step()
        trainer.train_step()
        assert [len(draws) for draws in calls] == [8, 4, 8, 4]
        assert len({tuple(row.tolist()) for draws in calls for row in draws}) == 24  # none shared


class TestMicroBatches:
    @pytest.mark.parametrize("parts", [2, 4])
    def test_change_nothing_but_what_batch_norm_sees(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
    ) -> None:
        def by_stored_statistics(norm: BatchStatistics, maps: torch.Tensor) -> torch.Tensor:
            return F.batch_norm(maps, norm.running_mean, norm.running_var, training=False, eps=norm.eps)

        monkeypatch.setattr(BatchStatistics, "normalize", by_stored_statistics)
        config = replace(CONFIG, discriminator_steps=2)
        whole, shared = make_trainer(tmp_path, config), make_trainer(tmp_path, replace(config, micro_batches=parts))
        start = {name: tensor.clone() for name, tensor in whole.state.tensors().items()}
        for _ in range(2):
            assert shared.train_step() == pytest.approx(whole.train_step(), abs=1e-5)
        assert_as_near_as_rounding(shared.state.tensors(), whole.state.tensors(), start)

    def test_show_the_generator_one_part_at_a_time(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, replace(CONFIG, micro_batches=2))
        shown: list[int] = []
        trainer.state.generator.register_forward_pre_hook(lambda module, inputs: shown.append(len(inputs[0])))
        trainer.train_step()
        assert shown == [2, 2, 2, 2]


class TestInitialization:
    @staticmethod
    def spectral_weights(workdir: Path, **change: Any) -> list[torch.Tensor]:
        state = make_trainer(workdir, replace(CONFIG, **change)).state
        modules = [*state.generator.modules(), *state.discriminator.modules()]
        return [module.weight.detach().flatten(1) for module in modules if isinstance(module, SpectralNorm)]

    def test_orthogonal_weights_have_equal_singular_values(self, tmp_path: Path) -> None:
        weights = self.spectral_weights(tmp_path, initialization="orthogonal")
        assert len(weights) > 20
        for weight in weights:
            values = torch.linalg.svdvals(weight)
            torch.testing.assert_close(values, torch.ones_like(values))
        other = self.spectral_weights(tmp_path, initialization="orthogonal", seed=1)
        assert not any(torch.equal(*pair) for pair in zip(weights, other, strict=True))

    def test_n02_weights_have_the_standard_deviation_of_their_name(self, tmp_path: Path) -> None:
        weights = torch.cat([weight.flatten() for weight in self.spectral_weights(tmp_path)])
        assert abs(weights.std() / 0.02 - 1) < 0.05

    def test_the_average_starts_at_the_generator(self, tmp_path: Path) -> None:
        state = make_trainer(tmp_path, replace(CONFIG, initialization="orthogonal")).state
        assert torch.equal(state.average.linear.weight, state.generator.linear.weight)


class TestMonitoring:
    def test_leaves_a_log_and_the_best_average(self, tmp_path: Path) -> None:
        config = replace(CONFIG, log_steps=1, monitor_steps=2)
        make_trainer(tmp_path, config, feature_network=PIXELS).run()
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        losses = [line["step"] for line in lines if line.keys() == {"step", "discriminator_loss", "generator_loss"}]
        distances = {line["step"]: line["frechet_distance"] for line in lines if "frechet_distance" in line}
        assert losses == [1, 2, 3, 4]
        assert list(distances) == [2, 4]
        best = train(tmp_path / "best", replace(CONFIG, steps=min(distances, key=distances.__getitem__)))
        assert torch.equal(load_generator(tmp_path / "generator-best")(LATENTS, LABELS), fold(best)(LATENTS, LABELS))

    def test_does_not_change_the_training(self, tmp_path: Path, uninterrupted: Saved) -> None:
        make_trainer(tmp_path, replace(CONFIG, monitor_steps=1), feature_network=PIXELS).run()
        assert everything(tmp_path) == uninterrupted

    def test_a_prolonged_run_leaves_the_log_of_a_long_one(self, tmp_path: Path) -> None:
        config = replace(CONFIG, log_steps=1, monitor_steps=2)
        for steps, name in ((3, "prolonged"), (4, "prolonged"), (4, "long")):
            make_trainer(tmp_path / name, replace(config, steps=steps), feature_network=PIXELS).run()
        assert (tmp_path / "prolonged" / "log.jsonl").read_bytes() == (tmp_path / "long" / "log.jsonl").read_bytes()

    def test_a_collapsed_run_stops_with_the_best_average(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = replace(CONFIG, steps=50, ema_decay=0.0, monitor_steps=1, collapse_checks=2)
        trainer = make_trainer(tmp_path, config, feature_network=worsening())
        best = trainer.run()
        assert trainer.step == 3  # the first is the best, and two follow
        assert "the training has collapsed by step 3; the best moving average, of step 1 (Fréchet" in caplog.text
        first = make_trainer(tmp_path / "first", replace(config, steps=1)).run()
        assert torch.equal(best(LATENTS, LABELS), first(LATENTS, LABELS))
        for name in ("generator", "generator-best"):
            assert torch.equal(load_generator(tmp_path / name)(LATENTS, LABELS), fold(first)(LATENTS, LABELS))

        again = make_trainer(tmp_path, config, feature_network=worsening())
        assert torch.equal(again.run()(LATENTS, LABELS), first(LATENTS, LABELS))
        assert again.step == 3
        patient = make_trainer(tmp_path, replace(config, collapse_checks=10, steps=5), feature_network=worsening())
        patient.run()
        assert patient.step == 5

    def test_losses_that_are_not_finite_stop_it_with_the_best_named(self, tmp_path: Path) -> None:
        config = replace(CONFIG, lr_generator=1e38, checkpoint_minutes=1e-9, monitor_steps=1)
        with pytest.raises(FloatingPointError, match=r"step 2; the last good state, step 1, .* average, of step 1 \("):
            make_trainer(tmp_path, config, feature_network=PIXELS).run()
        assert everything(tmp_path)[0] == 1

    def test_ends_with_an_error_where_nothing_was_measured(self, tmp_path: Path) -> None:
        config = replace(CONFIG, lr_generator=1e38)
        with pytest.raises(FloatingPointError, match=r"nothing was saved yet; lower the learning rates$"):
            make_trainer(tmp_path, config).run()


class TestBadInput:
    def test_another_number_of_classes(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="the generator is configured for 3; let its num_classes be 2"):
            GeneratorTrainer(CONFIG, real_images(num_classes=2), workdir=tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_batch_that_cannot_be_cut(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"a batch of 4 cannot be .* over 1 ranks of 3 micro-batches; .* multiple of 3"
        ):
            make_trainer(tmp_path, replace(CONFIG, micro_batches=3))

    def test_another_image_size(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"shape \(3, 16, 16\) .*, expected \(3, 32, 32\)"):
            GeneratorTrainer(CONFIG, real_images(side=16), workdir=tmp_path)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"steps": 0}, "steps must be at least 1, got 0"),
            ({"augmentation": "colour"}, "unknown operation 'colour'"),
        ],
    )
    def test_configuration(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **change)


class TestDiscriminator:
    def test_looks_at_the_image_and_at_how_it_fits_the_label(self) -> None:
        discriminator = ProjectionDiscriminator(8, 3, 32, torch.Generator().manual_seed(0)).eval()
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).repeat(2, 1, 1, 1)
        labels = torch.tensor([0, 0, 1, 1])
        scores = discriminator(images, labels)
        assert not torch.isclose(scores[:2], scores[2:]).any()
        discriminator.embedding.forward = lambda labels: torch.zeros(len(labels), 8)  # no label counts
        unconditional = discriminator(images, labels)
        assert torch.equal(unconditional[:2], unconditional[2:])
        assert unconditional[0] != unconditional[1]

    @pytest.mark.parametrize("side", [8, 16, 32, 64])
    def test_scores_each_image_by_itself(self, side: int) -> None:
        discriminator = ProjectionDiscriminator(8, 3, side, torch.Generator().manual_seed(0)).eval()
        images = torch.randn(6, 3, side, side, generator=torch.Generator().manual_seed(1))
        scores = discriminator(images, LABELS)
        assert scores.shape == (6,)
        apart = [discriminator(images[row : row + 1], LABELS[row : row + 1]) for row in range(6)]
        torch.testing.assert_close(torch.cat(apart), scores)

    def test_hinge_losses(self) -> None:
        zeros = torch.zeros(4)
        assert discriminator_hinge(zeros, zeros) == 2
        assert discriminator_hinge(zeros + 1, zeros - 1) == 0
        assert discriminator_hinge(zeros + 9, zeros - 9) == 0  # sure is sure
        assert discriminator_hinge(torch.tensor([3.0, 0.5]), torch.tensor([-3.0, 0.5])) == 0.25 + 0.75
        assert generator_hinge(torch.tensor([1.0, 3.0])) == -2

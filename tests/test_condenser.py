"""Pool, objective and the Condenser that puts the stages together."""

import gc
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from itgan_data.augmentation import DSA, Augmentation
from itgan_data.condense import condenser as condenser_module
from itgan_data.condense import embedding
from itgan_data.condense.condenser import Condenser, OutOfTimeError
from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.embedding import EmbeddingPool, PoolConfig, build_pool
from itgan_data.condense.inversion import InversionConfig, invert
from itgan_data.condense.objective import MatchingObjective
from itgan_data.images import LabeledImages, Normalization, signed_to_unit, uint8_to_unit, unit_to_uint8
from itgan_data.latents import LatentSet
from itgan_data.networks import create_network

NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
POOL = PoolConfig(num_networks=1, width=8, steps=4, snapshots=2, batch_size=16)
CONFIG = CondenserConfig(
    images_per_class=3,
    group_size=2,
    steps=3,
    lr_latents=0.05,
    regularizer_weight=0.1,
    real_batch_size=4,
    normalization=NORMALIZATION,
    inversion=InversionConfig(encoder_steps=3, encoder_batch_size=8, steps=3, batch_size=4),
    pool=POOL,
)
SAVED_EVERY_STEP = replace(CONFIG, checkpoint_minutes=1e-9)


def make_condenser(
    generator: nn.Module, images: LabeledImages, workdir: Path | None, config: CondenserConfig = CONFIG
) -> Condenser:
    return Condenser(generator, images, config, workdir=workdir, device="cpu")


def condense(generator: nn.Module, images: LabeledImages, workdir: Path, config: CondenserConfig = CONFIG) -> LatentSet:
    return make_condenser(generator, images, workdir, config).run()


def results(workdir: Path) -> list[bytes]:
    return [(workdir / name).read_bytes() for name in ("inversion.safetensors", "latents.safetensors")]


@pytest.fixture
def finished(tmp_path: Path, tiny_generator: nn.Module, tiny_images: LabeledImages) -> Path:
    condense(tiny_generator, tiny_images, tmp_path / "finished")
    return tmp_path / "finished"


class TestPool:
    @staticmethod
    def build(images: LabeledImages, workdir: Path, config: PoolConfig = POOL, seed: int = 0) -> EmbeddingPool:
        return build_pool(images, config, normalization=NORMALIZATION, seed=seed, workdir=workdir)

    def test_holds_every_snapshot_of_every_network(
        self, tmp_path: Path, tiny_images: LabeledImages, global_rng_untouched: None
    ) -> None:
        pool = self.build(tiny_images, tmp_path, replace(POOL, num_networks=2))
        assert len(pool) == len(pool.accuracies) == 4
        weights = [state["classifier.weight"] for state in pool.states]
        assert all(not torch.equal(one, other) for one in weights for other in weights if one is not other)
        assert not [parameter for parameter in pool.network.parameters() if parameter.requires_grad]

    def test_learns_to_tell_the_classes_apart(self, tmp_path: Path, tiny_images: LabeledImages) -> None:
        pool = self.build(tiny_images, tmp_path, replace(POOL, steps=160))
        assert pool.accuracies[-1] == 1.0  # of the fifth that was held out

    def test_is_read_when_it_is_there(
        self, tmp_path: Path, tiny_images: LabeledImages, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = self.build(tiny_images, tmp_path)
        monkeypatch.delattr(embedding, "train_classifier")
        again = self.build(tiny_images, tmp_path)
        assert again.accuracies == first.accuracies
        for state, other in zip(first.states, again.states, strict=True):
            assert all(torch.equal(state[name], other[name]) for name in state)
        with pytest.raises(ValueError, match="width=8, not 9"):
            self.build(tiny_images, tmp_path, replace(POOL, width=9))

    def test_the_best_is_the_most_accurate_and_the_drawn_changes(
        self, tmp_path: Path, tiny_images: LabeledImages
    ) -> None:
        pool = self.build(tiny_images, tmp_path)
        pool.accuracies = [0.7, 0.6]
        pool.load_best()
        assert torch.equal(pool.network.classifier.weight, pool.states[0]["classifier.weight"])
        drawn = []
        for step in range(40):
            pool.load_drawn(0, step)
            drawn.append(torch.equal(pool.network.classifier.weight, pool.states[0]["classifier.weight"]))
        assert 8 < sum(drawn) < 32

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_networks": 0}, "num_networks must be at least 1, got 0"),
            ({"snapshots": 5}, "4 steps cannot give 5 snapshots; raise steps"),
        ],
    )
    def test_bad_values_are_refused(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(POOL, **change)

    def test_an_unknown_network_is_answered_with_the_known_ones(
        self, tmp_path: Path, tiny_images: LabeledImages
    ) -> None:
        with pytest.raises(ValueError, match="unknown network 'resnet81'; expected one of convnet"):
            self.build(tiny_images, tmp_path, replace(POOL, network="resnet81"))


class Recorded:
    """An augmentation that keeps what it was called with."""

    def __init__(self, augment: Augmentation) -> None:
        self.augment = augment
        self.num_draws = augment.num_draws
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        self.calls.append((images.detach().clone(), draws))
        return self.augment(images, draws)


class TestObjective:
    @pytest.fixture
    def start(self, tiny_images: LabeledImages) -> LatentSet:
        """Four latents a class, each with a real image of its class."""
        labels = torch.arange(3).repeat_interleave(4)
        sources = torch.cat([(tiny_images.labels == label).nonzero().squeeze(1)[:4] for label in range(3)])
        latents = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return LatentSet(latents, labels, source_index=sources)

    @staticmethod
    def make_objective(generator: nn.Module, images: LabeledImages, weight: float = 0.0) -> MatchingObjective:
        """In float64, on one of two untrained networks."""
        generator.double().requires_grad_(False)
        states = []
        for seed in range(2):
            rng = torch.Generator().manual_seed(seed)
            network = create_network("convnet", 3, image_shape=(3, 8, 8), width=8, rng=rng)
            states.append({name: tensor.clone() for name, tensor in network.double().state_dict().items()})
        pool = EmbeddingPool(network, states, [0.5, 0.5])
        by_class = [(images.labels == label).nonzero().squeeze(1) for label in range(3)]
        config = replace(CONFIG, regularizer_weight=weight, real_batch_size=5)
        objective = MatchingObjective(
            generator, lambda images: network.embed(images.double()), pool, images, by_class, config
        )
        objective.augment = Recorded(DSA(config.strategy))  # type: ignore[assignment]
        return objective

    @staticmethod
    def run(objective: MatchingObjective, start: LatentSet, **draw: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = {"group": 0, "step": 0} | draw
        return objective.gradient(start.latents.clone().requires_grad_(True), start, **draw)

    @pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("step", range(4))
    def test_all_classes_at_once_equal_the_loop_over_classes(
        self, tiny_generator: nn.Module, tiny_images: LabeledImages, start: LatentSet, weight: float, step: int
    ) -> None:
        objective = self.make_objective(tiny_generator, tiny_images, weight)
        loss, gradient = self.run(objective, start, step=step)
        (real, rows), *_ = objective.augment.calls
        latents = start.latents.clone().requires_grad_(True)
        expected = torch.zeros(())
        for label in range(3):
            mine = start.labels == label

            def embed(images: torch.Tensor, label: int = label) -> torch.Tensor:
                return objective.embed(DSA()(images, rows[5 * label].expand(len(images), -1)))

            unit = signed_to_unit(tiny_generator(latents[mine], start.labels[mine]))
            synthetic = embed(NORMALIZATION.standardize(unit))
            paired_unit = uint8_to_unit(tiny_images.images[start.source_index[mine]])
            paired = embed(NORMALIZATION.standardize(paired_unit))
            matching = (embed(real[5 * label : 5 * label + 5]).mean(0) - synthetic.mean(0)).square().sum()
            regularizer = (paired - synthetic).square().sum(dim=1).mean()
            expected = expected + (1 - weight) * matching + weight * regularizer
        (expected_gradient,) = torch.autograd.grad(expected, latents)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
        assert (gradient - expected_gradient).abs().max() < 1e-5 * expected_gradient.abs().max()

    def test_a_class_shares_its_augmentation_and_no_other_has_it(
        self, tiny_generator: nn.Module, tiny_images: LabeledImages, start: LatentSet
    ) -> None:
        objective = self.make_objective(tiny_generator, tiny_images, 0.5)
        self.run(objective, start)
        real, synthetic, paired = (
            draws.view(3, -1, objective.augment.num_draws) for _, draws in objective.augment.calls
        )
        for draws in (real, synthetic, paired):
            assert torch.equal(draws, real[:, :1].expand_as(draws))
        assert len(real[:, 0].unique(dim=0)) == 3

    def test_real_images_are_of_their_class_and_new_every_step_and_group(
        self, tiny_generator: nn.Module, tiny_images: LabeledImages, start: LatentSet
    ) -> None:
        known = {image.numpy().tobytes(): place for place, image in enumerate(tiny_images.images)}
        objective = self.make_objective(tiny_generator, tiny_images)
        seen = []
        for group, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
            objective.augment.calls.clear()
            self.run(objective, start, group=group, step=step)
            shown = unit_to_uint8(NORMALIZATION.to_unit(objective.augment.calls[0][0]))
            places = torch.tensor([known[image.contiguous().numpy().tobytes()] for image in shown])
            assert torch.equal(tiny_images.labels[places], torch.arange(3).repeat_interleave(5))
            seen.append((places.tolist(), objective.augment.calls[0][1].tolist()))
        assert seen[3] == seen[0]
        for drawn in zip(*seen[:3], strict=True):
            assert all(drawn[one] != drawn[other] for one, other in ((0, 1), (0, 2), (1, 2)))

    def test_gradients_reach_the_latents_only_in_one_pass(
        self, tiny_generator: nn.Module, tiny_images: LabeledImages, start: LatentSet
    ) -> None:
        objective = self.make_objective(tiny_generator, tiny_images)
        passes = []
        tiny_generator.register_forward_hook(lambda module, inputs, images: passes.append(len(images)))
        loss, gradient = self.run(objective, start)
        assert passes == [12]
        assert not loss.requires_grad
        assert (gradient != 0).any(dim=1).all()
        for module in (tiny_generator, objective.pool.network):
            assert not [parameter for parameter in module.parameters() if parameter.grad is not None]


class TestResult:
    def test_one_latent_for_each_chosen_image_class_after_class_within_a_group(
        self, tmp_path: Path, tiny_generator: nn.Module, tiny_images: LabeledImages, global_rng_untouched: None
    ) -> None:
        learned = condense(tiny_generator, tiny_images, tmp_path)
        assert learned.labels.tolist() == [0, 0, 1, 1, 2, 2, 0, 1, 2]
        assert learned.latents.shape == (9, 6)
        assert learned.source_index is not None
        assert torch.equal(tiny_images.labels[learned.source_index], learned.labels)
        assert len(learned.source_index.unique()) == 9
        stored = LatentSet.load(tmp_path / "latents.safetensors")
        assert torch.equal(stored.latents, learned.latents)
        assert torch.equal(stored.source_index, learned.source_index)

    def test_inversion_is_kept_beside_it(self, finished: Path) -> None:
        start, learned = (LatentSet.load(finished / f"{name}.safetensors") for name in ("inversion", "latents"))
        assert start.source_index is not None
        assert learned.source_index is not None
        of_source = dict(zip(start.source_index.tolist(), start.latents, strict=True))
        starts = torch.stack([of_source[source] for source in learned.source_index.tolist()])
        moved = (learned.latents - starts).abs()
        assert (moved > 0).any(dim=1).all()
        assert moved.max() < 3 * CONFIG.lr_latents * 1.5  # Adam moves by about its rate a step

    @pytest.mark.parametrize(("group_size", "sizes"), [(None, [9]), (1, [3, 3, 3]), (2, [6, 3]), (3, [9]), (8, [9])])
    def test_groups_split_every_class_alike(
        self, finished: Path, tiny_generator: nn.Module, tiny_images: LabeledImages, group_size: int, sizes: list[int]
    ) -> None:
        remove_groups(finished)
        learned = condense(tiny_generator, tiny_images, finished, replace(CONFIG, group_size=group_size))
        assert len(list(finished.glob("group-*"))) == len(sizes)
        for part in learned.labels.split(sizes):
            assert part.tolist() == torch.arange(3).repeat_interleave(len(part) // 3).tolist()

    def test_inversion_compares_features_of_the_most_accurate_network(
        self, tmp_path: Path, tiny_generator: nn.Module, tiny_images: LabeledImages, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        probe = NORMALIZATION.standardize(tiny_images.unit_batch(torch.arange(5))[0])
        seen = []

        def watched(generate: Any, embed: Any, *rest: Any, **options: Any) -> Any:
            seen.append(embed(probe).detach())
            return invert(generate, embed, *rest, **options)

        monkeypatch.setattr(condenser_module, "invert", watched)
        config = replace(CONFIG, pool=replace(POOL, steps=160, snapshots=3))
        condense(tiny_generator, tiny_images, tmp_path, config)
        pool = build_pool(tiny_images, config.pool, normalization=NORMALIZATION, seed=0, workdir=tmp_path / "pool")
        pool.load_best()
        expected = pool.network.embed(probe)
        assert len(seen) == 3
        for features in seen:
            torch.testing.assert_close(features, expected)

    def test_matching_is_better_than_after_inversion(
        self, tmp_path: Path, tiny_generator: nn.Module, tiny_images: LabeledImages
    ) -> None:
        config = replace(CONFIG, group_size=None, steps=40, regularizer_weight=0.0)
        learned = condense(tiny_generator, tiny_images, tmp_path, config)
        start = LatentSet.load(tmp_path / "inversion.safetensors")
        assert torch.equal(start.labels, learned.labels)
        pool = build_pool(tiny_images, POOL, normalization=NORMALIZATION, seed=0, workdir=tmp_path / "pool")
        by_class = [(tiny_images.labels == label).nonzero().squeeze(1) for label in range(3)]
        objective = MatchingObjective(tiny_generator, pool.network.embed, pool, tiny_images, by_class, config)

        def mean_loss(latents: LatentSet) -> float:
            """Over draws that were not used for learning."""
            values = latents.latents.clone().requires_grad_(True)
            return sum(float(objective.gradient(values, latents, group=7, step=step)[0]) for step in range(30)) / 30

        assert mean_loss(learned) < 0.9 * mean_loss(start)

    def test_all_images_are_used_by_default(
        self, tmp_path: Path, tiny_generator: nn.Module, tiny_images: LabeledImages
    ) -> None:
        """Of the smallest class, and as many of the others."""
        fewer = tiny_images.select(torch.arange(30)[4:])
        condenser = make_condenser(tiny_generator, fewer, tmp_path, replace(CONFIG, images_per_class=None))
        assert condenser.chosen.shape == (3, 8)

    def test_without_a_workdir_nothing_is_left(self, tiny_generator: nn.Module, tiny_images: LabeledImages) -> None:
        condenser = make_condenser(tiny_generator, tiny_images, None)
        workdir = condenser.workdir
        assert len(condenser.run()) == 9
        assert workdir.is_dir()
        del condenser
        gc.collect()
        assert not workdir.exists()

    def test_bfloat16_gives_float32_latents(
        self, tmp_path: Path, tiny_generator: nn.Module, tiny_images: LabeledImages
    ) -> None:
        learned = condense(tiny_generator, tiny_images, tmp_path, replace(CONFIG, precision="bfloat16"))
        assert learned.latents.dtype == torch.float32


def remove_groups(workdir: Path) -> None:
    for folder in workdir.glob("group-*"):
        shutil.rmtree(folder)


class Clock:
    """Whoever looks at it takes a minute."""

    def __init__(self) -> None:
        self.minutes = 0

    def monotonic(self) -> float:
        self.minutes += 1
        return 60.0 * self.minutes


class TestResuming:
    @pytest.mark.parametrize("minutes", [1, 2, 5])
    def test_running_out_of_time_again_and_again_changes_nothing(
        self,
        tmp_path: Path,
        finished: Path,
        tiny_generator: nn.Module,
        tiny_images: LabeledImages,
        monkeypatch: pytest.MonkeyPatch,
        minutes: int,
    ) -> None:
        monkeypatch.setattr(condenser_module, "time", Clock())
        interruptions = 0
        while not (tmp_path / "latents.safetensors").exists():
            try:
                make_condenser(tiny_generator, tiny_images, tmp_path).run(max_minutes=minutes)
            except OutOfTimeError:
                interruptions += 1
                assert interruptions < 20
        assert interruptions >= 2
        assert results(tmp_path) == results(finished)

    @pytest.mark.parametrize("rename", [4, 5], ids=["within a save", "between saves"])
    def test_killing_it_again_and_again_changes_nothing(
        self,
        tmp_path: Path,
        finished: Path,
        tiny_generator: nn.Module,
        tiny_images: LabeledImages,
        killed_at_rename: Callable[..., bool],
        rename: int,
    ) -> None:
        """A save is two renames, a piece and its manifest; so each run comes one save further, or two."""
        kills = 0
        while killed_at_rename(rename, condense, tiny_generator, tiny_images, tmp_path, SAVED_EVERY_STEP):
            kills += 1
            assert kills < 20
        assert kills >= 5
        assert results(tmp_path) == results(finished)

    def test_a_finished_run_gives_its_latents_at_once(
        self,
        finished: Path,
        tiny_generator: nn.Module,
        tiny_images: LabeledImages,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        before = results(finished)
        for name in ("invert", "train_encoder"):
            monkeypatch.delattr(condenser_module, name)
        monkeypatch.delattr(MatchingObjective, "gradient")
        condense(tiny_generator, tiny_images, finished)
        assert results(finished) == before

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"lr_latents": 0.1}, r"lr_latents=0\.05, not 0\.1; use that configuration again or another folder"),
            ({"seed": 1}, "seed=0, not 1"),
            ({"images_per_class": 2}, "images_per_class=3, not 2"),
            ({"inversion": replace(CONFIG.inversion, steps=4)}, r"inversion\.steps=3, not 4"),
            ({"pool": replace(POOL, width=9)}, "width=8, not 9"),
        ],
    )
    def test_another_configuration_is_refused_by_name(
        self,
        finished: Path,
        tiny_generator: nn.Module,
        tiny_images: LabeledImages,
        change: dict[str, Any],
        message: str,
    ) -> None:
        before = results(finished)
        with pytest.raises(ValueError, match=message):
            condense(tiny_generator, tiny_images, finished, replace(CONFIG, **change))
        assert results(finished) == before

    def test_a_prolonged_run_ends_as_a_long_one(
        self, finished: Path, tiny_generator: nn.Module, tiny_images: LabeledImages, tmp_path: Path
    ) -> None:
        condense(tiny_generator, tiny_images, tmp_path / "prolonged", replace(CONFIG, steps=1))
        condense(tiny_generator, tiny_images, tmp_path / "prolonged")
        assert results(tmp_path / "prolonged") == results(finished)

    def test_fewer_steps_than_were_done_are_refused(
        self, finished: Path, tiny_generator: nn.Module, tiny_images: LabeledImages
    ) -> None:
        with pytest.raises(ValueError, match="is at step 3, beyond steps=2; raise steps"):
            condense(tiny_generator, tiny_images, finished, replace(CONFIG, steps=2))

    def test_how_often_it_is_saved_may_change(
        self, finished: Path, tiny_generator: nn.Module, tiny_images: LabeledImages
    ) -> None:
        before = results(finished)
        condense(tiny_generator, tiny_images, finished, SAVED_EVERY_STEP)
        assert results(finished) == before

    def test_inversion_is_kept_when_matching_is_tried_otherwise(
        self,
        finished: Path,
        tiny_generator: nn.Module,
        tiny_images: LabeledImages,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        inversion, latents = results(finished)
        remove_groups(finished)
        monkeypatch.delattr(condenser_module, "invert")
        condense(tiny_generator, tiny_images, finished, replace(CONFIG, lr_latents=0.2, steps=2))
        assert results(finished)[0] == inversion
        assert results(finished)[1] != latents

    def test_another_generator_or_other_data_are_refused(
        self, finished: Path, tiny_generator: nn.Module, tiny_images: LabeledImages
    ) -> None:
        with pytest.raises(ValueError, match="holds work with data="):
            condense(tiny_generator, tiny_images.select(torch.arange(29)), finished)
        with pytest.raises(ValueError, match="holds work with generator="):
            condense(type(tiny_generator)(seed=1), tiny_images, finished)


class TestBadInput:
    @pytest.mark.parametrize(
        ("keep", "message"),
        [
            (lambda labels: labels >= 0, "class 0 has 10 images, fewer than images_per_class=11; lower images_per_"),
            (lambda labels: labels != 1, "class 'green' has no images; expected at least one"),
        ],
        ids=["too few", "none"],
    )
    def test_classes_without_enough_images(
        self,
        tmp_path: Path,
        tiny_generator: nn.Module,
        tiny_images: LabeledImages,
        keep: Callable[[torch.Tensor], torch.Tensor],
        message: str,
    ) -> None:
        images = tiny_images.select(keep(tiny_images.labels).nonzero().squeeze(1))
        with pytest.raises(ValueError, match=message) as caught:
            make_condenser(tiny_generator, images, tmp_path, replace(CONFIG, images_per_class=11))
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())

    def test_other_classes_than_the_generators(
        self, tmp_path: Path, tiny_generator: nn.Module, tiny_images: LabeledImages
    ) -> None:
        more = LabeledImages(tiny_images.images, tiny_images.labels, ("a", "b", "c", "d"))
        with pytest.raises(ValueError, match="the data set has 4 classes and the generator 3; use a generator"):
            make_condenser(tiny_generator, more, tmp_path)

    def test_another_image_size(
        self, tmp_path: Path, tiny_generator: nn.Module, bright_and_dark: LabeledImages
    ) -> None:
        with pytest.raises(ValueError, match=r"shape \(3, 16, 16\) .*, expected \(3, 8, 8\)"):
            make_condenser(tiny_generator, bright_and_dark, tmp_path)

    def test_a_loss_that_is_not_finite_stops_the_work_before_it_does_harm(
        self,
        tmp_path: Path,
        finished: Path,
        tiny_generator: nn.Module,
        tiny_images: LabeledImages,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def not_finite(objective: MatchingObjective, latents: torch.Tensor, start: LatentSet, **draw: int) -> Any:
            loss, gradient = gradient_of(objective, latents, start, **draw)
            return (loss, gradient) if draw["step"] < 2 else (loss * torch.nan, gradient * torch.nan)

        gradient_of = MatchingObjective.gradient
        with monkeypatch.context() as patch:
            patch.setattr(MatchingObjective, "gradient", not_finite)
            with pytest.raises(FloatingPointError, match=r"the loss is nan at step 2 of group 0; .* lower lr_latents"):
                condense(tiny_generator, tiny_images, tmp_path, SAVED_EVERY_STEP)
        assert not (tmp_path / "latents.safetensors").exists()
        condense(tiny_generator, tiny_images, tmp_path)
        assert results(tmp_path) == results(finished)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"steps": 0}, "steps must be at least 1, got 0"),
            ({"group_size": 0}, "group_size must be at least 1, got 0"),
            ({"lr_latents": 0.0}, r"lr_latents must be positive, got 0\.0"),
            ({"regularizer_weight": 1.5}, r"regularizer_weight must lie in \[0, 1\], got 1\.5"),
            ({"precision": "half"}, "precision must be 'float32' or 'bfloat16', got 'half'"),
            ({"strategy": "color_blur"}, "unknown operation 'blur'"),
        ],
    )
    def test_configuration(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **change)

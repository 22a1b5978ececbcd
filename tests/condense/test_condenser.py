"""The Condenser, which puts the stages together."""

import contextlib
import gc
import json
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyGenerator, colored_images, needs_compiler, run_on, stops_by
from PIL import Image
from torch import nn

from itgan_data.condense import initializing as starting
from itgan_data.condense.condenser import Condenser, OutOfTimeError
from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.inversion import InversionConfig, invert
from itgan_data.condense.network_source import FreshNetworks, PoolSource
from itgan_data.condense.objective import Batch, DistributionObjective, Matching
from itgan_data.condense.pool import PoolConfig, build_pool
from itgan_data.images import LabeledImages, Normalization
from itgan_data.latents.stored import LatentSet
from itgan_data.storage.files import read_json

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
IMAGES = colored_images()
SAVED_EVERY_STEP = replace(CONFIG, checkpoint_minutes=1e-9)
TRAINED_ALONG = FreshNetworks(width=8, outer_steps=3, inner_epochs=2, lr=0.1, batch_size=4)
# Another value of every field, and what is said of it in a workdir of CONFIG; None where it may differ.
OTHER: dict[str, tuple[Any, str | None]] = {
    "images_per_class": (2, "images_per_class=3, not 2"),
    "initialize": ("inversion", "initialize='normal', not 'inversion'"),
    "group_size": (None, "group_size=2, not None"),
    "regroup": (True, "regroup=False, not True"),
    "chunk_size": (1, None),
    "class_block": (2, "class_block=None, not 2"),
    "steps": (9, None),
    "objective": ("gradient", "objective='distribution', not 'gradient'"),
    "optimizer": ("sgd", "optimizer='adam', not 'sgd'"),
    "momentum": (0.9, "momentum=0.5, not 0.9"),
    "lr_latents": (0.1, "lr_latents=0.05, not 0.1"),
    "regularizer_weight": (0.1, "regularizer_weight=0.0, not 0.1"),
    "real_batch_size": (5, "real_batch_size=4, not 5"),
    "strategy": ("color", "strategy='color_crop_cutout_flip_scale_rotate', not 'color'"),
    "normalization": (Normalization((0.5,) * 3, NORMALIZATION.std), r"normalization.mean=\[0.4, 0.5, 0.6\], not .*"),
    "inversion": (replace(CONFIG.inversion, steps=4), "inversion.steps=3, not 4"),
    "pool": (replace(POOL, num_networks=2), "pool.num_networks=1, not 2"),  # which only the pool itself may differ in
    "band": ((0.0, 1.0), r"band=None, not \[0.0, 1.0\]"),
    "networks": (FreshNetworks(), "networks=None, not .*"),
    "precision": ("bfloat16", "precision='float32', not 'bfloat16'"),
    "compile": (True, "compile=False, not True"),
    "checkpoint_minutes": (9.0, None),
    "log_steps": (9, None),
    "preview_steps": (9, None),
    "tensorboard": (True, None),
    "seed": (1, "seed=0, not 1"),
}
MODES: dict[str, dict[str, Any]] = {
    "gradients of a network trained along": {
        "objective": "gradient",
        "optimizer": "sgd",
        "group_size": None,
        "initialize": "normal",
        "networks": TRAINED_ALONG,
    },
    "random networks, groups drawn anew": {"networks": FreshNetworks(width=8), "regroup": True},
    "chunks, blocks of classes": {"group_size": None, "chunk_size": 2, "class_block": 2, "initialize": "normal"},
}


def make_condenser(
    workdir: Path | None, config: CondenserConfig = CONFIG, images: Any = IMAGES, generator: nn.Module | None = None
) -> Condenser:
    return Condenser(generator or TinyGenerator(), images, config, workdir=workdir, device="cpu")


def condense(workdir: Path, config: CondenserConfig = CONFIG, **of: Any) -> LatentSet:
    return make_condenser(workdir, config, **of).run()


def results(workdir: Path) -> list[bytes]:
    return [(workdir / name).read_bytes() for name in ("inversion.safetensors", "latents.safetensors")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run has come to its end without an interruption."""
    workdir = tmp_path_factory.mktemp("whole")
    condense(workdir)
    return workdir


@pytest.fixture(scope="module")
def expected(whole: Path) -> list[bytes]:
    """What every run has to end with."""
    return results(whole)


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy, to go on in."""
    return shutil.copytree(whole, tmp_path / "finished")


class TestResult:
    def test_one_latent_for_each_chosen_image_in_a_mixed_order(
        self, tmp_path: Path, global_rng_untouched: None
    ) -> None:
        learned = condense(tmp_path)
        assert learned.images_per_class == [3, 3, 3]
        assert not learned.in_class_order
        assert learned.latents.shape == (9, 6)
        assert learned.source_index is not None
        assert torch.equal(IMAGES.labels[learned.source_index], learned.labels)
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
    def test_groups_split_every_class_alike(self, finished: Path, group_size: int, sizes: list[int]) -> None:
        remove_groups(finished)
        learned = condense(finished, replace(CONFIG, group_size=group_size))
        assert len(list(finished.glob("group-*"))) == len(sizes)
        units = make_condenser(finished, replace(CONFIG, group_size=group_size)).work_units
        assert [len(unit.classes) * len(unit.columns) for unit in units] == sizes
        assert learned.images_per_class == [3, 3, 3]

    def test_inversion_compares_features_of_the_most_accurate_network(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        probe = NORMALIZATION.standardize(IMAGES.unit_batch(torch.arange(5))[0])
        seen = []

        def watched(generate: Any, embed: Any, *rest: Any, **options: Any) -> Any:
            seen.append(embed(probe).detach())
            return invert(generate, embed, *rest, **options)

        monkeypatch.setattr(starting, "invert", watched)
        config = replace(CONFIG, pool=replace(POOL, steps=160, snapshots=3))
        condense(tmp_path, config)
        pool = build_pool(IMAGES, config.pool, normalization=NORMALIZATION, seed=0, workdir=tmp_path / "pool")
        pool.load_best()
        expected = pool.network.embed(probe)
        assert len(seen) == 3
        for features in seen:
            torch.testing.assert_close(features, expected)

    def test_matching_is_better_than_after_inversion(self, tmp_path: Path) -> None:
        config = replace(CONFIG, group_size=None, steps=40, regularizer_weight=0.0)
        learned = condense(tmp_path, config)
        start = LatentSet.load(tmp_path / "inversion.safetensors")
        learned = learned.select((learned.source_index == start.source_index.unsqueeze(1)).int().argmax(dim=1))
        assert torch.equal(start.labels, learned.labels)
        pool = build_pool(IMAGES, POOL, normalization=NORMALIZATION, seed=0, workdir=tmp_path / "pool")
        by_class = [(IMAGES.labels == label).nonzero().squeeze(1) for label in range(3)]
        matching = Matching(TinyGenerator(), PoolSource(pool, 0), IMAGES, by_class, config)
        objective = DistributionObjective(matching, pool.network.embed)

        def mean_loss(latents: LatentSet) -> float:
            """Over draws that were not used for learning."""
            batch = Batch(latents.latents.view(3, 3, 6), latents.source_index.view(3, 3), torch.arange(3))
            return sum(float(objective.gradient(batch, group=7, step=step)[0].sum()) for step in range(30)) / 30

        assert mean_loss(learned) < 0.9 * mean_loss(start)

    @needs_compiler
    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch hides it but where it is an error
    @pytest.mark.parametrize("objective", ["distribution", "gradient"])
    def test_compiled_it_is_the_same_up_to_rounding(self, tmp_path: Path, objective: Any) -> None:
        config = replace(CONFIG, objective=objective, regularizer_weight=0.0, group_size=None, initialize="normal")
        eager = condense(tmp_path / "eager", config)
        start = LatentSet.load(tmp_path / "eager" / "inversion.safetensors").latents
        fused = condense(tmp_path / "fused", replace(config, compile=True))
        assert (fused.latents - eager.latents).norm() < 1e-3 * (eager.latents - start).norm()

    def test_all_images_are_used_by_default(self, tmp_path: Path) -> None:
        """Of the smallest class, and as many of the others."""
        fewer = IMAGES.select(torch.arange(30)[4:])
        condenser = make_condenser(tmp_path, replace(CONFIG, images_per_class=None), fewer)
        assert condenser.chosen.shape == (3, 8)

    def test_without_a_workdir_nothing_is_left(self) -> None:
        condenser = make_condenser(None)
        workdir = condenser.workdir
        assert len(condenser.run()) == 9
        assert workdir.is_dir()
        del condenser
        gc.collect()
        assert not workdir.exists()

    def test_bfloat16_gives_float32_latents(self, tmp_path: Path) -> None:
        learned = condense(tmp_path, replace(CONFIG, precision="bfloat16"))
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
        self, tmp_path: Path, expected: list[bytes], monkeypatch: pytest.MonkeyPatch, minutes: int
    ) -> None:
        run_on(monkeypatch, Clock())
        interruptions = 0
        while not (tmp_path / "latents.safetensors").exists():
            try:
                make_condenser(tmp_path).run(max_minutes=minutes)
            except OutOfTimeError:
                interruptions += 1
                assert interruptions < 200
        assert interruptions >= 2
        assert results(tmp_path) == expected

    @pytest.mark.parametrize("rename", [6, 7], ids=["within a save", "between saves"])
    def test_killing_it_again_and_again_changes_nothing(
        self, tmp_path: Path, expected: list[bytes], killed_at_rename: Callable[..., bool], rename: int
    ) -> None:
        """A save is two renames, a piece and its manifest; so each run comes two saves further, or three."""
        kills = 0
        while killed_at_rename(rename, condense, tmp_path, SAVED_EVERY_STEP):
            kills += 1
            assert kills < 20
        assert kills >= 4
        assert results(tmp_path) == expected

    def test_a_signal_ends_the_step_and_keeps_it(
        self, tmp_path: Path, expected: list[bytes], stop_signal: signal.Signals, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(objective: DistributionObjective, batch: Batch, **draw: int) -> Any:
            if draw == {"group": 1, "step": 1}:
                signal.raise_signal(stop_signal)
            return gradient_of(objective, batch, **draw)

        gradient_of = DistributionObjective.gradient
        with monkeypatch.context() as patch:
            patch.setattr(DistributionObjective, "gradient", interrupted)
            with stops_by(stop_signal):
                condense(tmp_path)
        assert read_json(tmp_path / "group-0001" / "checkpoint.json")["step"] == 2
        condense(tmp_path)
        assert results(tmp_path) == expected

    @pytest.mark.parametrize(
        ("optimizer", "calls", "folder"),
        [
            (torch.optim.SGD, 2, "pool/network-000"),
            (torch.optim.Adam, 2, "encoder"),
            (torch.optim.Adam, 3 + 2, "inversion/chunk-00000"),  # the encoder comes before
        ],
        ids=["pool", "encoder", "inversion"],
    )
    def test_a_signal_before_matching_keeps_every_step_too(
        self,
        tmp_path: Path,
        expected: list[bytes],
        stop_signal: signal.Signals,
        monkeypatch: pytest.MonkeyPatch,
        optimizer: type[torch.optim.Optimizer],
        calls: int,
        folder: str,
    ) -> None:
        left, update = iter(range(calls - 1)), optimizer.step

        def update_and_interrupt(this: torch.optim.Optimizer) -> None:
            update(this)
            if next(left, None) is None:
                signal.raise_signal(stop_signal)

        with monkeypatch.context() as patch:
            patch.setattr(optimizer, "step", update_and_interrupt)
            with stops_by(stop_signal):
                condense(tmp_path)
        assert read_json(tmp_path / folder / "checkpoint.json")["step"] == 2
        condense(tmp_path)
        assert results(tmp_path) == expected

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"lr_latents": 100.0}, "losses of chunk-00000 is not finite at step 3; nothing .*; lower lr_latents of"),
            ({"lr_encoder": 1e30}, "of encoder is not finite at step 3; nothing was saved yet; lower lr_encoder of"),
        ],
    )
    def test_what_diverged_before_matching_is_not_kept(
        self, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        class BlindFarOut(TinyGenerator):
            def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
                near = latents.abs().amax(dim=1).view(-1, 1, 1, 1) < 50
                return super().forward(latents, labels).where(near, torch.nan)

        config = replace(CONFIG, inversion=replace(CONFIG.inversion, **change))
        for _ in range(2):  # not as finished the second time either
            with pytest.raises(FloatingPointError, match=message):
                condense(tmp_path, config, generator=BlindFarOut())

    @pytest.mark.parametrize("mode", MODES)
    def test_every_mode_goes_on_after_kills_as_if_there_were_none(
        self, tmp_path: Path, killed_at_rename: Callable[..., bool], mode: str
    ) -> None:
        config = replace(SAVED_EVERY_STEP, steps=6, regularizer_weight=0.0, **MODES[mode])
        condense(tmp_path / "whole", replace(config, checkpoint_minutes=5.0))
        kills = 0
        while killed_at_rename(7, condense, tmp_path / "killed", config):
            kills += 1
            assert kills < 30
        assert kills >= 2
        assert results(tmp_path / "killed") == results(tmp_path / "whole")

    def test_a_finished_run_gives_its_latents_at_once(self, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = results(finished)
        for name in ("invert", "train_encoder"):
            monkeypatch.delattr(starting, name)
        monkeypatch.delattr(DistributionObjective, "gradient")
        condense(finished)
        assert results(finished) == before

    def test_every_field_that_determines_the_work_is_refused_by_name(self, tmp_path: Path) -> None:
        assert OTHER.keys() == {field.name for field in fields(CondenserConfig)}  # a new field needs a line there
        config = replace(CONFIG, regularizer_weight=0.0, initialize="normal")
        condense(tmp_path, config)
        before = results(tmp_path)
        for name, (value, message) in OTHER.items():
            if message is None:
                make_condenser(tmp_path, replace(config, **{name: value}))
                continue
            with pytest.raises(ValueError, match=f"holds work with {message}; use that configuration again"):
                make_condenser(tmp_path, replace(config, **{name: value}))
        assert results(tmp_path) == before

    def test_a_prolonged_run_ends_as_a_long_one(self, expected: list[bytes], tmp_path: Path) -> None:
        condense(tmp_path / "prolonged", replace(CONFIG, steps=1))
        condense(tmp_path / "prolonged")
        assert results(tmp_path / "prolonged") == expected

    def test_fewer_steps_than_were_done_are_refused(self, finished: Path) -> None:
        with pytest.raises(ValueError, match="is at step 3, beyond steps=2; raise steps"):
            condense(finished, replace(CONFIG, steps=2))

    def test_how_often_it_is_saved_may_change(self, finished: Path) -> None:
        before = results(finished)
        condense(finished, SAVED_EVERY_STEP)
        assert results(finished) == before

    def test_inversion_is_kept_when_matching_is_tried_otherwise(
        self, finished: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inversion, latents = results(finished)
        remove_groups(finished)
        monkeypatch.delattr(starting, "invert")
        condense(finished, replace(CONFIG, lr_latents=0.2, steps=2))
        assert results(finished)[0] == inversion
        assert results(finished)[1] != latents

    def test_another_generator_or_other_data_are_refused(self, finished: Path) -> None:
        with pytest.raises(ValueError, match="holds work with data="):
            condense(finished, images=IMAGES.select(torch.arange(29)))
        with pytest.raises(ValueError, match="holds work with generator="):
            condense(finished, generator=TinyGenerator(seed=1))


class TestBadInput:
    @pytest.mark.parametrize(
        ("keep", "message"),
        [
            (lambda labels: labels >= 0, "class 'red' has 10 images, fewer than images_per_class=11; lower"),
            (lambda labels: labels != 1, "class 'green' has no images; expected at least one"),
        ],
        ids=["too few", "none"],
    )
    def test_classes_without_enough_images(
        self, tmp_path: Path, keep: Callable[[torch.Tensor], torch.Tensor], message: str
    ) -> None:
        images = IMAGES.select(keep(IMAGES.labels).nonzero().squeeze(1))
        with pytest.raises(ValueError, match=message) as caught:
            make_condenser(tmp_path, replace(CONFIG, images_per_class=11), images)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())

    def test_other_classes_than_the_generators(self, tmp_path: Path) -> None:
        more = LabeledImages(IMAGES.images, IMAGES.labels, ("a", "b", "c", "d"))
        with pytest.raises(ValueError, match="the data set has 4 classes and the generator 3; use a generator"):
            make_condenser(tmp_path, images=more)

    def test_other_names_than_the_generators_classes_have(self, tmp_path: Path) -> None:
        generator = TinyGenerator()
        generator.class_names = ("blue", "red", "green")
        real = make_condenser(tmp_path, generator=generator).real_images
        assert real.class_names == generator.class_names
        assert [real.classes[label] for label in real.targets] == [IMAGES.classes[x] for x in IMAGES.targets]
        for names in (("cat", "dog", "owl"), ("0", "1", "2"), ("red", "green", "grey")):
            other = LabeledImages(IMAGES.images, IMAGES.labels, names)
            with pytest.raises(ValueError, match=f"'{names[0]}'.* expected 3, .'blue', 'red', 'green'"):
                make_condenser(tmp_path, images=other, generator=generator)

    @pytest.mark.parametrize(
        ("factor", "message"),
        [(0.0, "makes the same image whatever its latents are"), (torch.nan, "makes images with NaN or infinity")],
        ids=["constant", "nan"],
    )
    def test_a_generator_of_no_use_before_any_image_is_read(self, tmp_path: Path, factor: float, message: str) -> None:
        generator = TinyGenerator()
        generator.load_state_dict({name: factor * tensor for name, tensor in generator.state_dict().items()})
        with pytest.raises(ValueError, match=f"TinyGenerator {message}"):
            make_condenser(tmp_path, images=range(30), generator=generator)
        assert list(tmp_path.iterdir()) == []

    def test_another_image_size(self, tmp_path: Path, bright_and_dark: LabeledImages) -> None:
        with pytest.raises(ValueError, match=r"shape \(3, 16, 16\) .*, expected \(3, 8, 8\)"):
            make_condenser(tmp_path, images=bright_and_dark)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e9], ids=["nan", "infinite", "exploded"])
    @pytest.mark.parametrize(
        ("minutes", "kept"), [(1e-9, "the last good state, step 2, is in "), (5.0, "nothing was saved yet")]
    )
    def test_a_loss_that_goes_wrong_stops_the_work_before_it_does_harm(
        self,
        tmp_path: Path,
        expected: list[bytes],
        monkeypatch: pytest.MonkeyPatch,
        value: float,
        minutes: float,
        kept: str,
    ) -> None:
        def not_finite(objective: DistributionObjective, batch: Batch, **draw: int) -> Any:
            losses, gradient = gradient_of(objective, batch, **draw)
            return (losses, gradient) if draw["step"] < 2 else (losses * bad, gradient * bad.view(3, 1, 1))

        gradient_of, bad = DistributionObjective.gradient, torch.tensor([1.0, value, 1.0])
        with monkeypatch.context() as patch:
            patch.setattr(DistributionObjective, "gradient", not_finite)
            message = rf"the loss of class 'green' .* at step 2 of group-0000 .*; {kept}.*; lower lr_latents"
            with pytest.raises(FloatingPointError, match=message):
                condense(tmp_path, replace(CONFIG, checkpoint_minutes=minutes))
        assert not (tmp_path / "latents.safetensors").exists()
        condense(tmp_path)
        assert results(tmp_path) == expected

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"steps": -1}, "steps must be at least 0, got -1"),
            ({"strategy": "color_blur"}, "unknown operation 'blur'"),
            ({"objective": "gradient"}, "the regularizer compares embeddings; set regularizer_weight=0"),
            ({"group_size": None, "regroup": True}, "regroup shuffles groups of group_size; give one"),
            ({"band": (0.3, 0.2)}, r"band must be two accuracies, .* got \(0\.3, 0\.2\)"),
            ({"band": (0.1, 0.2), "networks": FreshNetworks()}, "band chooses from the pool, which networks replaces"),
            ({"regroup": True, "networks": FreshNetworks(outer_steps=2)}, "belongs to one group; set regroup=False"),
            ({"class_block": 1, "networks": FreshNetworks(outer_steps=2)}, "sees all classes; set class_block=None"),
            ({"chunk_size": 1, "networks": FreshNetworks(norm="batch")}, "batch norm takes its statistics from all"),
            ({"class_block": 1, "networks": FreshNetworks(norm="batch")}, "batch norm takes its statistics from all"),
        ],
    )
    def test_configuration(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **change)

    def test_a_normalization_of_other_channels(self, tmp_path: Path) -> None:
        config = replace(CONFIG, normalization=Normalization((0.5,), (0.5,)))
        with pytest.raises(ValueError, match="normalization has 1 channels and the images have 3; give one"):
            make_condenser(tmp_path, config)

    def test_a_band_without_networks_names_the_accuracies_before_inversion(self, tmp_path: Path) -> None:
        config = replace(CONFIG, band=(0.01, 0.02))
        with pytest.raises(ValueError, match=r"no state of the pool .* in 0\.01\.\.0\.02; there are \d\.\d+, "):
            condense(tmp_path, config)
        assert not (tmp_path / "encoder").exists()


def one_group(workdir: Path, **change: Any) -> LatentSet:
    return condense(workdir, replace(replace(CONFIG, group_size=None), **change))


class TestUnits:
    @pytest.mark.parametrize("change", [{"class_block": 1}, {"class_block": 2}, {"chunk_size": 1}, {"chunk_size": 2}])
    def test_blocks_of_classes_and_chunks_change_nothing(self, tmp_path: Path, change: dict[str, int]) -> None:
        whole = one_group(tmp_path / "whole")
        parts = one_group(tmp_path / "parts", **change)
        assert torch.equal(parts.labels, whole.labels)
        assert torch.equal(parts.source_index, whole.source_index)
        torch.testing.assert_close(parts.latents, whole.latents, rtol=1e-4, atol=1e-4)

    def test_are_the_blocks_of_each_group(self, tmp_path: Path) -> None:
        units = make_condenser(tmp_path, replace(CONFIG, class_block=2)).work_units
        assert [unit.name for unit in units] == [
            f"group-000{group}-classes-000{first}" for group in (0, 1) for first in (0, 2)
        ]
        assert [(unit.classes, unit.columns) for unit in units[:2]] == [(range(2), range(2)), (range(2, 3), range(2))]

    def test_groups_drawn_anew_mix_and_are_one_unit(self, tmp_path: Path) -> None:
        config = replace(CONFIG, regroup=True)
        condenser = make_condenser(tmp_path / "regrouped", config)
        assert [unit.name for unit in condenser.work_units] == ["group-0000"]
        mixed = condenser.run()
        assert mixed.images_per_class == [3, 3, 3]
        fixed = condense(tmp_path / "fixed")
        order = [mixed.source_index.tolist().index(source) for source in fixed.source_index.tolist()]
        assert not torch.allclose(mixed.latents[order], fixed.latents, atol=1e-3)

    def test_groups_of_the_whole_drawn_anew_are_the_whole(self, tmp_path: Path) -> None:
        whole = one_group(tmp_path / "whole")
        mixed = one_group(tmp_path / "mixed", group_size=3, regroup=True)
        torch.testing.assert_close(mixed.latents, whole.latents, rtol=1e-4, atol=1e-4)


class TestLeaves:
    def test_the_generator_as_it_was(self, tmp_path: Path) -> None:
        generator = TinyGenerator().train()
        condense(tmp_path, generator=generator)
        assert generator.training
        assert all(parameter.requires_grad for parameter in generator.parameters())

    def test_a_log_without_gaps_or_repeats(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = replace(CONFIG, log_steps=2, steps=5)
        run_on(monkeypatch, Clock())
        for _ in range(50):
            if not (tmp_path / "latents.safetensors").exists():
                with contextlib.suppress(OutOfTimeError):
                    make_condenser(tmp_path, config).run(max_minutes=4)
        for group in (0, 1):
            log = (tmp_path / "logs" / f"group-000{group}.jsonl").read_text().splitlines()
            lines = [json.loads(line) for line in log]
            assert [line["step"] for line in lines] == [2, 4, 5]
            assert [set(line) for line in lines] == [{"step", "loss", "seconds", "steps_per_second"}] * 3
            assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)

    def test_no_lines_of_steps_that_were_lost(self, finished: Path) -> None:
        remove_groups(finished)
        log = finished / "logs" / "group-0000.jsonl"
        before = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
        with open(log, "a") as file:
            file.write('{"step": 4, "los')  # as a kill would leave it
        condense(finished)
        assert [json.loads(line)["loss"] for line in log.read_text().splitlines()] == before

    def test_grids_of_images_when_asked(self, tmp_path: Path) -> None:
        condense(tmp_path, replace(CONFIG, preview_steps=2, group_size=None))
        (grid,) = (tmp_path / "previews").iterdir()
        assert grid.name == "group-0000-0000002.png"
        with Image.open(grid) as image:
            assert image.size == (3 * 10 + 2, 3 * 10 + 2)

    def test_curves_for_tensorboard_when_asked(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        condense(tmp_path, replace(CONFIG, tensorboard=True))
        assert len(list((tmp_path / "tensorboard" / "group-0001").iterdir())) == 1

    def test_nothing_where_tensorboard_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(RuntimeError, match=r"pip install 'itgan_data\[tensorboard\]'"):
            condense(tmp_path, replace(CONFIG, tensorboard=True))
        assert not list(tmp_path.iterdir())

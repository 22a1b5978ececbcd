import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from itgan_data.files import save_tensors
from itgan_data.latents import LatentSet, RandomLatents, check_fit


def make_latents(count: int = 6, width: int = 5, *, seed: int = 0) -> LatentSet:
    rng = torch.Generator().manual_seed(seed)
    return LatentSet(
        torch.randn(count, width, generator=rng),
        torch.arange(count) % 3,
        soft_labels=torch.rand(count, 3, generator=rng),
        source_index=torch.arange(count) + 100,
    )


def assert_same(left: LatentSet, right: LatentSet) -> None:
    for name in ("latents", "labels", "soft_labels", "source_index"):
        torch.testing.assert_close(getattr(left, name), getattr(right, name), rtol=0, atol=0)


@pytest.mark.parametrize("mmap", [False, True])
def test_save_and_load_round_trip_in_float32(tmp_path: Path, mmap: bool) -> None:
    latents = make_latents()
    latents.save(tmp_path / "latents.safetensors", dtype=torch.float32)
    assert_same(LatentSet.load(tmp_path / "latents.safetensors", mmap=mmap), latents)


def test_optional_columns_stay_absent(tmp_path: Path) -> None:
    LatentSet(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64)).save(tmp_path / "file")
    loaded = LatentSet.load(tmp_path / "file")
    assert loaded.soft_labels is None
    assert loaded.source_index is None


@pytest.mark.parametrize("mmap", [False, True])
def test_float16_storage_is_the_rounded_value_in_float32(tmp_path: Path, mmap: bool) -> None:
    latents = make_latents()
    latents.save(tmp_path / "latents.safetensors")
    batch, labels = LatentSet.load(tmp_path / "latents.safetensors", mmap=mmap).batch(torch.tensor([4, 1]))
    assert batch.dtype == torch.float32
    assert torch.equal(batch, latents.latents[[4, 1]].half().float())
    assert torch.equal(labels, latents.labels[[4, 1]])


@given(seed=st.integers(0, 1000), magnitude=st.sampled_from([0.0, 1e-6, 1.0, 1e4]))
def test_int8_storage_errs_by_half_a_step_at_most(
    tmp_path_factory: pytest.TempPathFactory, seed: int, magnitude: float
) -> None:
    path = tmp_path_factory.mktemp("int8") / "latents.safetensors"
    values = torch.randn(7, 4, generator=torch.Generator().manual_seed(seed)) * magnitude
    LatentSet(values, torch.zeros(7, dtype=torch.int64)).save(path, dtype=torch.int8)
    step = values.abs().amax(dim=0) / 127
    assert ((LatentSet.load(path).latents - values).abs() <= step * 0.5001).all()


def test_equal_sets_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_latents().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_concatenating_selections_gives_the_set_back() -> None:
    latents = make_latents()
    parts = [latents.select(torch.tensor([0, 1])), latents.select(torch.arange(6) > 1)]
    assert_same(LatentSet.concatenate(parts), latents)


def test_counts_of_each_class_include_empty_classes() -> None:
    assert LatentSet(torch.ones(3, 2), torch.tensor([0, 2, 2])).images_per_class == [1, 0, 2]


def test_gradients_do_not_leak_into_a_set() -> None:
    latents = torch.ones(2, 3, requires_grad=True)
    assert not LatentSet(latents, torch.zeros(2, dtype=torch.int64)).latents.requires_grad


ONES, LABELS = torch.ones(2, 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("latents", "labels", "columns", "message"),
    [
        (
            torch.tensor([[1.0], [math.nan]]),
            LABELS,
            {},
            r"finite, got NaN or infinity in 1 rows \(first: 1\)",
        ),
        (torch.tensor([[math.inf], [1.0]]), LABELS, {}, "finite"),
        (torch.ones(2), LABELS, {}, r"latents must be a non-empty float tensor \[N, width\].*\[2\]"),
        (torch.ones(2, 3, dtype=torch.int64), LABELS, {}, "float tensor"),
        (torch.ones(0, 3), LABELS[:0], {}, "non-empty"),
        (ONES, LABELS[:1], {}, r"labels must be int64 \[2\]"),
        (ONES, LABELS.int(), {}, "int32"),
        (ONES, LABELS - 1, {}, "labels must not be negative, got -1"),
        (ONES, LABELS, {"source_index": LABELS[:1]}, "source_index must be int64"),
        (ONES, LABELS, {"soft_labels": torch.ones(2, 1)}, "soft_labels must be"),
        (ONES, LABELS, {"soft_labels": torch.ones(1, 2)}, "soft_labels must be"),
    ],
)
def test_invalid_columns_are_refused(
    latents: torch.Tensor, labels: torch.Tensor, columns: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LatentSet(latents, labels, **columns)


def test_parts_that_do_not_match_are_not_concatenated() -> None:
    latents, plain = make_latents(), LatentSet(torch.ones(1, 5), torch.tensor([0]))
    for parts, message in (([], "nothing"), ([latents, plain], "1 of 2 parts have soft_labels")):
        with pytest.raises(ValueError, match=message):
            LatentSet.concatenate(parts)
    with pytest.raises(ValueError, match=r"one latent width, got \[4, 5\]"):
        LatentSet.concatenate([plain, LatentSet(torch.ones(1, 4), torch.tensor([0]))])


def test_what_float16_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="overflows"):
        LatentSet(torch.full((1, 2), 1e6), torch.tensor([0])).save(tmp_path / "file")
    with pytest.raises(ValueError, match="dtype must be one of"):
        make_latents().save(tmp_path / "file", dtype=torch.int16)
    assert not (tmp_path / "file").exists()


def test_a_truncated_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latents.safetensors"
    make_latents().save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated"):
        LatentSet.load(path)
    save_tensors(path, {"latents": ONES})
    with pytest.raises(ValueError, match="has no labels"):
        LatentSet.load(path)
    save_tensors(path, {"latents": ONES.to(torch.int8), "labels": LABELS})
    with pytest.raises(ValueError, match="latent_scale"):
        LatentSet.load(path)
    save_tensors(path, {"latents": ONES * math.nan, "labels": LABELS})
    with pytest.raises(ValueError, match=r"latents\.safetensors: latents must be finite"):
        LatentSet.load(path)


def test_latents_must_fit_the_generator() -> None:
    latents = make_latents()
    check_fit(latents, latent_dim=5, num_classes=3)
    with pytest.raises(ValueError, match="takes latents of width 6, got 5"):
        check_fit(latents, latent_dim=6, num_classes=3)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1 for this generator, got 2"):
        check_fit(latents, latent_dim=5, num_classes=2)


@given(indices=st.lists(st.integers(0, 19), min_size=1, max_size=20), epoch=st.integers(0, 5))
def test_a_random_latent_does_not_depend_on_its_batch(indices: list[int], epoch: int) -> None:
    latents = RandomLatents(20, 4, 3, seed=7)
    everything, labels = latents.batch(torch.arange(20), epoch)
    batch = latents.batch(torch.tensor(indices), epoch)
    assert torch.equal(batch[0], everything[indices])
    assert torch.equal(batch[1], labels[indices])


def test_random_latents_differ_by_epoch_and_seed_but_labels_do_not() -> None:
    everything = torch.arange(10)
    first = RandomLatents(10, 4, 3, seed=1)
    for other, epoch in ((first, 1), (RandomLatents(10, 4, 3, seed=2), 0)):
        assert not torch.equal(first.batch(everything, 0)[0], other.batch(everything, epoch)[0])
        assert torch.equal(first.batch(everything, 0)[1], other.batch(everything, epoch)[1])
    assert torch.bincount(first.labels).tolist() == [4, 3, 3]


@pytest.mark.parametrize(("truncation", "std"), [(None, 1.0), (1.5, 0.7424), (0.5, 0.2840)])
def test_random_latents_have_the_moments_of_the_truncated_normal(truncation: float | None, std: float) -> None:
    latents, _ = RandomLatents(2000, 50, 10, truncation=truncation).batch(torch.arange(2000))
    assert abs(float(latents.mean())) < 0.015
    assert float(latents.std()) == pytest.approx(std, rel=0.01)
    assert truncation is None or float(latents.abs().max()) <= truncation


@pytest.mark.parametrize(
    ("arguments", "truncation"), [((0, 4, 3), None), ((5, 0, 3), None), ((5, 4, 0), None), ((5, 4, 3), 0.0)]
)
def test_random_latents_refuse_sizes_below_one(arguments: tuple[int, int, int], truncation: float | None) -> None:
    with pytest.raises(ValueError, match="must be"):
        RandomLatents(*arguments, truncation=truncation)


@pytest.mark.usefixtures("global_rng_untouched")
def test_random_latents_leave_the_global_rng_alone() -> None:
    RandomLatents(5, 4, 3, truncation=1.0).batch(torch.arange(5))

import copy
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from itgan_data.bundle.reading import load_bundle
from itgan_data.generators.pixels import Pixels
from itgan_data.images import Normalization
from itgan_data.latents.fresh import RandomLatents
from itgan_data.latents.stored import LatentSet, check_fit
from itgan_data.storage.files import save_tensors


def make_latents(count: int = 6, width: int = 5, *, seed: int = 0) -> LatentSet:
    rng = torch.Generator().manual_seed(seed)
    return LatentSet(
        torch.randn(count, width, generator=rng),
        torch.arange(count) % 3,
        soft_labels=torch.rand(count, 3, generator=rng).softmax(dim=1),
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
        (
            ONES,
            LABELS,
            {"soft_labels": torch.tensor([[0.5, 0.5], [2.0, -1.0]])},
            "probabilities.*row 1 sums to 1 with -1",
        ),
        (ONES, LABELS, {"soft_labels": torch.tensor([[0.5, 0.5], [0.6, 0.5]])}, "row 1 sums to 1.1.*softmax of logits"),
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
    with pytest.raises(ValueError, match=r"latents of one width, got \[4, 5\]"):
        LatentSet.concatenate([plain, LatentSet(torch.ones(1, 4), torch.tensor([0]))])
    wider = LatentSet(
        torch.ones(1, 5), torch.tensor([0]), soft_labels=torch.full((1, 4), 0.25), source_index=torch.tensor([0])
    )
    with pytest.raises(ValueError, match=r"soft_labels of one width, got \[3, 4\]"):
        LatentSet.concatenate([latents, wider])


def test_what_float16_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="overflows"):
        LatentSet(torch.full((1, 2), 1e6), torch.tensor([0])).save(tmp_path / "file")
    with pytest.raises(ValueError, match="dtype must be one of"):
        make_latents().save(tmp_path / "file", dtype=torch.int16)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("mmap", [False, True])
def test_a_truncated_or_foreign_file_is_refused(tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "latents.safetensors"
    make_latents().save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated"):
        LatentSet.load(path, mmap=mmap)
    save_tensors(path, {"latents": ONES})
    with pytest.raises(ValueError, match="has no labels"):
        LatentSet.load(path, mmap=mmap)
    save_tensors(path, {"latents": ONES.to(torch.int8), "labels": LABELS})
    with pytest.raises(ValueError, match="latent_scale"):
        LatentSet.load(path, mmap=mmap)
    save_tensors(path, {"latents": ONES.to(torch.int8), "labels": LABELS, "latent_scale": ONES[0] * math.nan})
    with pytest.raises(ValueError, match="latent_scale"):
        LatentSet.load(path, mmap=mmap)
    save_tensors(path, {"latents": ONES[:, :0], "labels": LABELS})
    with pytest.raises(
        ValueError, match=r"latents must be a non-empty float tensor \[N, width\], got float32 \[2, 0\]"
    ):
        LatentSet.load(path, mmap=mmap)
    save_tensors(path, {"latents": ONES[0], "labels": LABELS})
    with pytest.raises(ValueError, match=r"latents\.safetensors: latents must be a non-empty float tensor.*\[3\]"):
        LatentSet.load(path, mmap=mmap)
    save_tensors(path, {"latents": ONES, "labels": LABELS - 1})
    with pytest.raises(ValueError, match=r"latents\.safetensors: labels must not be negative"):
        LatentSet.load(path, mmap=mmap)
    save_tensors(path, {"latents": ONES * math.nan, "labels": LABELS})
    with pytest.raises(ValueError, match=r"latents\.safetensors: latents must be finite"):
        LatentSet.load(path, mmap=mmap).batch(torch.tensor([0]))


class TestShards:
    """`max_shard_bytes` that hold two of the six latents give three files."""

    @pytest.mark.parametrize("mmap", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
    def test_a_batch_does_not_depend_on_how_the_set_is_stored(
        self, tmp_path: Path, dtype: torch.dtype, mmap: bool
    ) -> None:
        latents = make_latents(100, 3)
        latents.save(tmp_path / "whole", dtype=dtype)
        latents.save(tmp_path / "shards", dtype=dtype, max_shard_bytes=1000)
        assert len(list(tmp_path.glob("shards-*-of-*"))) > 2
        whole, shards = (LatentSet.load(tmp_path / name, mmap=mmap) for name in ("whole", "shards"))
        places = torch.tensor([99, 0, 50, 50, 3])
        error = 0.0 if dtype != torch.int8 else 0.02  # every shard has its own scale
        for left, right in zip(whole.batch(places), shards.batch(places), strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=error)
        torch.testing.assert_close(shards.batch(places)[0], latents.latents[places], rtol=1e-3, atol=error)
        assert shards.batch(places)[0].dtype == torch.float32

    def test_the_largest_shard_obeys_its_limit(self, tmp_path: Path) -> None:
        latents, header = make_latents(100, 3), 1000
        for limit in (1, 100, 1000, 2000):
            latents.save(tmp_path / "set", max_shard_bytes=limit)
            sizes = [file.stat().st_size for file in tmp_path.glob("set-*-of-*")]
            row = 3 * 2 + 8 + 3 * 4 + 8
            assert max(sizes) <= max(limit, row) + header
            assert len(sizes) == math.ceil(100 / max(1, limit // row))
            assert len(LatentSet.load(tmp_path / "set")) == 100
        with pytest.raises(ValueError, match="max_shard_bytes must be at least 1, got 0"):
            latents.save(tmp_path / "set", max_shard_bytes=0)

    def test_each_shard_is_a_set_of_its_own(self, tmp_path: Path) -> None:
        latents = make_latents()
        latents.save(tmp_path / "latents.safetensors", dtype=torch.float32, max_shard_bytes=100)
        names = [f"latents-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
        assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "latents.safetensors.index.json"]
        assert_same(LatentSet.concatenate([LatentSet.load(tmp_path / name) for name in names]), latents)


@pytest.fixture(params=[1000, 100], ids=["file", "shards"])
def mapped(tmp_path: Path, request: pytest.FixtureRequest) -> LatentSet:
    """`make_latents()`, left in one file or in three."""
    make_latents().save(tmp_path / "mapped", dtype=torch.float32, max_shard_bytes=request.param)
    return LatentSet.load(tmp_path / "mapped", mmap=True)


class TestMapped:
    def test_it_does_what_a_set_in_memory_does(self, mapped: LatentSet, tmp_path: Path) -> None:
        latents = make_latents()
        assert_same(mapped, latents)
        assert (repr(mapped), mapped.images_per_class) == (repr(latents), latents.images_per_class)
        for chosen in (torch.tensor([5, 0, -2]), torch.arange(6) % 2 == 0):
            assert_same(mapped.select(chosen), latents.select(chosen))
        for parts in ([0, 0], [0, 1]):  # all left in their files; one in memory
            left = LatentSet.concatenate([(mapped, latents)[part] for part in parts])
            assert_same(left, LatentSet.concatenate([latents, latents]))
        for limit in (1000, 100):
            mapped.save(tmp_path / "again", max_shard_bytes=limit)
            latents.save(tmp_path / "plain", max_shard_bytes=limit)
            files = zip(sorted(tmp_path.glob("again*")), sorted(tmp_path.glob("plain*")), strict=True)
            assert all(a.read_bytes() == b.read_bytes() for a, b in files if a.suffix != ".json")

    def test_it_can_be_saved_over_itself(self, mapped: LatentSet, tmp_path: Path) -> None:
        mapped.save(tmp_path / "mapped", dtype=torch.float32, max_shard_bytes=100)
        assert_same(LatentSet.load(tmp_path / "mapped"), make_latents())

    def test_an_index_out_of_range_is_refused(self, mapped: LatentSet) -> None:
        for place in (6, -7):
            with pytest.raises(IndexError):
                mapped.batch(torch.tensor([0, place]))

    def test_copies_and_pickles_hold_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wide = LatentSet(torch.ones(10, 10_000), torch.arange(10), soft_labels=torch.full((10, 10_000), 1e-4))
        wide.save(tmp_path / "wide", max_shard_bytes=300_000)
        monkeypatch.chdir(tmp_path)
        left = LatentSet.load("wide", mmap=True)
        monkeypatch.chdir("/")
        pickled = pickle.dumps(left)
        assert len(pickled) < 5000
        for other in (pickle.loads(pickled), copy.deepcopy(left)):
            assert_same(other, LatentSet.load(tmp_path / "wide", mmap=True))

    def test_what_is_not_finite_is_found_by_the_batch_that_reads_it(self, tmp_path: Path) -> None:
        values = torch.ones(4, 3)
        values[2, 1] = math.nan
        save_tensors(tmp_path / "file", {"latents": values, "labels": torch.arange(4)})
        left = LatentSet.load(tmp_path / "file", mmap=True)
        left = LatentSet.concatenate([left, left])
        assert torch.equal(left.batch(torch.tensor([7, 0]))[0], torch.ones(2, 3))
        message = r"file: latents must be finite, got NaN or infinity in 1 of 2 rows read \(first: 2\)"
        for read in (left.batch, left.select):
            with pytest.raises(ValueError, match=message):
                read(torch.tensor([5, 6]))
        with pytest.raises(ValueError, match="finite"):
            left.save(tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_soft_labels_are_checked_by_the_batch_that_reads_them(self, tmp_path: Path) -> None:
        tensors = {"latents": torch.ones(2, 3), "labels": LABELS, "soft_labels": torch.eye(2) * torch.tensor([1, 3])}
        save_tensors(tmp_path / "file", tensors)
        left = LatentSet.load(tmp_path / "file", mmap=True)
        assert left.soft_batch(torch.tensor([0])).tolist() == [[1, 0]]
        with pytest.raises(ValueError, match="row 1 sums to 3"):
            left.soft_batch(torch.tensor([0, 1]))

    @pytest.mark.parametrize("change", ["replaced", "cut", "removed"])
    def test_a_file_that_changes_while_in_use_is_found_out(
        self, mapped: LatentSet, tmp_path: Path, change: str
    ) -> None:
        for file in mapped_files(tmp_path):
            if change == "cut":
                os.truncate(file, 60)
            elif change == "removed":
                file.unlink()
            else:
                make_latents(seed=1).save(file)
        with pytest.raises(FileNotFoundError if change == "removed" else RuntimeError):
            mapped.batch(torch.tensor([4]))


def mapped_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix != ".json"]


def test_latents_must_fit_the_generator() -> None:
    latents = make_latents()
    half = Normalization((0.5,), (0.5,))
    check_fit(latents, Pixels((1, 1, 5), 3, half))
    with pytest.raises(ValueError, match="takes latents of width 6, got 5"):
        check_fit(latents, Pixels((1, 1, 6), 3, half))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1 for this generator, got 2"):
        check_fit(latents, Pixels((1, 1, 5), 2, half))


def test_a_set_drawn_from_a_source_is_one_epoch_of_it() -> None:
    source = RandomLatents(7, 4, 3)
    for epoch in (0, 2):
        latents, labels = source.batch(torch.arange(7), epoch)
        drawn = LatentSet.drawn_from(source, epoch)
        assert_same(drawn, LatentSet(latents, labels))
        assert not drawn.fresh


def is_near_balance(labels: torch.Tensor, window: int = 1000) -> bool:
    """Whether all runs of `window` labels that begin at a multiple of 100 have every class nearly equally often."""
    num_classes = int(labels.max()) + 1
    counts = [run.bincount(minlength=num_classes) for run in labels.unfold(0, window, 100)]
    return bool(((torch.stack(counts) - window / num_classes).abs() < 6 * (window / num_classes) ** 0.5).all())


@pytest.mark.parametrize(("count", "num_classes"), [(2000, 10), (50_000, 10), (50_000, 100)])
def test_a_shuffled_set_has_all_classes_in_every_thousand(count: int, num_classes: int) -> None:
    in_order = LatentSet(torch.arange(count).view(-1, 1) / 1.0, torch.arange(count) // (count // num_classes))
    shuffled = in_order.shuffled()
    assert not is_near_balance(in_order.labels)
    assert is_near_balance(shuffled.labels)
    assert torch.equal(shuffled.latents, in_order.shuffled().latents)  # always alike
    places = shuffled.latents.flatten().long()
    assert torch.equal(places.sort().values, torch.arange(count))
    assert torch.equal(in_order.labels[places], shuffled.labels)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.arange(30) // 10, True),
        (torch.arange(40) // 10 % 2, True),  # learned in two groups
        (torch.arange(20) // 2, True),
        (torch.arange(30) % 3, False),
        (torch.tensor([0, 1, 2]), False),
        (torch.randint(0, 2, (1000,), generator=torch.Generator().manual_seed(0)), False),
    ],
)
def test_a_set_in_class_order_is_recognised(labels: torch.Tensor, expected: bool) -> None:
    assert LatentSet(torch.ones(len(labels), 1), labels).in_class_order == expected


def test_the_packaged_bundle_has_all_classes_in_every_thousand() -> None:
    bundle = load_bundle()
    assert is_near_balance(bundle.latents.labels)

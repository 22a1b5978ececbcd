import logging
import multiprocessing
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyGenerator
from torch.utils.data import DataLoader

from itgan_data.data import cache, generated
from itgan_data.data.cache import ImageCache, cache_folder
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.latents.fresh import RandomLatents
from itgan_data.latents.stored import LatentSet

# Python 3.12 and later warn at every fork of a process with threads, which torch has.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SIZE = 40
PIXEL_BYTES = SIZE * 3 * 8 * 8
FORKING = multiprocessing.get_context("fork")


class CountingGenerator(TinyGenerator):
    """Counts the images it makes."""

    made = 0

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.made += len(latents)
        return super().forward(latents, labels)


class NegativeGenerator(CountingGenerator):
    """Of equal tensors, but another function: as if its code had been edited."""

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -super().forward(latents, labels)


NegativeGenerator.__qualname__ = CountingGenerator.__qualname__
NegativeGenerator.__name__ = CountingGenerator.__name__


def make_latents(seed: int = 0) -> LatentSet:
    rng = torch.Generator().manual_seed(seed)
    return LatentSet(torch.randn(SIZE, 6, generator=rng), torch.arange(SIZE) % 3)


def make_dataset(generator: CountingGenerator | None = None, **options: Any) -> SyntheticDataset:
    return SyntheticDataset(generator or CountingGenerator(), options.pop("latents", make_latents()), **options)


def stored_dataset() -> SyntheticDataset:
    dataset = make_dataset()
    dataset.make_all()
    return dataset


def made(dataset: SyntheticDataset) -> int:
    assert isinstance(dataset.generator, CountingGenerator)
    return dataset.generator.made


def files(folder: Path) -> list[Path]:
    """All files in it, hidden ones too."""
    return sorted(folder.rglob("*")) if folder.is_dir() else []


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_images_are_made_once_for_all_processes(cache_of_its_own: Path) -> None:
    first = stored_dataset()
    assert [file.stat().st_size for file in files(cache_of_its_own)] == [PIXEL_BYTES + 32]
    second = make_dataset()
    assert np.array_equal(second.data, first.data)
    assert torch.equal(second.unit_batch(torch.arange(SIZE))[0], first.unit_batch(torch.arange(SIZE))[0])
    assert (made(first), made(second)) == (SIZE, 3)  # three to see that the file is right


def test_the_file_comes_with_the_last_image(cache_of_its_own: Path) -> None:
    dataset = make_dataset()
    dataset.unit_batch(torch.arange(SIZE - 1))
    assert files(cache_of_its_own) == []
    assert made(make_dataset()) == 0
    dataset.unit_batch(torch.tensor([SIZE - 1]))
    assert len(files(cache_of_its_own)) == 1


def test_forked_workers_write_the_file(cache_of_its_own: Path) -> None:
    dataset = make_dataset()
    list(DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context="fork"))
    assert len(files(cache_of_its_own)) == 1
    assert made(dataset) == 0
    assert np.array_equal(make_dataset().data, dataset.data)


@pytest.mark.parametrize(
    "other",
    [
        lambda: make_dataset(CountingGenerator(seed=1)),
        lambda: make_dataset(latents=make_latents(seed=1)),
        lambda: make_dataset(latents=LatentSet(make_latents().latents, torch.zeros(SIZE, dtype=torch.int64))),
        lambda: make_dataset(dtype=torch.bfloat16),
    ],
    ids=["weights", "latents", "labels", "dtype"],
)
def test_other_content_has_another_file(cache_of_its_own: Path, other: Callable[[], SyntheticDataset]) -> None:
    stored_dataset()
    dataset = other()
    dataset.make_all()
    assert made(dataset) == SIZE
    assert len(files(cache_of_its_own)) == 2


@pytest.mark.parametrize("options", [{"cache": "float"}, {"cache": None}, {"latents": RandomLatents(SIZE, 6, 3)}])
def test_only_uint8_images_of_stored_latents_have_a_file(cache_of_its_own: Path, options: dict[str, Any]) -> None:
    dataset = make_dataset(**options)
    dataset.make_all()
    dataset.unit_batch(torch.arange(SIZE))
    assert files(cache_of_its_own) == []


def test_edits_never_reach_the_file() -> None:
    first = stored_dataset()
    for dataset in (first, make_dataset()):
        dataset.data[:] = 0
        assert not dataset.unit_batch(torch.arange(SIZE))[0].any()
    assert make_dataset().data.any()


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-1], lambda content: b"", lambda content: bytes([content[0] ^ 1]) + content[1:]],
    ids=["truncated", "empty", "one bit"],
)
def test_a_damaged_file_is_noticed_and_replaced(
    cache_of_its_own: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    expected = stored_dataset().data
    (file,) = files(cache_of_its_own)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        dataset = make_dataset()
    assert f"{file} is damaged" in caplog.text
    assert np.array_equal(dataset.data, expected)
    assert made(dataset) == SIZE
    assert file.read_bytes() == whole


def test_an_edited_generator_does_not_get_the_images_of_the_old_one(cache_of_its_own: Path) -> None:
    old = stored_dataset()
    edited = make_dataset(NegativeGenerator())
    assert np.abs(edited.data.astype(int) + old.data - 255).max() <= 1
    assert len(files(cache_of_its_own)) == 1  # replaced
    assert np.array_equal(make_dataset(NegativeGenerator()).data, edited.data)


def test_weights_loaded_on_the_way_store_nothing(cache_of_its_own: Path) -> None:
    dataset = make_dataset()
    dataset.unit_batch(torch.arange(3))
    assert dataset.generator is not None
    dataset.generator.load_state_dict(CountingGenerator(seed=1).state_dict())
    dataset.make_all()
    assert files(cache_of_its_own) == []


def test_a_full_disk_leaves_the_images_in_memory(cache_of_its_own: Path) -> None:
    dataset = make_dataset()
    with full_disk(PIXEL_BYTES // 2), pytest.warns(RuntimeWarning, match=r"stay in memory.*free some space"):
        dataset.make_all()
    assert files(cache_of_its_own) == []
    assert np.array_equal(dataset.data, make_dataset(cache=None).data)
    assert len(pickle.dumps(dataset)) > PIXEL_BYTES


def test_a_folder_that_cannot_be_written_leaves_the_images_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ITGAN_DATA_CACHE", str(tmp_path / "file"))
    dataset = make_dataset()
    with pytest.warns(RuntimeWarning, match="set ITGAN_DATA_CACHE to another folder"):
        dataset.make_all()
    assert np.array_equal(dataset.data, make_dataset(cache=None).data)


def use_as_another_user(variable: str, folder: Path, sums: Any) -> None:
    torch.set_num_threads(1)
    for name in ("ITGAN_DATA_CACHE", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ[variable] = str(folder)
    pickle.loads(pickle.dumps(make_dataset(cache=None)))  # imports modules that root alone may be able to read
    if os.getuid() == 0:  # who may enter every folder
        os.setuid(65534)
    with pytest.warns(RuntimeWarning, match="stay in memory"):
        dataset = stored_dataset()
    sums.put(int(pickle.loads(pickle.dumps(dataset)).data.sum()))


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME", "ITGAN_DATA_CACHE"])
def test_a_folder_that_must_not_be_entered_leaves_the_images_in_memory(tmp_path: Path, variable: str) -> None:
    folder = tmp_path / "other"
    folder.mkdir(mode=0)
    sums = FORKING.Queue()
    process = FORKING.Process(target=use_as_another_user, args=(variable, folder, sums))
    process.start()
    assert sums.get(timeout=60) == int(make_dataset(cache=None).data.sum())
    process.join(60)


def test_a_folder_that_cannot_be_named_leaves_the_images_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ITGAN_DATA_CACHE", str(tmp_path / ("long" * 64)))
    with pytest.warns(RuntimeWarning, match="stay in memory"):
        assert made(stored_dataset()) == SIZE
    assert "cannot be read" in caplog.text
    monkeypatch.setenv("ITGAN_DATA_CACHE", "~nobody-of-this-name/cache")
    assert cache_folder() is None


def make_and_sum(barrier: Any, sums: Any) -> None:
    torch.set_num_threads(1)
    barrier.wait()
    sums.put(int(make_dataset().data.sum()))


def test_several_processes_may_make_it_at_once(cache_of_its_own: Path) -> None:
    barrier, sums = FORKING.Barrier(4), FORKING.Queue()
    processes = [FORKING.Process(target=make_and_sum, args=(barrier, sums)) for _ in range(4)]
    for process in processes:
        process.start()
    got = {sums.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert got == {int(make_dataset().data.sum())}
    assert len(files(cache_of_its_own)) == 1


def store_in(folder: Path) -> None:
    os.environ["ITGAN_DATA_CACHE"] = str(folder)
    stored_dataset()


def test_a_kill_while_the_file_is_written_leaves_no_file_to_read(
    cache_of_its_own: Path, killed_at_rename: Callable[..., bool]
) -> None:
    assert killed_at_rename(1, store_in, cache_of_its_own)
    dataset = make_dataset()
    assert made(dataset) == 0
    dataset.make_all()
    assert made(make_dataset()) == 3


def test_a_pickle_names_the_file_instead_of_holding_the_images(cache_of_its_own: Path) -> None:
    dataset = stored_dataset()
    state = pickle.dumps(dataset)
    twin = pickle.loads(state)
    assert len(state) < len(pickle.dumps(make_dataset(cache="float"))) - 4 * PIXEL_BYTES
    assert np.array_equal(twin.data, dataset.data)
    assert made(twin) == SIZE  # counted before it was pickled
    files(cache_of_its_own)[0].unlink()
    orphan = pickle.loads(state)
    assert np.array_equal(orphan.data, dataset.data)
    assert made(orphan) == 2 * SIZE


def test_a_pickle_holds_edited_images() -> None:
    dataset = stored_dataset()
    dataset.data[3] = 7
    twin = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(twin.data, dataset.data)
    assert not np.array_equal(make_dataset().data, dataset.data)


def test_the_files_used_longest_ago_go_first(cache_of_its_own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CAPACITY", 2 * (PIXEL_BYTES + 32))
    sets = [make_dataset(latents=make_latents(seed)) for seed in range(3)]
    sets[0].make_all()
    sets[1].make_all()
    make_dataset(latents=make_latents(0))  # uses the older one
    sets[2].make_all()
    assert len(files(cache_of_its_own)) == 2
    assert [made(make_dataset(latents=make_latents(seed))) for seed in range(3)] == [3, 0, 3]


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("ITGAN_DATA_CACHE", "")
    assert cache_folder() is None
    assert make_dataset().data.any()  # in memory alone
    monkeypatch.delenv("ITGAN_DATA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "itgan_data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "itgan_data"


def test_a_set_beyond_the_capacity_has_no_file(cache_of_its_own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "CAPACITY", PIXEL_BYTES - 1)
    assert np.array_equal(stored_dataset().data, make_dataset(cache=None).data)
    assert files(cache_of_its_own) == []


def test_images_that_no_memory_holds_are_refused_with_the_remedy() -> None:
    with pytest.raises(MemoryError, match="use cache=None"):
        ImageCache((1 << 50, 3, 32, 32), np.uint8)


def test_what_one_forked_process_puts_all_have() -> None:
    kept = ImageCache((4, 1, 2, 2), np.uint8)
    process = FORKING.Process(target=kept.put, args=(np.array([1, 2]), np.full((2, 1, 2, 2), 9)))
    process.start()
    process.join(60)
    assert kept.missing(np.array([0, 1, 2, 0])).tolist() == [0]
    assert kept.pixels[1:3].min() == 9
    assert not kept.complete

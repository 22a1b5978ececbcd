"""Pools of trained networks: their states, and how they are trained and kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import colored_images, make_images

from itgan_data.condense import pool as embedding
from itgan_data.condense.pool import EmbeddingPool, PoolConfig, build_pool
from itgan_data.images import LabeledImages, Normalization

NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
POOL = PoolConfig(num_networks=1, width=8, steps=4, snapshots=2, batch_size=16)
IMAGES = colored_images()


def build(workdir: Path, config: PoolConfig = POOL, images: LabeledImages = IMAGES) -> EmbeddingPool:
    return build_pool(images, config, normalization=NORMALIZATION, seed=0, workdir=workdir)


def test_holds_every_snapshot_of_every_network(tmp_path: Path, global_rng_untouched: None) -> None:
    pool = build(tmp_path, replace(POOL, num_networks=2))
    assert len(pool) == len(pool.accuracies) == 4
    weights = [state["classifier.weight"] for state in pool.states]
    assert all(not torch.equal(one, other) for one in weights for other in weights if one is not other)
    assert not [parameter for parameter in pool.network.parameters() if parameter.requires_grad]


def test_may_grow(tmp_path: Path) -> None:
    (first, *_), (again, *_) = (build(tmp_path, replace(POOL, num_networks=count)).states for count in (1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_learns_to_tell_the_classes_apart(tmp_path: Path) -> None:
    pool = build(tmp_path, replace(POOL, steps=160))
    assert pool.accuracies[-1] == 1.0  # of the fifth that was held out


def test_is_read_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(tmp_path)
    monkeypatch.delattr(embedding, "ClassifierTraining")
    again = build(tmp_path)
    assert again.accuracies == first.accuracies
    for state, other in zip(first.states, again.states, strict=True):
        assert all(torch.equal(state[name], other[name]) for name in state)
    with pytest.raises(ValueError, match="width=8, not 9"):
        build(tmp_path, replace(POOL, width=9))


def test_a_network_that_diverged_is_not_kept(tmp_path: Path) -> None:
    tiny_std = Normalization((0.5,) * 3, (1e-38,) * 3)
    with pytest.raises(FloatingPointError, match="of network-000 is not finite at step 4; nothing was saved"):
        build_pool(make_images(40, 8), POOL, normalization=tiny_std, seed=0, workdir=tmp_path)
    assert not (tmp_path / "network-000").exists()


def test_needs_images_to_keep_out_of_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs at least 5 real images, a fifth .*, got 4; add images"):
        build(tmp_path, images=IMAGES.select(torch.arange(4)))


def test_the_best_is_the_most_accurate_and_the_drawn_changes(tmp_path: Path) -> None:
    pool = build(tmp_path)
    pool.accuracies = [0.7, 0.6]
    pool.load_best()
    assert torch.equal(pool.network.classifier.weight, pool.states[0]["classifier.weight"])
    drawn = []
    for step in range(40):
        pool.load_drawn(0, 0, step)
        drawn.append(torch.equal(pool.network.classifier.weight, pool.states[0]["classifier.weight"]))
    assert 8 < sum(drawn) < 32


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"steps": 8}, [4, 8]),
        ({"steps": 800, "snapshots": 4, "first_snapshot": 100}, [100, 200, 400, 800]),
        ({"steps": 64, "snapshots": 7, "first_snapshot": 1}, [1, 2, 4, 8, 16, 32, 64]),
        ({"steps": 6, "snapshots": 6, "first_snapshot": 1}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_snapshots_lie_evenly_or_early(change: dict[str, int], expected: list[int]) -> None:
    assert replace(POOL, **change).snapshot_steps() == expected


def test_a_band_holds_the_states_of_its_accuracies_on_the_same_network(tmp_path: Path) -> None:
    pool = build(tmp_path, replace(POOL, num_networks=2))
    pool.accuracies = [0.1, 0.3, 0.2, 0.9]
    band = pool.within((0.1, 0.2))
    assert band.network is pool.network
    assert band.accuracies == [0.1, 0.2]
    assert band.states == [pool.states[0], pool.states[2]]
    with pytest.raises(ValueError, match=r"in 0\.4\.\.0\.5; there are 0\.100, 0\.200, 0\.300, 0\.900"):
        pool.within((0.4, 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"snapshots": 5}, "4 steps cannot give 5 snapshots; raise steps"),
        ({"first_snapshot": 4}, r"first_snapshot must lie in 1\.\.3 and needs a second one, got 4"),
        ({"first_snapshot": 1, "snapshots": 1}, "needs a second one, got 1 with 1 snapshots"),
    ],
)
def test_bad_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(POOL, **change)


def test_an_unknown_network_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"network must be 'convnet', .* or 'mobilenet_v2', got 'resnet81'"):
        build(tmp_path, replace(POOL, network="resnet81"))

"""The benchmark of a step compares like with like."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from conftest import benchmark_script

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with benchmark_script("condense_speed") as script, pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "CHANNELS", (8, 8, 8, 8))
        yield script


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("backward_once", [False, True])
def test_the_loop_over_classes_and_ours_make_the_same_steps(
    script: ModuleType, chunk_size: int | None, backward_once: bool
) -> None:
    work = script.Work(3, 4, 5, chunk_size)
    loop = script.Variant(loop=True, backward_once=backward_once)
    theirs, ours = (script.make_step(variant, work, CPU, script.Stopwatch(CPU)) for variant in (loop, script.Variant()))
    for step in range(2):  # the second from where the first has led
        (expected, expected_gradient), (losses, gradient) = theirs(step), ours(step)
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)
        assert (gradient - expected_gradient).norm() < 0.02 * expected_gradient.norm()  # a ReLU at 0 may go either way


@pytest.mark.parametrize("loop", [False, True])
def test_all_parts_of_a_step_are_timed(script: ModuleType, loop: bool) -> None:
    watch = script.Stopwatch(CPU)
    step = script.make_step(script.Variant(loop=loop), script.Work(2, 2, 2), CPU, watch)
    step(0)
    assert not watch.seconds
    watch.running = True
    started = watch.now()
    step(1)
    assert set(watch.seconds) == set(script.PARTS)
    assert min(watch.seconds.values()) > 0
    assert watch.seconds.total() == pytest.approx(watch.now() - started, rel=0.1)


def test_no_variant_is_faster_than_the_machine(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    uncompiled = {name: variant for name, variant in script.VARIANTS.items() if not variant.compiled}
    monkeypatch.setattr(script, "VARIANTS", uncompiled)
    rows = script.measure_speed(script.Work(2, 2, 2), 1, CPU)
    assert set(rows) == set(uncompiled)
    assert all(0 < row["share_of_peak"] < 1 for row in rows.values())
    plain, ours = rows[script.PLAIN], rows["ours, float32"]
    assert ours["operations"] < plain["operations"]  # the same images by fewer products
    assert {row["operations"] for row in rows.values()} == {plain["operations"], ours["operations"]}

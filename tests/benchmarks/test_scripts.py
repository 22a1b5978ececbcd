"""What the benchmarks that share their options promise: they run, go on with what is missing, refuse in one line."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import Result
from conftest import benchmark_script, run_tiny, write_bundle

from itgan_data.evaluation.results import Summary
from itgan_data.storage.files import read_json, write_json

OPTIONS = {
    "ablations": ("--tables", "4", "--cells", "lr1-"),
    "accuracy": ("--rows", "real-count,gan-fresh,it-gan"),
    "methods": ("--rows", "random,gan"),
    "sampling": ("--tables", "1", "--rows", "fixed+transforms,learned+transforms"),
    "storage": ("--latents", "bundle/latents.safetensors"),
}


@pytest.fixture(params=OPTIONS)
def script(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.chdir(tmp_path)
    with benchmark_script(request.param) as module:
        yield module


def run(script: ModuleType, *options: str) -> Result:
    return run_tiny(script, Path(), *OPTIONS[script.__name__], *options)


def test_a_run_is_measured_once_and_goes_on_with_what_is_missing(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, out = run(script), Path("out.json")
    assert first.exit_code == 0, first.output
    assert "| " in first.stdout
    content = read_json(out)
    with monkeypatch.context() as patch:
        patch.setattr("setting.evaluate", None)  # what is there is not measured again
        assert run(script).stdout == first.stdout
    assert read_json(out) == content

    name = max(content["rows"])
    del content["rows"][name]["results"][-1]["seconds"]
    write_json(out, {**content, "rows": {row: kept for row, kept in content["rows"].items() if row != name}})
    assert run(script).stdout == first.stdout
    found = read_json(out)["rows"][name]
    del found["results"][-1]["seconds"]
    assert found["results"][-1] == content["rows"][name]["results"][-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scale", "huge"], "'huge' is not one of 'tiny', 'cpu', 'gpu'"),
        (["--data", "imagefolder:/nowhere"], "/nowhere"),
        (["--bundle", "/nowhere"], "there is no bundle at /nowhere"),
        (["--bundle", "pets"], "the bundle ['cat', 'dog']; expected the same in the same order"),
        (["--out", "others.json"], "others.json holds results of other settings"),
        (["--rows", "magic"], "unknown name 'magic'; expected some of "),
        (["--tables", "8"], "unknown name '8'; expected some of "),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    script: ModuleType, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options[0] not in {flag for parameter in script.main.params for flag in parameter.opts}:
        pytest.skip("the script has no such option")
    write_bundle(Path("pets"), ["cat", "dog"])
    write_json(Path("others.json"), {"settings": {}, "environment": {}, "rows": {}})
    monkeypatch.setattr("setting.evaluate", None)
    result = run(script, *options)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert message in result.stderr.splitlines()[-1]
    assert not Path("out.json").exists()
    assert not Path("work").exists()


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        ((0.718, 0.008), (0.706, 0.008), "holds"),
        ((0.706, 0.008), (0.718, 0.008), "reversed"),
        ((0.718, 0.008), (0.716, 0.005), "within the spread"),
        ((0.718, None), (0.706, 0.008), "-"),
    ],
)
def test_an_order_holds_when_the_difference_exceeds_the_spread(
    better: tuple[float, float], worse: tuple[float, float], expected: str
) -> None:
    with benchmark_script("setting") as setting:
        summaries = [Summary(mean=mean, std=std, num_seeds=3) for mean, std in (better, worse)]
        assert setting.verdict(*summaries) == expected

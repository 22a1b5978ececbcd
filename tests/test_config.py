import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

from itgan_data.condense.config import CondenserConfig, OfMatching
from itgan_data.condense.inversion import InversionConfig
from itgan_data.condense.network_source import FreshNetworks
from itgan_data.condense.pool import PoolConfig
from itgan_data.config import (
    Above,
    AtLeast,
    AtMost,
    Between,
    HalfOpen,
    MayDiffer,
    OneOf,
    check,
    from_json,
    marked,
    needs_extra,
)
from itgan_data.datasets import CIFAR10
from itgan_data.evaluation.features import inception
from itgan_data.evaluation.metrics import ms_ssim, precision_recall
from itgan_data.evaluation.plots import plot_training, plot_weights
from itgan_data.generators.biggan import BigGANConfig
from itgan_data.images import Normalization
from itgan_data.pretraining.config import GeneratorTrainerConfig
from itgan_data.recipes import fast_recipe

MAY_DIFFER = {  # a field that is not here determines the work: another value of it is refused on resume
    CondenserConfig(): "steps checkpoint_minutes log_steps preview_steps tensorboard chunk_size",
    GeneratorTrainerConfig(): "steps checkpoint_minutes log_steps preview_steps monitor_steps monitor_samples "
    "collapse_ratio collapse_checks",
    PoolConfig(): "num_networks",
    InversionConfig(): "",
    FreshNetworks(): "",
    BigGANConfig(): "",
    CIFAR10.normalization: "",
    fast_recipe(): "",
}


@dataclass(frozen=True, kw_only=True)
class Inner:
    count: int = 1

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Example:
    count: Annotated[int, AtLeast(1), AtMost(9), MayDiffer] = 3
    rate: Annotated[float, Above(0)] = 0.5
    ratio: Annotated[float, Above(1)] = 2.0
    share: Annotated[float, Between(0, 1)] = 1.0
    momentum: "Annotated[float, HalfOpen(0, 1)]" = 0.0
    limit: Annotated[int | None, AtLeast(1), MayDiffer] = None
    name: str = "net"
    flag: bool = True
    mode: Literal["a", "b", "c"] | None = "a"
    key: Annotated[str, OneOf(("x", "y"))] = "x"
    pair: tuple[Annotated[float, Between(0, 1)], float] | None = (0.5, 2.0)
    widths: tuple[Annotated[int, AtLeast(1)], ...] = (4, 4)
    inner: Inner = field(default_factory=Inner)
    anything: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    "values", [{"rate": 2}, {"limit": 7}, {"mode": None}, {"pair": None}, {"widths": ()}, {"anything": "not looked at"}]
)
def test_values_that_fit_are_let_through(values: dict[str, Any]) -> None:
    assert vars(Example(**values)) == {**vars(Example()), **values}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 2.5}, "count must be a whole number, got 2.5"),
        ({"count": "3"}, "count must be a whole number, got '3'"),
        ({"count": np.int64(3)}, "count must be a whole number, got np.int64(3)"),  # json.dumps refuses it
        ({"count": True}, "count must be a whole number, got True"),
        ({"count": None}, "count must be a whole number, got None"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"count": 10}, "count must be at most 9, got 10"),
        ({"limit": 1.0}, "limit must be a whole number, got 1.0"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"rate": float("nan")}, "rate must be a finite number, got nan"),
        ({"rate": float("inf")}, "rate must be a finite number, got inf"),
        ({"rate": 10**400}, "rate must be a finite number, got 1" + 79 * "0"),
        ({"rate": "fast"}, "rate must be a finite number, got 'fast'"),
        ({"rate": 0.0}, "rate must be positive, got 0.0"),
        ({"ratio": 1}, "ratio must be above 1, got 1"),
        ({"share": 1.5}, "share must lie in [0, 1], got 1.5"),
        ({"momentum": 1.0}, "momentum must lie in [0, 1), got 1.0"),
        ({"name": 3}, "name must be text, got 3"),
        ({"flag": "no"}, "flag must be true or false, got 'no'"),
        ({"mode": "d"}, "mode must be 'a', 'b' or 'c', got 'd'"),
        ({"mode": ["a"]}, "mode must be 'a', 'b' or 'c', got ['a']"),
        ({"key": "z"}, "key must be 'x' or 'y', got 'z'"),
        ({"pair": (0.5,)}, "pair must be a list of 2, got (0.5,)"),
        ({"pair": (2, 0.5)}, "each of pair must lie in [0, 1], got 2"),
        ({"widths": 4}, "widths must be a list, got 4"),
        ({"widths": "44"}, "widths must be a list, got '44'"),
        ({"widths": [4, True]}, "each of widths must be a whole number, got True"),
        ({"widths": [4, 0]}, "each of widths must be at least 1, got 0"),
        ({"inner": 3}, "inner must be of type Inner, got 3"),
        ({"inner": {"count": "3"}}, "count must be a whole number, got '3'"),
    ],
    ids=str,
)
def test_others_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        Example(**values)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "expected an object, got list"),
        ({"depth": 3}, "unexpected keyword argument 'depth'"),
        ({"__class__": "os.system"}, "unexpected keyword argument '__class__'"),
        ({"inner": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"count": 0}, "count must be at least 1, got 0"),
    ],
)
def test_json_that_does_not_fit_is_refused(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Example, values)


@pytest.mark.parametrize("config", MAY_DIFFER, ids=lambda config: type(config).__name__)
class TestEveryConfiguration:
    def test_checks_its_values(self, config: Any) -> None:
        checked = [name for name, value in vars(config).items() if type(value) in (int, float, bool, tuple)]
        assert checked
        for name in checked:
            with pytest.raises(ValueError, match=rf"{name} must be .*, got (None|\[1\])"):
                type(config)(**{**vars(config), name: [None] if name in ("channels", "mean", "std") else [1]})

    def test_comes_back_from_json(self, config: Any) -> None:
        if type(config) is not type(fast_recipe()):  # whose augmentation is written for readers only
            assert from_json(type(config), json.loads(json.dumps(asdict(config)))) == config

    def test_marks_what_may_differ_on_resume(self, config: Any) -> None:
        assert {*marked(type(config), MayDiffer)} == {*MAY_DIFFER[config].split()}


def test_marks_of_matching_are_of_fields_that_the_start_does_not_need() -> None:
    assert {*marked(CondenserConfig, OfMatching)} == {
        *("group_size", "regroup", "class_block", "objective", "optimizer", "momentum", "lr_latents"),
        *("regularizer_weight", "real_batch_size", "strategy", "band", "networks"),
    }


def test_nested_configurations_come_back_from_json_too() -> None:
    config = replace(CondenserConfig(), networks=FreshNetworks(width=8), normalization=Normalization((0.5,), (0.2,)))
    assert from_json(CondenserConfig, json.loads(json.dumps(asdict(config)))) == config
    config = replace(CondenserConfig(), band=(0.25, 0.5))
    assert from_json(CondenserConfig, json.loads(json.dumps(asdict(config)))) == config


def test_a_missing_package_names_the_extra_to_install() -> None:
    with (
        pytest.raises(RuntimeError, match=r"no_such_package .*pip install 'itgan_data\[plots\]'") as raised,
        needs_extra("plots"),
    ):
        import no_such_package.part  # noqa: F401
    assert "\n" not in str(raised.value)


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), needs_extra("plots"):
        raise KeyError("other")


VALUES = torch.arange(18.0).view(9, 2)
IMAGES, LABELS = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("missing", "call", "extra"),
    [
        ("torch_fidelity.metric_prc", lambda: precision_recall(VALUES, VALUES), "metrics"),
        ("torch_fidelity.feature_extractor_inceptionv3", lambda: inception("weights.pth"), "metrics"),
        ("torchmetrics.functional.image", lambda: ms_ssim(IMAGES, LABELS), "metrics"),
        ("matplotlib.figure", lambda: plot_training("a.png", {"loss": {"a": [(0, 1)]}}), "plots"),
        (
            "sklearn.manifold",
            lambda: plot_weights("a.png", VALUES, VALUES[:, 0], title="", network="", perplexity=2),
            "plots",
        ),
    ],
)
def test_a_function_that_needs_an_extra_says_so(
    monkeypatch: pytest.MonkeyPatch, missing: str, call: Callable[[], object], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RuntimeError, match=rf"{missing} .*pip install 'itgan_data\[{extra}\]'"):
        call()

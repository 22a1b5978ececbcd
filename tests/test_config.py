from dataclasses import asdict, dataclass

import numpy as np
import pytest

from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.inversion import InversionConfig
from itgan_data.condense.network_source import FreshNetworks
from itgan_data.condense.pool import PoolConfig
from itgan_data.config import check_types
from itgan_data.generators.biggan import BigGANConfig
from itgan_data.pretraining.config import GeneratorTrainerConfig
from itgan_data.recipes import Recipe, fast_recipe

CONFIGS = [
    CondenserConfig(),
    InversionConfig(),
    PoolConfig(),
    FreshNetworks(),
    BigGANConfig(),
    GeneratorTrainerConfig(),
    fast_recipe(),
]
RIGHT = {"count": 3, "rate": 0.5, "limit": None, "name": "net", "flag": True, "pair": (1, 2)}


@dataclass
class Example:
    count: int
    rate: float
    limit: int | None
    name: str
    flag: bool
    pair: tuple[int, int]


@pytest.mark.parametrize("values", [{}, {"rate": 2}, {"limit": 7}, {"pair": "not looked at"}])
def test_values_that_fit_are_let_through(values: dict[str, object]) -> None:
    check_types(Example(**{**RIGHT, **values}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 2.5}, r"^count must be a whole number, got 2\.5$"),
        ({"count": "3"}, "count must be a whole number, got '3'"),
        ({"count": np.int64(3)}, r"count must be a whole number, got np\.int64\(3\)"),  # json.dumps refuses it
        ({"count": True}, "count must be a whole number, got True"),
        ({"count": None}, "count must be a whole number, got None"),
        ({"limit": 1.0}, r"limit must be a whole number, got 1\.0"),
        ({"rate": float("nan")}, "rate must be a finite number, got nan"),
        ({"rate": float("inf")}, "rate must be a finite number, got inf"),
        ({"rate": "fast"}, "rate must be a finite number, got 'fast'"),
        ({"name": 3}, "name must be text, got 3"),
        ({"flag": "no"}, "flag must be true or false, got 'no'"),
    ],
)
def test_others_are_refused_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_types(Example(**{**RIGHT, **values}))  # type: ignore[arg-type]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_every_configuration_checks_its_values(config: object) -> None:
    values = asdict(config) if not isinstance(config, Recipe) else dict(vars(config))  # type: ignore[call-overload]
    checked = [name for name, value in values.items() if type(value) in (int, float, bool)]
    assert checked
    for name in checked:
        with pytest.raises(ValueError, match=rf"{name} must be .*, got \[1\]"):
            type(config)(**{**values, name: [1]})

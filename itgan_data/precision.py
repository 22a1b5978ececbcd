"""What convolutions compute in: float32, or bfloat16 under autocast with float32 weights."""

from collections.abc import Callable

import torch

PRECISIONS = ("float32", "bfloat16")


def check_precision(precision: str) -> None:
    """Refuse what is not one of `PRECISIONS`.

    Raises:
        ValueError: another name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be 'float32' or 'bfloat16', got {precision!r}")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which matrix products and convolutions on `device` compute in `precision`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def computing(
    function: Callable[..., torch.Tensor], device: torch.device, precision: str, *, compiled: bool
) -> Callable[..., torch.Tensor]:
    """`function` in `precision` on `device`, through torch.compile if that is asked for, with float32 results."""
    compute = torch.compile(function) if compiled else function

    def call(*arguments: torch.Tensor) -> torch.Tensor:
        with autocast(device, precision):
            return compute(*arguments).float()

    return call

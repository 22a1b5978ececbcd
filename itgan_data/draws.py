"""Counter-based random numbers: a pure function of (seed, epoch, index).

The same triple gives the same numbers whatever the batch, the order, the device or the number of workers,
so nothing has to be stored to resume and no sample depends on its neighbours.
"""

import math

import torch

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: the increment of splitmix64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_MANTISSA = 24  # random bits of a float32 in [0, 1)


def _mix(state: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64 on int64 tensors, whose products wrap like unsigned ones.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    return state ^ _shift_right(state, 31)


def _shift_right(state: torch.Tensor, bits: int) -> torch.Tensor:
    return (state >> bits) & ((1 << (64 - bits)) - 1)  # logical: `>>` on int64 copies the sign bit


def _key(*parts: int) -> int:
    state = torch.zeros((), dtype=torch.int64)
    for part in parts:
        state = _mix((state ^ part) + _GOLDEN)
    return int(state)


def uniform(seed: int, epoch: int, indices: torch.Tensor, count: int, *, stream: int = 0) -> torch.Tensor:
    """Uniform numbers in [0, 1) for each index.

    Args:
        seed, epoch: any integers.
        indices: int64 `[B]`; the numbers of an index do not depend on the other indices.
        count: how many numbers each index gets.
        stream: keeps several uses of the same (seed, epoch, index) independent.

    Returns:
        float32 `[B, count]` on the device of `indices`.
    """
    per_index = _mix(_key(seed, stream, epoch) + indices.unsqueeze(1) * _GOLDEN)
    columns = torch.arange(1, count + 1, device=indices.device)
    bits = _shift_right(_mix(per_index + columns * _GOLDEN), 64 - _MANTISSA)
    return bits.to(torch.float32) / (1 << _MANTISSA)


def normal(seed: int, epoch: int, indices: torch.Tensor, count: int, *, stream: int = 0) -> torch.Tensor:
    """Standard normal numbers `[B, count]` for each index, by the Box-Muller transform of `uniform`."""
    pairs = (count + 1) // 2
    u = uniform(seed, epoch, indices, 2 * pairs, stream=stream)
    radius = (-2.0 * torch.log1p(-u[:, :pairs])).sqrt()
    angle = (2.0 * math.pi) * u[:, pairs:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def permutation(seed: int, epoch: int, size: int, *, stream: int = 0) -> torch.Tensor:
    """A random order of `range(size)`, int64 on the CPU."""
    return torch.randperm(size, generator=make_rng(seed, epoch, stream))


def make_seed(seed: int, *keys: int) -> int:
    """A non-negative 63-bit seed that depends on `seed` and all `keys`."""
    return _key(seed, *keys) & (2**63 - 1)


def make_rng(seed: int, *keys: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A private random generator whose state depends on `seed` and all `keys`."""
    return torch.Generator(device=device).manual_seed(make_seed(seed, *keys))

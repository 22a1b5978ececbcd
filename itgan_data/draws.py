"""Counter-based random numbers: a pure function of (seed, epoch, index).

The same triple gives the same numbers whatever the batch, the order, the device or the number of workers,
so nothing has to be stored to resume and no sample depends on its neighbours.
"""

import enum
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: the increment of splitmix64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_MANTISSA = 24  # random bits of a float32 in [0, 1)


@enum.unique
class Stream(enum.IntEnum):
    """What numbers are drawn for: draws of equal (seed, epoch, index) in two streams are independent.

    This is the only list of them. Results depend on the values, so a new stream gets a new one and none is reused.
    """

    LATENTS = 1
    """Fresh latents of an epoch."""
    JITTER = 2
    MIXTURE = 3
    """Which learned latents an epoch replaces by others."""
    ENSEMBLE = 4
    """The generator of a batch."""
    SHUFFLE = 5
    """The order of images in `SyntheticLoader` and in recipes, which see the same batches for the same seed."""
    AUGMENTATION = 6
    CLASSIFIER = 7
    """Weights of a network that is trained to be tested."""
    METRIC_PAIRS = 8
    EQUAL_SHARES = 9
    """Images of each class that a metric looks at."""
    PROBE = 10
    """Latents that show whether a generator is of any use."""
    LATENT_ORDER = 11
    """The order in which condensed latents are stored."""
    GAN_WEIGHTS = 20
    GAN_LATENTS = 21
    GAN_LABELS = 22
    GAN_AUGMENTATION = 23
    GAN_FLIP = 24
    GAN_ORDER = 25
    GAN_WEIGHTED = 26
    """Real images in proportion to their weights."""
    ENCODER_WEIGHTS = 27
    ENCODER_LATENTS = 28
    ENCODER_LABELS = 29
    CODEC_WEIGHTS = 30
    CODEC_ORDER = 31
    """Images of a batch."""
    CODEC_NOISE = 32
    """The step that each image is coded with, and noise of the width of rounding."""
    CODEC_FEATURES = 35
    """Weights of the networks in whose maps images are compared."""
    CONTEXT_WEIGHTS = 33
    CONTEXT_BATCHES = 34
    POOL_WEIGHTS = 40
    POOL_SPLIT = 41
    """Real images that the networks of a pool are validated on."""
    POOL_STATE = 42
    """The embedding network of a step, out of the pool."""
    FRESH_WEIGHTS = 43
    FRESH_ORDER = 44
    FRESH_AUGMENTATION = 45
    INVERSION = 46
    """Latents that inversion starts from."""
    CORESET = 47
    CORESET_TIES = 48
    MATCHING_REAL = 49
    """Real images that a step of condensation matches."""
    MATCHING_AUGMENTATION = 50
    PARTITION = 51
    """Which latents a step of condensation learns together."""
    SCRIPT = 60
    """For programs that use the package, such as its benchmarks."""


def _mix(state: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64 on int64 tensors, whose products wrap like unsigned ones.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    return state ^ _shift_right(state, 31)


def _shift_right(state: torch.Tensor, bits: int) -> torch.Tensor:
    return (state >> bits) & ((1 << (64 - bits)) - 1)  # logical: `>>` on int64 copies the sign bit


def _key(seed: int, stream: Stream, *keys: int) -> int:
    if not isinstance(stream, Stream):
        raise TypeError(f"stream must be a member of draws.Stream, got {stream!r}; add one for a new use")
    state = torch.zeros((), dtype=torch.int64)
    for part in (seed, stream, *keys):
        state = _mix((state ^ part) + _GOLDEN)
    return int(state)


def uniform(seed: int, epoch: int, indices: torch.Tensor, count: int, *, stream: Stream) -> torch.Tensor:
    """Uniform numbers in [0, 1) for each index.

    Args:
        seed, epoch: any integers.
        indices: int64 `[B]`; the numbers of an index do not depend on the other indices.
        count: how many numbers each index gets.
        stream: what they are for.

    Returns:
        float32 `[B, count]` on the device of `indices`.
    """
    per_index = _mix(_key(seed, stream, epoch) + indices.unsqueeze(1) * _GOLDEN)
    columns = torch.arange(1, count + 1, device=indices.device)
    bits = _shift_right(_mix(per_index + columns * _GOLDEN), 64 - _MANTISSA)
    return bits.to(torch.float32) / (1 << _MANTISSA)


def normal(seed: int, epoch: int, indices: torch.Tensor, count: int, *, stream: Stream) -> torch.Tensor:
    """Standard normal numbers `[B, count]` for each index, by the Box-Muller transform of `uniform`."""
    pairs = (count + 1) // 2
    u = uniform(seed, epoch, indices, 2 * pairs, stream=stream)
    radius = (-2.0 * torch.log1p(-u[:, :pairs])).sqrt()
    angle = (2.0 * math.pi) * u[:, pairs:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def permutation(seed: int, epoch: int, size: int, *, stream: Stream) -> torch.Tensor:
    """A random order of `range(size)`, int64 on the CPU."""
    return torch.randperm(size, generator=make_rng(seed, epoch, stream=stream))


def shuffled_classes(labels: torch.Tensor, num_classes: int, seed: int, *, stream: Stream) -> list[torch.Tensor]:
    """The indices of each class in `labels`, in a random order: their first k are a random choice of equal shares."""
    by_class = [(labels.cpu() == label).nonzero()[:, 0] for label in range(num_classes)]
    return [rows[permutation(seed, label, len(rows), stream=stream)] for label, rows in enumerate(by_class)]


def make_seed(seed: int, *keys: int, stream: Stream) -> int:
    """A non-negative 63-bit seed that depends on `seed`, `stream` and all `keys`."""
    return _key(seed, stream, *keys) & (2**63 - 1)


def make_rng(seed: int, *keys: int, stream: Stream) -> torch.Generator:
    """A private random generator on the CPU whose state depends on `seed`, `stream` and all `keys`."""
    return torch.Generator().manual_seed(make_seed(seed, *keys, stream=stream))


@contextmanager
def global_rng_seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global RNG, on the CPU and on `device`, for a block of code that draws from it; it is restored after."""
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all GPUs too
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield

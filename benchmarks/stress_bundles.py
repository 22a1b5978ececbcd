"""Does a damaged or hostile bundle ever do anything but raise our own error?

Thousands of mutations of small bundles go through `load_bundle`, in workers with a limit of memory and time: bits
flipped, files cut, headers and JSON edited, tensors renamed, sizes made huge. In half of them the checksums are set
right again, so that the deeper checks are reached. Every mutation follows from its number.

    python benchmarks/stress_bundles.py --mutations 6000
"""

import itertools
import json
import math
import multiprocessing
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import torch
from safetensors import torch as safetensors
from setting import readable

import itgan_data
from itgan_data.bundle.writing import Bundle, load_bundle, save_bundle
from itgan_data.evaluation.results import environment
from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.generators.codec import Codec, CodecConfig
from itgan_data.generators.context import ContextShape
from itgan_data.latents.coded import CodedRows
from itgan_data.latents.stored import LatentSet
from itgan_data.pretraining.context_fit import ContextFit, fit_context
from itgan_data.storage.files import read_json, sha256_of, write_json

PACKAGE = str(Path(itgan_data.__file__).parent)
CONFIG = {
    "dataset": "toy",
    "class_names": ["cat", "dog", "owl"],
    "normalization": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    "method": "IT-GAN",
    "training": {"seed": 0},
    "metrics": {"test accuracy": 0.5},
}
OUTCOMES = ("refused", "equal", "another", "failed")
SECONDS = 20
BYTES = 1 << 30  # beyond what a worker has taken when it starts
RAW = {"<huge int>": "9" * 5000, "<infinite>": "1e999", "<nan>": "NaN", "<deep>": "[" * 5000 + "]" * 5000}
ODD = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3.5,
        -0.0,
        1e308,
        2**31,
        2**63,
        2**64 + 1,
        "",
        "\0",
        "x" * 5000,
        "../../etc/passwd",
    ),
    *([], {}, [[]], {"": {}}, [0] * 1000, "1", "float64", "biggan", *RAW),
)


def make_bundles(folder: Path) -> list[Path]:
    """Small bundles with latents in float16, in int8, in shards, and as codes of a codec."""
    generator = BigGAN(BigGANConfig(num_classes=3, latent_dim=16, channels=(8, 8, 8))).eval()
    rng = torch.Generator().manual_seed(0)
    latents = LatentSet(torch.randn(12, 16, generator=rng), torch.arange(12) % 3, source_index=torch.arange(12))
    for name, dtype in (("float16", torch.float16), ("int8", torch.int8), ("shards", torch.float16)):
        save_bundle(folder / name, generator, latents, config=CONFIG, latents_dtype=dtype, preview=False)
    latents.save(folder / "shards" / "latents.safetensors", max_shard_bytes=200)
    config = json.loads((folder / "shards" / "config.json").read_text())
    checksums = {file.name: sha256_of(file) for file in sorted((folder / "shards").glob("*.safetensors*"))}
    write_json(folder / "shards" / "config.json", config | {"sha256": checksums})
    make_coded_bundle(folder / "with-codes")
    return sorted(folder.iterdir())


def make_coded_bundle(folder: Path) -> None:
    sizes = CodecConfig(
        num_classes=3, image_size=16, channels=8, decoder_widths=(4, 4), decoder_blocks=(1, 1), encoder_widths=(4, 4, 4)
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        codec = Codec(sizes, encoder=False)
    codec.round_weights()
    shape = ContextShape(map_size=(2, 2), groups=(3, 5), num_classes=3, hidden=4, group_hidden=4, first_flag=1)
    codes = torch.randn(12, 32, generator=torch.Generator().manual_seed(0)).mul(2).round().to(torch.int8)
    labels = torch.arange(12) % 3
    context = fit_context(shape, codes.view(-1, 8, 2, 2), labels, ContextFit(steps=2))
    latents = LatentSet(CodedRows(codes, context), labels, source_index=torch.arange(12))
    save_bundle(folder, codec, latents, config=CONFIG, preview=False)


def renew_checksums(folder: Path, base: Path) -> None:
    """Write the checksums of the files as they are over those of `base`, wherever the configuration has these."""
    if not (folder / "config.json").is_file():
        return
    content = (folder / "config.json").read_bytes()
    for name, checksum in json.loads((base / "config.json").read_text())["sha256"].items():
        if (folder / name).is_file():
            content = content.replace(checksum.encode(), sha256_of(folder / name).encode())
    (folder / "config.json").write_bytes(content)


# Mutations of a folder, by name.


def flip_bits(folder: Path, rng: random.Random) -> None:
    file = any_file(folder, rng)
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 1, 5, 50))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def flip_header_bits(folder: Path, rng: random.Random) -> None:
    file = tensor_file(folder, rng)
    content = bytearray(file.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(rng.choice((1, 2, 10))):
        content[rng.randrange(end)] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def cut(folder: Path, rng: random.Random) -> None:
    file = any_file(folder, rng)
    content = file.read_bytes()
    file.write_bytes(content[: rng.choice((0, 1, 7, 8, 9, rng.randrange(len(content)), len(content) - 1))])


def lengthen(folder: Path, rng: random.Random) -> None:
    file = any_file(folder, rng)
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.choice((1, 8, 1000))))


def edit_config(folder: Path, rng: random.Random) -> None:
    write_raw_json(folder / "config.json", edited(json.loads((folder / "config.json").read_text()), rng))


def repeat_key(folder: Path, rng: random.Random) -> None:
    text = (folder / "config.json").read_text()
    key = rng.choice(list(json.loads(text)))
    (folder / "config.json").write_text(text.replace("{", f'{{"{key}": {json.dumps(rng.choice((None, 0, {})))}, ', 1))


def edit_index(folder: Path, rng: random.Random) -> None:
    index = folder / "latents.safetensors.index.json"
    if index.is_file():
        write_raw_json(index, edited(json.loads(index.read_text()), rng))
    else:
        edit_config(folder, rng)


def edit_header(folder: Path, rng: random.Random) -> None:
    file = tensor_file(folder, rng)
    header, data = split(file)
    join(file, edited(header, rng), data)


def set_header_length(folder: Path, rng: random.Random) -> None:
    file = tensor_file(folder, rng)
    length = rng.choice((0, 1, 2, 100, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1))
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])


def enlarge(folder: Path, rng: random.Random) -> None:
    """A size made huge in the configuration, the header, or both."""
    config = json.loads((folder / "config.json").read_text())
    huge = rng.choice((1000, 65536, 10**6, 2**31, 2**40, 2**62))
    arguments = config["generator"]["arguments"]
    choice = rng.randrange(6)
    if choice == 0:
        channels = arguments["channels"]
        arguments["channels"] = [huge] * len(channels) if isinstance(channels, list) else huge
    elif choice == 1:
        arguments["channels"] = arguments["channels"] * min(huge, 10**6)
    elif choice in (2, 3):
        arguments[("num_classes", "latent_dim")[choice - 2]] = huge
    else:
        config["latents"][("count", "dim")[choice - 4]] = huge
        file = tensor_file(folder, rng)
        header, data = split(file)
        entry = header[rng.choice([name for name in header if name != "__metadata__"])]
        entry["shape"][rng.randrange(len(entry["shape"]))] = huge
        if rng.random() < 0.5:
            entry["data_offsets"][1] = entry["data_offsets"][0] + math.prod(entry["shape"]) * 2
        join(file, header, data)
    (folder / "config.json").write_text(json.dumps(config))


def rename_tensor(folder: Path, rng: random.Random) -> None:
    file = tensor_file(folder, rng)
    tensors = safetensors.load_file(file)
    names = list(tensors)
    old, new = rng.choice(names), rng.choice(("", "x", "a/../../b", "ü" * 100, *names))
    tensors[new] = tensors.pop(old)
    safetensors.save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)


def replace_tensor(folder: Path, rng: random.Random) -> None:
    file = tensor_file(folder, rng)
    tensors = safetensors.load_file(file)
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    changes: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: tensor.double(),
        lambda: tensor.to(torch.int32),
        lambda: tensor.flatten(),
        lambda: tensor[:0],
        lambda: tensor[None],
        lambda: torch.cat([tensor, tensor]),
        lambda: tensor.float().fill_(rng.choice((math.nan, math.inf, 1e30, 0.0))).to(tensor.dtype),
        lambda: tensor.clone().fill_(rng.choice((-1, 3, 100))),
        lambda: torch.zeros(()),
    )
    tensors[name] = rng.choice(changes)().contiguous()
    safetensors.save_file(tensors, file)


def change_files(folder: Path, rng: random.Random) -> None:
    one, other = rng.sample(sorted(folder.iterdir()), 2)
    match rng.randrange(5):
        case 0:
            one.unlink()
        case 1:
            shutil.copy(one, other)
        case 2:
            one.unlink()
            one.mkdir()
        case 3:
            one.unlink()
            one.symlink_to(one.name)
        case 4:
            one.rename(folder / "latents-00001-of-00001.safetensors")


MUTATIONS: tuple[Callable[[Path, random.Random], None], ...] = (
    *(flip_bits, flip_header_bits, cut, lengthen, edit_config, edit_config, repeat_key, edit_index, edit_header),
    *(set_header_length, enlarge, rename_tensor, replace_tensor, change_files),
)


def mutate(folder: Path, base: Path, number: int) -> tuple[str, bool]:
    """Apply mutation `number` to a copy of `base`; returns its name and whether the checksums were renewed."""
    rng = random.Random(number)
    mutation = MUTATIONS[number // 2 % len(MUTATIONS)]
    mutation(folder, rng)
    if renewed := number % 2 == 1:
        renew_checksums(folder, base)
    return mutation.__name__, renewed


def any_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice([file for file in sorted(folder.iterdir()) if file.name != "README.md"])


def tensor_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(folder.glob("*.safetensors")))


def split(file: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def join(file: Path, header: Any, data: bytes) -> None:
    text = raw_json(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def edited(content: Any, rng: random.Random) -> Any:
    """JSON with one value or key, at any depth, replaced, removed or added."""
    places = list(containers(content))
    container = rng.choice(places)
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    if not keys:
        return rng.choice(ODD)
    key, odd = rng.choice(keys), rng.choice(ODD)
    match rng.randrange(4):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[str(odd)] = container.pop(key)
        case _:
            container[key] = odd
    return content


def containers(content: Any) -> Any:
    if isinstance(content, (dict, list)):
        yield content
        for value in content.values() if isinstance(content, dict) else content:
            yield from containers(value)


def raw_json(content: Any) -> str:
    text = json.dumps(content)
    for mark, raw in RAW.items():
        text = text.replace(json.dumps(mark), raw)
    return text


def write_raw_json(path: Path, content: Any) -> None:
    path.write_text(raw_json(content))


# What came of it.


def outcome(folder: Path, original: Bundle, renewed: bool) -> tuple[str, str]:
    """One of `OUTCOMES`, and the details of a failure.

    *refused*: a ValueError of one line raised by our code. *equal*: the same weights, latents and labels. *another*: a
    bundle with other tensors whose checksums were renewed, as anyone can make one.
    """
    try:
        bundle = load_bundle(folder)
    except ValueError as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if raised_in.startswith(PACKAGE) and "\n" not in str(error) and len(str(error)) < 1000:
            return "refused", ""
        return "failed", f"{type(error).__name__} in {raised_in}: {error}"[:500]
    except BaseException as error:
        return "failed", "".join(traceback.format_exception(error))[-1500:]
    if tensors_equal(bundle, original):
        return "equal", ""
    if not renewed:
        return "failed", "other tensors than the checksums are of"
    images = bundle.generator(*bundle.latents.batch(torch.arange(len(bundle.latents))))
    if images.shape[1:] != tuple(bundle.config["image"]["shape"]) or len(bundle.class_names) != 3:
        return "failed", "a bundle that contradicts itself"
    return "another", ""


def tensors_equal(one: Bundle, other: Bundle) -> bool:
    weights = one.generator.state_dict()
    return (
        all(torch.equal(weights[name], tensor) for name, tensor in other.generator.state_dict().items())
        and torch.equal(one.latents.latents, other.latents.latents)
        and torch.equal(one.latents.labels, other.latents.labels)
    )


@dataclass
class Result:
    """What came of one mutation."""

    number: int
    mutation: str
    renewed: bool
    outcome: str
    detail: str
    seconds: float
    peak_bytes: int
    """Of the worker until then, beyond what it held at the start."""


def run_one(originals: list[Bundle], folder: Path, number: int) -> Result:
    """Mutate a copy of a bundle and load it."""
    original = originals[number // (2 * len(MUTATIONS)) % len(originals)]
    base = original.path
    shutil.copytree(base, folder)
    mutation, renewed = mutate(folder, base, number)
    started = time.perf_counter()
    result, detail = outcome(folder, original, renewed)
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return Result(number, mutation, renewed, result, detail, seconds, peak_bytes())


def peak_bytes() -> int:
    """The most memory that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(bases: list[Path], folder: Path, numbers: range, pipe: Connection) -> None:
    """A worker: results go to the pipe as they come."""
    torch.set_num_threads(1)
    originals, before = [load_bundle(base) for base in bases], peak_bytes()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    for number in numbers:
        signal.alarm(SECONDS)  # ends the process
        result = run_one(originals, folder / str(number), number)
        pipe.send(replace(result, peak_bytes=result.peak_bytes - before))
    pipe.close()


def run_all(bases: list[Path], folder: Path, count: int) -> list[Result]:
    """Every mutation, with a new worker after one that died or hung."""
    results: list[Result] = []
    while len(results) < count:
        receiving, sending = multiprocessing.Pipe(duplex=False)
        arguments = (bases, folder, range(len(results), count), sending)
        worker = multiprocessing.get_context("fork").Process(target=work, args=arguments)
        worker.start()
        sending.close()
        for _ in itertools.count():
            try:
                results.append(receiving.recv())
            except EOFError:
                break
        worker.join()
        if worker.exitcode:
            detail = f"the process ended with {worker.exitcode}"
            results.append(Result(len(results), "?", bool(len(results) % 2), "failed", detail, SECONDS, 0))
    return results


def report(out: Path) -> str:
    """Markdown: what came of each mutation, whether or not the checksums were computed again after it."""
    content = read_json(out)
    lines = [f"| mutation | {' | '.join(OUTCOMES)} |", "|---|" + "---:|" * len(OUTCOMES)]
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    for name, counts in content["counts"].items():
        for row in (name.partition(",")[0].replace("_", " "), "all"):
            totals[row].update(counts)
    for name in sorted(totals, key="all".__eq__):
        lines.append(f"| {name} | {' | '.join(str(totals[name][outcome]) for outcome in OUTCOMES)} |")
    summary = (
        f"{totals['all'].total():,} bundles in {content['seconds']:.0f} s; a load took at most "
        f"{content['slowest_seconds']:.2f} s and {content['extra_bytes'] / 1e6:.0f} MB more than a fresh process holds."
    )
    return "\n".join([*lines, "", summary]) + "\n"


@click.command(help=readable(__doc__))
@click.option("--mutations", default=6000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/stress-bundles.json"), show_default=True)
def main(mutations: int, out: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        bases = make_bundles(Path(temporary) / "bases")
        (Path(temporary) / "copies").mkdir()
        started = time.perf_counter()
        results = run_all(bases, Path(temporary) / "copies", mutations)
        seconds = time.perf_counter() - started
    slowest = max(result.seconds for result in results)
    extra_bytes = max(result.peak_bytes for result in results)
    failures = [vars(result) for result in results if result.outcome == "failed"]
    write_json(
        out,
        {
            "settings": {"mutations": mutations, "seconds": SECONDS, "bytes": BYTES},
            "environment": environment(),
            "counts": {
                f"{mutation.__name__}, {'renewed' if renewed else 'original'} checksums": dict(
                    Counter(r.outcome for r in results if (r.mutation, r.renewed) == (mutation.__name__, renewed))
                )
                for mutation in dict.fromkeys(MUTATIONS)
                for renewed in (False, True)
            },
            "seconds": seconds,
            "slowest_seconds": slowest,
            "extra_bytes": extra_bytes,
            "failures": failures,
        },
    )
    click.echo(report(out), nl=False)
    for failure in failures[:10]:
        click.echo(failure, err=True)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()

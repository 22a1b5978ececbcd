"""Which training set gives the better classifier: real images or generated ones, at equal count or bytes?

Every row trains fresh networks with one recipe and one number of updates, and tests them on real images:

    real-count   random real images, as many as the bundle has latents (bytes: lossless WebP)
    real-bytes   random real images, lossless WebP, as many as fit into the bytes of the bundle
    real-coded   random real images, lossy WebP at the best of some qualities, as many as fit
    gan          the bundle's generator on normal draws, as many as the bundle has latents
    gan-fresh    the bundle's generator on new normal draws every epoch
    inversion    the bundle's generator on latents inverted from real images (--inversion FILE)
    it-gan       the bundle
    real-whole   the whole real training set (first seed only)

Results are kept as soon as they exist; the same command again goes on with what is missing.
"""

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from PIL import Image
from tqdm import tqdm

from itgan_data.bundle import LATENTS_FILE, Bundle, load_bundle
from itgan_data.dataset import SyntheticDataset
from itgan_data.draws import make_rng
from itgan_data.evaluation.protocol import Results, RowKey, SeedResult, environment, evaluate
from itgan_data.files import sha256_of, write_atomically
from itgan_data.generators.inference import WEIGHTS_FILE
from itgan_data.images import LabeledImages, load_images, open_dataset, to_pil
from itgan_data.latents import LatentSet, LatentSource, RandomLatents
from itgan_data.networks import NETWORKS
from itgan_data.recipes import ImageSource, Recipe, fast_recipe, paper_recipe

ROWS = ("real-count", "real-bytes", "real-coded", "gan", "gan-fresh", "inversion", "it-gan", "real-whole")
LOSSLESS = None
MAX_HELD_OUT = 5000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. Where a seed chooses the images too, the key describes the first seed's."""

    name: str
    key: RowKey
    make: Callable[[int], ImageSource]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the rows have in common."""

    bundle: Bundle
    train: LabeledImages
    test: LabeledImages
    network: str
    recipe: Recipe
    device: str
    seeds: tuple[int, ...]

    def run(self, source: ImageSource, test: LabeledImages, seed: int, title: str) -> SeedResult:
        """Train and test one network, behind a progress bar."""
        with tqdm(total=self.recipe.steps, desc=f"{title}, seed {seed}", unit="step") as bar:

            def progress(step: int, loss: torch.Tensor) -> None:
                bar.update()
                if step % 50 == 0:
                    bar.set_postfix(loss=f"{float(loss):.3f}")

            (result,) = evaluate(
                source,
                test,
                self.network,
                self.recipe,
                seeds=[seed],
                normalization=self.bundle.normalization,
                device=self.device,
                progress=progress,
            )
        return result


def balanced_order(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Indices in a random order of which every beginning holds equally many of each class, up to one."""
    rng = make_rng(seed)
    classes = [(labels == label).nonzero()[:, 0] for label in torch.unique(labels)]
    shuffled = [indices[torch.randperm(len(indices), generator=rng)] for indices in classes]
    shortest = min(len(indices) for indices in classes)
    return torch.stack([indices[:shortest] for indices in shuffled], dim=1).flatten()


def encode(image: torch.Tensor, quality: int | None) -> bytes:
    """A uint8 image `[C, H, W]` as a WebP file, lossless or of a quality in 0..100."""
    buffer = io.BytesIO()
    lossless = quality is LOSSLESS
    to_pil(image).save(buffer, "WEBP", lossless=lossless, quality=100 if lossless else quality, method=6)
    return buffer.getvalue()


def decode(code: bytes) -> torch.Tensor:
    """A WebP file as a uint8 image `[3, H, W]`."""
    with Image.open(io.BytesIO(code)) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return pixels.view(image.height, image.width, 3).permute(2, 0, 1)


def coded_subset(
    images: LabeledImages, order: torch.Tensor, *, budget: int, quality: int | None
) -> tuple[LabeledImages, int]:
    """The first images of `order` whose WebP files fit into `budget` bytes, as decoded, and their bytes."""
    decoded: list[torch.Tensor] = []
    num_bytes = 0
    for index in order.tolist():
        code = encode(images.images[index], quality)
        if num_bytes + len(code) > budget:
            break
        num_bytes += len(code)
        decoded.append(decode(code))
    if not decoded:
        raise ValueError(f"not one image of quality {quality} fits into {budget} bytes")
    labels = images.labels[order[: len(decoded)]]
    return LabeledImages(torch.stack(decoded), labels, images.class_names), num_bytes


def best_quality(setting: Setting, qualities: tuple[int, ...], results: Results) -> int:
    """The WebP quality that trains the best classifier, judged by one seed on held-out training images."""
    order = balanced_order(setting.train.labels, seed=-1)
    held_out = min(MAX_HELD_OUT, len(order) // 5)
    judges = setting.train.select(order[:held_out])
    seed = setting.seeds[0]
    scores = {}
    for quality in qualities:
        subset, num_bytes = coded_subset(
            setting.train, order[held_out:], budget=setting.bundle.num_bytes, quality=quality
        )
        key = RowKey(num_images=len(subset), num_bytes=num_bytes, content=f"lossy WebP, quality {quality}")
        name = f"quality {quality}"
        result = results.get(name, key, seed)
        if result is None:
            result = setting.run(subset, judges, seed, f"real-coded, {name}")
            results.add(name, key, result)
        scores[quality] = result.accuracy
    return max(scores, key=lambda quality: scores[quality])


def real_row(setting: Setting, name: str, *, quality: int | None = LOSSLESS, equal_count: bool = False) -> Row:
    """Random real images, drawn anew by each seed: as many as latents, or as fit into the bundle's bytes."""
    budget = 2**62 if equal_count else setting.bundle.num_bytes

    def choose(seed: int) -> tuple[LabeledImages, int]:
        order = balanced_order(setting.train.labels, seed)
        chosen = order[: len(setting.bundle.latents)] if equal_count else order
        return coded_subset(setting.train, chosen, budget=budget, quality=quality)

    subset, num_bytes = choose(setting.seeds[0])
    content = "lossless WebP" if quality is LOSSLESS else f"lossy WebP, quality {quality}"
    key = RowKey(num_images=len(subset), num_bytes=num_bytes, content=content)
    return Row(name=name, key=key, make=lambda seed: choose(seed)[0], seeds=setting.seeds)


def whole_row(setting: Setting) -> Row:
    """All real images; their bytes are those of 1,000 of them, scaled up."""
    sample = balanced_order(setting.train.labels, setting.seeds[0])[:1000]
    _, num_bytes = coded_subset(setting.train, sample, budget=2**62, quality=LOSSLESS)
    key = RowKey(
        num_images=len(setting.train),
        num_bytes=num_bytes * len(setting.train) // len(sample),
        content="lossless WebP, bytes estimated",
    )
    return Row(name="real-whole", key=key, make=lambda seed: setting.train, seeds=setting.seeds[:1])


def synthetic(setting: Setting, latents: LatentSource) -> SyntheticDataset:
    """The bundle's generator at some latents, computing in the recipe's precision."""
    dtype = getattr(torch, setting.recipe.precision)
    return SyntheticDataset(setting.bundle.generator, latents, device=setting.device, dtype=dtype)


def gan_row(setting: Setting, name: str) -> Row:
    """As many normal draws as the bundle has latents, or other ones every epoch; stored is the generator alone."""
    bundle = setting.bundle
    count = len(bundle.latents)

    def make(seed: int) -> ImageSource:
        draws = RandomLatents(count, bundle.generator.latent_dim, bundle.generator.num_classes, seed=seed)
        if name == "gan-fresh":
            return synthetic(setting, draws)
        fixed = LatentSet(*draws.batch(torch.arange(count)))
        return synthetic(setting, fixed)

    key = RowKey(
        num_images=None if name == "gan-fresh" else count,
        num_bytes=(bundle.path / WEIGHTS_FILE).stat().st_size,
        content=f"{'fresh' if name == 'gan-fresh' else 'fixed'} draws, {generator_checksum(bundle)}",
    )
    return Row(name=name, key=key, make=make, seeds=setting.seeds)


def inversion_row(setting: Setting, file: Path) -> Row:
    """Inverted latents, stored as the bundle stores its own."""
    bundle = setting.bundle
    stored_bytes = (bundle.path / LATENTS_FILE).stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / LATENTS_FILE
        LatentSet.load(file).save(stored, dtype=getattr(torch, bundle.config["latents"]["dtype"]))
        latents = LatentSet.load(stored)
        num_bytes = bundle.num_bytes - stored_bytes + stored.stat().st_size
    source = synthetic(setting, latents)
    content = f"latents {sha256_of(file)[:12]}, {generator_checksum(bundle)}"
    key = RowKey(num_images=len(latents), num_bytes=num_bytes, content=content)
    return Row(name="inversion", key=key, make=lambda seed: source, seeds=setting.seeds)


def bundle_row(setting: Setting) -> Row:
    """The bundle as it is."""
    bundle = setting.bundle
    source = synthetic(setting, bundle.latents)
    content = f"latents {bundle.config['sha256'][LATENTS_FILE][:12]}, {generator_checksum(bundle)}"
    key = RowKey(num_images=len(bundle.latents), num_bytes=bundle.num_bytes, content=content)
    return Row(name="it-gan", key=key, make=lambda seed: source, seeds=setting.seeds)


def generator_checksum(bundle: Bundle) -> str:
    return f"generator {bundle.config['sha256'][WEIGHTS_FILE][:12]}"


def open_setting(data: str, bundle: Path | None, *, network: str, recipe: Recipe, device: str, seeds: int) -> Setting:
    """Read and check everything that training needs."""
    loaded = load_bundle(bundle)
    shape = loaded.generator.image_shape
    train = load_images(open_dataset(data, "train"), image_shape=shape)
    test = load_images(open_dataset(data, "test"), image_shape=shape)
    if not loaded.class_names == train.classes == test.classes:
        raise ValueError(
            f"{data} has training classes {train.classes} and test classes {test.classes}, "
            f"the bundle {loaded.class_names}; expected the same in the same order"
        )
    return Setting(
        bundle=loaded,
        train=train,
        test=test,
        network=network,
        recipe=recipe,
        device=device,
        seeds=tuple(range(seeds)),
    )


@contextmanager
def one_line_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error


@click.command(help=__doc__.partition("\n")[0])
@click.option("--data", required=True, help="Real images: cifar10[:ROOT], imagefolder:DIR, digits.")
@click.option("--bundle", type=click.Path(path_type=Path), help="By default the bundle in the package.")
@click.option("--inversion", type=click.Path(path_type=Path), help="Inverted latents; without it, no such row.")
@click.option("--network", default="convnet", show_default=True, type=click.Choice(NETWORKS))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Networks a row.")
@click.option("--rows", default=",".join(ROWS), show_default=True, help="Which rows, joined by commas.")
@click.option("--recipe", "recipe_name", default="fast", show_default=True, type=click.Choice(["fast", "paper"]))
@click.option("--steps", type=click.IntRange(1), help="Updates; by default 2,000, or the paper's 200 epochs.")
@click.option("--precision", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile; it needs a C++ compiler.")
@click.option("--qualities", default="10,30,60", show_default=True, help="WebP qualities that real-coded tries.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of PyTorch.")
@click.option("--out", type=click.Path(path_type=Path), help="By default runs/accuracy-NETWORK.json.")
def main(
    data: str,
    bundle: Path | None,
    inversion: Path | None,
    network: str,
    seeds: int,
    rows: str,
    recipe_name: str,
    steps: int | None,
    precision: str,
    compiled: bool,
    qualities: str,
    device: str,
    threads: int | None,
    out: Path | None,
) -> None:
    if unknown := set(rows.split(",")) - set(ROWS):
        raise click.BadParameter(f"unknown row {min(unknown)!r}; expected some of {','.join(ROWS)}")
    try:
        tried = tuple(int(quality) for quality in qualities.split(","))
    except ValueError as error:
        raise click.BadParameter(f"--qualities must be numbers joined by commas, got {qualities!r}") from error
    if threads is not None:
        torch.set_num_threads(threads)
    out = out or Path("runs") / f"accuracy-{network}.json"
    flip = not data.startswith("digits")
    recipe = fast_recipe(flip=flip) if recipe_name == "fast" else paper_recipe()
    recipe = replace(recipe, steps=steps or recipe.steps, precision=precision, compile=compiled)
    common = {"network": network, "recipe": recipe.to_json(), "data": data.partition(":")[0]}
    with one_line_errors():
        machine = environment(device)
        results = Results(out, settings=common, environment=machine)
        trials = Results(out.with_suffix(".qualities.json"), settings=common, environment=machine)
        setting = open_setting(data, bundle, network=network, recipe=recipe, device=device, seeds=seeds)
        for name in rows.split(","):
            if name == "inversion" and inversion is None:
                click.echo("no --inversion FILE: the row 'inversion' is left out")
                continue
            run_row(make_row(setting, name, trials, tried, inversion), setting, results)
    table = results.table(ROWS)
    with write_atomically(out.with_suffix(".md")) as temporary:
        temporary.write_text(table, encoding="utf-8")
    click.echo(table, nl=False)


def make_row(
    setting: Setting,
    name: str,
    trials: Results,
    qualities: tuple[int, ...],
    inversion: Path | None,
) -> Row:
    if name == "real-count":
        return real_row(setting, name, equal_count=True)
    if name == "real-bytes":
        return real_row(setting, name)
    if name == "real-coded":
        chosen = best_quality(setting, qualities, trials)
        return real_row(setting, name, quality=chosen)
    if name in ("gan", "gan-fresh"):
        return gan_row(setting, name)
    if name == "inversion":
        assert inversion is not None
        return inversion_row(setting, inversion)
    return bundle_row(setting) if name == "it-gan" else whole_row(setting)


def run_row(row: Row, setting: Setting, results: Results) -> None:
    """Train what is missing of a row, and keep each result at once."""
    for seed in row.seeds:
        if results.get(row.name, row.key, seed) is None:
            results.add(row.name, row.key, setting.run(row.make(seed), setting.test, seed, row.name))


if __name__ == "__main__":
    main()

"""`itgan-data`: from a data set to a published bundle, on the command line. Parses, calls the public API, prints."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from .bundle import Bundle, describe_bundle, load_bundle, packaged_bundle, push_bundle, save_bundle
from .bundle_config import package_version
from .condense import methods
from .condense.condenser import Condenser
from .condense.config import CondenserConfig
from .condense.sharding import Shard
from .dataset import SyntheticDataset
from .evaluation.plots import plot_neighbors, plot_preview
from .evaluation.protocol import environment, evaluate, measure_normalization, summarize
from .files import read_json
from .generators import presets
from .generators.config import GeneratorTrainerConfig
from .generators.importers import import_generator
from .generators.inference import FrozenBigGAN, load_generator, save_generator
from .generators.pixels import Pixels
from .generators.training import GeneratorTrainer
from .images import LabeledImages, load_images, open_dataset
from .latent_importers import import_latents
from .latents import LatentSet
from .networks import NETWORKS
from .recipes import fast_recipe, paper_recipe

METHODS: dict[str, Callable[..., CondenserConfig]] = {
    "it-gan": methods.it_gan,
    "it-gan-gradient": methods.it_gan_gradient,
    "inversion": methods.gan_inversion,
    "dm": methods.dm,
    "dc": methods.dc,
    "dsa": methods.dsa,
}
PIXEL_METHODS = ("dm", "dc", "dsa")

PATH = click.Path(path_type=Path)


class OneLineErrors(click.Group):
    """Ends with one line on stderr and exit code 1 where the library raises, or with its traceback under --debug."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError) as error:
            if ctx.params["debug"]:
                raise
            message = " ".join(str(error).split()) or type(error).__name__
            raise click.ClickException(message) from error


def data_option(text: str, *, required: bool = True) -> Callable[[Any], Any]:
    kinds = "cifar10[:ROOT], cifar100[:ROOT], imagefolder:DIR or digits"
    return click.option("--data", required=required, metavar="SPEC", help=f"{text}: {kinds}.")


flips_option = click.option(
    "--flips/--no-flips", default=None, help="Whether a mirrored image keeps its class; by default for all but digits."
)


def long_work(command: Any) -> Any:
    """The options of a command that works for long."""
    for option in (
        click.option("--max-minutes", type=click.FloatRange(0, min_open=True), help="Stop about then, to go on later."),
        click.option("--device", help="cpu, cuda, ...; by default CUDA where there is one."),
        click.option("--seed", type=int, help="Of all random numbers."),
        click.option("--steps", type=click.IntRange(0), help="Updates; by default those of the preset or method."),
    ):
        command = option(command)
    return command


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_version(), package_name="itgan_data")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Replace a data set by a generator and learned latents: make such a bundle, judge it, share it.

    \b
    itgan-data pretrain --data imagefolder:photos --out runs/generator
    itgan-data condense --data imagefolder:photos --generator runs/generator --out runs/bundle
    itgan-data evaluate runs/bundle --data imagefolder:photos
    itgan-data push runs/bundle org/name

    A command that was stopped goes on when it is run again. Completion for bash:
    eval "$(_ITGAN_DATA_COMPLETE=bash_source itgan-data)".
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("itgan_data").setLevel(logging.INFO)  # not of the clients that it uses


@main.command()
@data_option("Real images to imitate")
@click.option("--out", required=True, type=PATH, help="Where checkpoints, samples and the generator go.")
@click.option("--preset", type=click.Choice(["digits", "small", "paper"]), default="small", show_default=True)
@click.option("--config", "file", type=PATH, help="JSON with fields of GeneratorTrainerConfig, in place of a preset.")
@flips_option
@long_work
def pretrain(
    data: str,
    out: Path,
    preset: str,
    file: Path | None,
    flips: bool | None,
    steps: int | None,
    seed: int | None,
    device: str | None,
    max_minutes: float | None,
) -> None:
    """Train a class-conditional generator on real images.

    \b
    itgan-data pretrain --data digits --preset digits --out runs/generator
    """
    real = load_images(open_dataset(data, "train"))
    chosen: dict[str, Callable[[], GeneratorTrainerConfig]] = {
        "digits": presets.digits,
        "small": lambda: presets.small(real.num_classes),
        "paper": lambda: presets.paper(real.num_classes),
    }
    config = GeneratorTrainerConfig(**read_json(file)) if file else chosen[preset]()
    config = replace(config, flips=_flips(flips, data), **_given(steps=steps, seed=seed))
    trainer = GeneratorTrainer(config, real, workdir=out, device=device)
    trainer.run(max_minutes)
    if trainer.step < config.steps:
        raise click.ClickException(f"stopped at step {trainer.step} of {config.steps}; run again to go on")
    click.echo(out)


@main.command()
@data_option("Real images to condense")
@click.option("--generator", type=PATH, help="What `pretrain` wrote, or a bundle; not for dm, dc and dsa.")
@click.option("--out", required=True, type=PATH, help="The bundle's folder.")
@click.option("--workdir", type=PATH, help="Where checkpoints go; by default beside --out, with -work added.")
@click.option("--method", type=click.Choice(list(METHODS)), default="it-gan", show_default=True)
@click.option("--config", "file", type=PATH, help="JSON with fields of CondenserConfig, in place of the method's.")
@click.option("--images-per-class", type=click.IntRange(1), help="Latents a class; by default the method's.")
@click.option("--group-size", type=click.IntRange(1), help="Latents a class that are learned together.")
@click.option("--regularizer-weight", type=float, help="lambda, in [0, 1].")
@click.option("--lr-latents", type=float, help="Learning rate of the latents.")
@flips_option
@click.option("--prepare", "stage", flag_value="prepare", help="For a job array, first: only the stages before it.")
@click.option("--shard", metavar="K/N", help="One job of the array: only the K-th of N shares, such as 3/16.")
@click.option("--merge", "stage", flag_value="merge", help="Last: join what all shards have learned.")
@click.option("--latents-dtype", type=click.Choice(["float32", "float16", "int8"]), default="float16")
@long_work
def condense(
    data: str,
    generator: Path | None,
    out: Path,
    workdir: Path | None,
    method: str,
    file: Path | None,
    images_per_class: int | None,
    flips: bool | None,
    stage: str | None,
    shard: str | None,
    latents_dtype: str,
    device: str | None,
    max_minutes: float | None,
    **changes: Any,
) -> None:
    """Learn latents that teach a classifier well, and save them with their generator as a bundle.

    \b
    itgan-data condense --data digits --generator runs/generator --images-per-class 10 --out runs/bundle
    """
    real = load_images(open_dataset(data, "train"))
    count = _given(images_per_class=images_per_class)  # some methods choose learning rates and loops by it
    config = CondenserConfig(**{**read_json(file), **count}) if file else METHODS[method](**count)
    config = replace(config, normalization=measure_normalization(real), **_given(**changes))
    if not _flips(flips, data):
        strategy = "_".join(name for name in config.strategy.split("_") if name != "flip")
        config = replace(config, strategy=strategy, pool=replace(config.pool, flips=False))
    chosen = _generator(generator, method, real, config)
    condenser = Condenser(chosen, real, config, workdir=workdir or out.with_name(f"{out.name}-work"), device=device)
    latents = _latents(condenser, stage, shard, max_minutes)
    if latents is None or Shard.of_this_rank().number > 1:
        return  # another job or rank writes the bundle
    description = {
        "dataset": data.partition(":")[0],
        "class_names": real.classes,
        "normalization": asdict(config.normalization),
        "method": method,
        "training": {"condenser": asdict(config), "environment": environment(device or "cpu")},
        "metrics": {},
    }
    bundle = save_bundle(out, chosen, latents, config=description, latents_dtype=getattr(torch, latents_dtype))
    click.echo(f"{out}: {len(latents)} latents, {bundle.num_bytes / 1e6:.2f} MB", err=True)
    click.echo(out)


@main.command("evaluate")
@click.argument("source", default=packaged_bundle("cifar10"), required=False)
@data_option("Real images; the test split judges")
@click.option("--network", type=click.Choice(NETWORKS), default="convnet", show_default=True)
@click.option("--recipe", type=click.Choice(["fast", "paper"]), default="fast", show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Updates; by default 2,000, or the paper's 200 epochs.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Networks to train.")
@flips_option
@click.option("--device", help="cpu, cuda, ...; by default CUDA where there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate_command(
    source: str,
    data: str,
    network: str,
    recipe: str,
    steps: int | None,
    seeds: int,
    flips: bool | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Train networks on a bundle and test them on real images.

    SOURCE is a folder or org/name[@revision] on the Hub; by default the bundle in the package.

    \b
    itgan-data evaluate runs/bundle --data cifar10:data --network resnet18
    """
    bundle = load_bundle(source)
    test = load_images(open_dataset(data, "test"), image_shape=bundle.generator.image_shape)
    chosen = fast_recipe(flip=_flips(flips, data)) if recipe == "fast" else paper_recipe()
    chosen = replace(chosen, **_given(steps=steps))
    with tqdm(total=chosen.steps * seeds, desc=network, unit="step") as bar:
        results = evaluate(
            _images_of(bundle, device),
            test,
            network,
            chosen,
            seeds=range(seeds),
            normalization=bundle.normalization,
            device=device,
            progress=lambda step, loss: bar.update() and None,
        )
    if as_json:
        content = {"network": network, "recipe": chosen.to_json(), "results": [asdict(result) for result in results]}
        click.echo(json.dumps({**content, "environment": environment(device or "cpu")}, indent=2))
    else:
        click.echo(f"real test accuracy {summarize(results)}%")


@main.command()
@click.argument("source", default=packaged_bundle("cifar10"), required=False)
@click.option("--out", required=True, type=PATH, help="The PNG file.")
@click.option("--columns", type=click.IntRange(1), default=10, show_default=True, help="Images in a row.")
@data_option("Real images, to show each image beside the one that it stands for", required=False)
def preview(source: str, out: Path, columns: int, data: str | None) -> None:
    """Draw a bundle's images: a row for each class, or above the real images that they stand for.

    \b
    itgan-data preview runs/bundle --out preview.png
    itgan-data preview runs/bundle --data cifar10:data --out pairs.png
    """
    bundle = load_bundle(source)
    images = torch.from_numpy(_images_of(bundle, None).data).permute(0, 3, 1, 2)
    if data is None:
        plot_preview(out, images, bundle.latents.labels, bundle.class_names, columns=columns)
    else:
        real = load_images(open_dataset(data, "train"), image_shape=bundle.generator.image_shape)
        _draw_pairs(out, bundle, images, real, columns)
    click.echo(out)


@main.command("import")
@click.argument("checkpoint", type=PATH)
@click.option("--latents", type=PATH, help="Latents released with it (`z_eff_all` or `z_inverse_all`).")
@click.option(
    "--data", metavar="SPEC", help="What the latents stand for, in its order: cifar10[:ROOT] or cifar100[:ROOT]."
)
@click.option("--out", required=True, type=PATH, help="A bundle's folder; without --latents, a generator's.")
def import_command(checkpoint: Path, latents: Path | None, data: str | None, out: Path) -> None:
    """Take over a generator that other code released, and its latents.

    \b
    itgan-data import G_ema.pth --out runs/generator
    itgan-data import G_Pretrained.pth --latents EfficientGAN_final.pt --data cifar10:data --out runs/bundle
    """
    if (latents is None) != (data is None):
        raise click.UsageError("--latents and --data go together: latents are stored without labels, in its order")
    generator = import_generator(checkpoint)
    if latents is None or data is None:
        save_generator(out, generator)
    else:
        if data.partition(":")[0] not in ("cifar10", "cifar100"):
            raise click.UsageError(
                f"--data must be cifar10[:ROOT] or cifar100[:ROOT], got {data!r}; others have no order"
            )
        real = load_images(open_dataset(data, "train"), image_shape=generator.image_shape)
        description = {
            "dataset": data.partition(":")[0],
            "class_names": real.classes,
            "normalization": asdict(measure_normalization(real)),
            "method": "imported",
            "training": {"checkpoint": checkpoint.name, "latents": latents.name},
            "metrics": {},
        }
        save_bundle(out, generator, import_latents(latents, real.labels), config=description)
    click.echo(out)


@main.command()
@click.argument("source", default=packaged_bundle("cifar10"), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print config.json and sizes as JSON.")
def info(source: str, as_json: bool) -> None:
    """Say what is in a bundle, how large it is and how well it does, without loading it.

    \b
    itgan-data info org/name@main
    """
    config, sizes = describe_bundle(source)
    if as_json:
        click.echo(json.dumps({"config": config, "bytes": sizes}, indent=2))
        return
    latents, shape = config["latents"], config["image"]["shape"]
    click.echo(f"{config['dataset']}, condensed by {config['method']}: {len(config['class_names'])} classes")
    click.echo(f"images     {shape[0]} x {shape[1]} x {shape[2]}")
    click.echo(f"generator  {config['generator']['architecture']}")
    click.echo(f"latents    {latents['count']} of width {latents['dim']}, {latents['dtype']}")
    for name, size in sizes.items():
        click.echo(f"{size:>12,} bytes  {name}")
    for name, value in config["metrics"].items():
        click.echo(f"{value:>12}  {name}")


@main.command()
@click.argument("bundle", type=PATH)
@click.argument("repository")
@click.option("--private", is_flag=True, help="Only those who are given access see a new repository.")
@click.option("--revision", help="The branch; by default the main one.")
@click.option("--overwrite-card", is_flag=True, help="Replace a README.md that is there.")
@click.option("--endpoint", help="Another Hub, such as a mirror.")
def push(
    bundle: Path, repository: str, private: bool, revision: str | None, overwrite_card: bool, endpoint: str | None
) -> None:
    """Publish a bundle's folder on the Hugging Face Hub, in one commit.

    \b
    itgan-data push runs/bundle org/name --private
    """
    url = push_bundle(
        bundle, repository, private=private, revision=revision, overwrite_card=overwrite_card, endpoint=endpoint
    )
    click.echo(url)


@main.command()
@click.argument("repository")
@click.option("--revision", help="A branch, tag or commit; by default the main branch.")
@click.option("--out", type=PATH, help="Copy the bundle into this folder, too.")
@click.option("--endpoint", help="Another Hub, such as a mirror.")
def pull(repository: str, revision: str | None, out: Path | None, endpoint: str | None) -> None:
    """Fetch a bundle from the Hugging Face Hub, check it, and print its folder.

    \b
    itgan-data pull org/name@main
    """
    folder = load_bundle(repository, revision, endpoint=endpoint).path
    click.echo(folder if out is None else shutil.copytree(folder, out))


def _flips(flips: bool | None, data: str) -> bool:
    return flips if flips is not None else data.partition(":")[0] != "digits"


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def _generator(folder: Path | None, method: str, real: LabeledImages, config: CondenserConfig) -> FrozenBigGAN | Pixels:
    """The generator to condense with: pixels, or what is stored in `folder`."""
    if method in PIXEL_METHODS:
        if folder is not None:
            raise click.UsageError(f"{method} learns pixels; leave --generator out")
        return Pixels(real.image_shape, real.num_classes, config.normalization)
    if folder is None:
        raise click.UsageError(f"{method} needs --generator, the folder that `pretrain` wrote or a bundle")
    trained = folder / "generator"  # where `pretrain` leaves it
    return load_generator(trained if trained.is_dir() else folder)


def _latents(condenser: Condenser, stage: str | None, shard: str | None, max_minutes: float | None) -> LatentSet | None:
    """What was learned; None where other jobs have still to do something."""
    if stage is not None and shard is not None:
        raise click.UsageError("--prepare, --shard and --merge are for different jobs; give one of them")
    if stage == "prepare":
        condenser.prepare(max_minutes)
        return None
    if shard is not None:
        condenser.run_shard(shard, max_minutes)
        return None
    return condenser.merge() if stage == "merge" else condenser.run(max_minutes)


def _images_of(bundle: Bundle, device: str | None) -> SyntheticDataset:
    return SyntheticDataset(bundle.generator, bundle.latents, device=device, classes=bundle.class_names)


def _draw_pairs(out: Path, bundle: Bundle, images: torch.Tensor, real: LabeledImages, columns: int) -> None:
    """Images above the real ones that their latents stand for."""
    source = bundle.latents.source_index
    if source is None:
        raise ValueError("the latents do not say which real images they stand for; leave --data out")
    if int(source.max()) >= len(real):
        raise ValueError(f"the latents stand for images up to {int(source.max())}, the data set has {len(real)}")
    neighbors = real.images[source]
    distances = (images.float() - neighbors.float()).div(255).square().flatten(1).mean(dim=1).sqrt()
    plot_neighbors(out, images, neighbors, distances, columns=columns)

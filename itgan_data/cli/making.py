"""`itgan-data pretrain`, `condense` and `import`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from ..augmentation import without_flip
from ..bundle.config import LATENTS_DTYPES, BundleConfig
from ..bundle.writing import save_bundle
from ..condense import methods
from ..condense.condenser import Condenser
from ..condense.config import CondenserConfig
from ..condense.pool import PoolConfig, build_pool
from ..config import Config, from_json
from ..data.dataset import SyntheticDataset
from ..datasets import load_images, open_dataset, parse_spec
from ..evaluation.features import FeatureNetwork, inception
from ..evaluation.protocol import measure_normalization
from ..evaluation.quality import Judge
from ..evaluation.results import environment
from ..generators.contract import ImageGenerator
from ..generators.importers import import_generator
from ..generators.pixels import Pixels
from ..generators.store import UNKNOWN_DATASET, load_generator, save_generator
from ..generators.trusted import Trust
from ..images import LabeledImages, Normalization
from ..latents.importers import import_latents, read_labels
from ..latents.stored import LatentSet
from ..pretraining import presets
from ..pretraining.codec import CodecTrainer
from ..pretraining.codec_config import CodecTrainerConfig
from ..pretraining.config import GeneratorTrainerConfig
from ..pretraining.gan import GeneratorTrainer
from ..running.lock import workdir_lock
from ..running.shards import Shard, Team
from ..running.stopping import OutOfTimeError, TimeLimit
from ..storage.files import read_json
from .options import (
    FILE,
    FOLDER,
    data_option,
    flips_of,
    flips_option,
    given,
    inception_option,
    long_work,
    out_option,
    trust_option,
)
from .running import LongCommand, process_group

PRESETS = {"digits": presets.digits, "small": presets.small, "paper": presets.paper}
CODEC_PRESETS = {"digits": presets.codec_digits, "small": presets.codec_small, "paper": presets.codec_paper}
METHODS: dict[str, Callable[..., CondenserConfig]] = {
    "it-gan": methods.it_gan,
    "it-gan-gradient": methods.it_gan_gradient,
    "inversion": methods.gan_inversion,
    "dm": methods.dm,
    "dc": methods.dc,
    "dsa": methods.dsa,
}
PIXEL_METHODS = ("dm", "dc", "dsa")
MONITOR = PoolConfig(num_networks=1, steps=800, snapshots=1)


@click.command(cls=LongCommand)
@data_option("Real images to imitate")
@out_option("Where checkpoints, samples and the generator go.")
@click.option(
    "--method",
    type=click.Choice(["gan", "codec"]),
    default="gan",
    show_default=True,
    help="A GAN, or a codec: it encodes images to few bits and decodes them.",
)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="small", show_default=True)
@click.option(
    "--config",
    "file",
    type=FILE,
    help="JSON with fields of GeneratorTrainerConfig, or of CodecTrainerConfig, in place of a preset.",
)
@flips_option
@click.option(
    "--monitor",
    is_flag=True,
    help="Measure the Fréchet distance during training, keep the best generator, and stop with it if training "
    "collapses. Features are those of a ConvNet that is trained first, or of --inception.",
)
@inception_option
@long_work
def pretrain(
    data: str,
    out: Path,
    method: str,
    preset: str,
    file: Path | None,
    flips: bool | None,
    monitor: bool,
    weights: Path | None,
    steps: int | None,
    seed: int | None,
    device: str,
    max_minutes: float | None,
) -> None:
    """Train a class-conditional generator on real images.

    \b
    itgan-data pretrain --data digits --preset digits --out runs/generator
    itgan-data pretrain --data cifar10 --method codec --out runs/codec
    torchrun --nproc-per-node 8 --no-python itgan-data pretrain --data cifar10 --preset paper --out runs/generator
    """
    real = load_images(open_dataset(data, "train"))
    if method == "codec":
        if monitor or weights:
            raise click.UsageError("--monitor and --inception are for GANs; a codec's log says what it reaches")
        _pretrain_codec(
            real, out, preset, file, flips_of(flips, data), given(steps=steps, seed=seed), device, max_minutes
        )
        return
    config = _read_config(GeneratorTrainerConfig, file, {}) if file else PRESETS[preset](real.num_classes)
    config = replace(config, flips=flips_of(flips, data), **given(steps=steps, seed=seed))
    features = inception(weights, device=device) if weights else None
    if monitor and features is None:
        features = _train_monitor(real, config.flips, out / "monitor", device, max_minutes)
    with process_group():
        trainer = GeneratorTrainer(config, real, workdir=out, device=device, feature_network=features)
        trainer.run(max_minutes)
    if not Shard.of_this_process().leads:
        return
    has_collapsed = trainer.monitor is not None and trainer.monitor.has_collapsed  # then the best one is in `out`
    _end_training(out, trainer.step, trainer.step if has_collapsed else config.steps)


def _pretrain_codec(
    real: LabeledImages,
    out: Path,
    preset: str,
    file: Path | None,
    flips: bool,
    changes: Mapping[str, Any],
    device: str,
    max_minutes: float | None,
) -> None:
    """Train a codec and say where it is."""
    config = _read_config(CodecTrainerConfig, file, {}) if file else CODEC_PRESETS[preset](real.num_classes)
    trainer = CodecTrainer(replace(config, **changes), real, workdir=out, device=device, flips=flips)
    trainer.run(max_minutes)
    _end_training(out, trainer.step, trainer.config.steps)


def _end_training(out: Path, step: int, steps: int) -> None:
    """Say where the generator is, or that training was stopped before its last step."""
    if step < steps:
        raise OutOfTimeError(f"stopped at step {step} of {steps}; run again to go on")
    click.echo(out)


@click.command(cls=LongCommand)
@data_option("Real images to condense")
@click.option("--generator", type=FOLDER, help="What `pretrain` wrote, or a bundle; not for dm, dc and dsa.")
@out_option("The bundle's folder.", bundle=True)
@out_option("Where checkpoints go; by default the name of --out with -work added.", "--workdir", required=False)
@click.option("--method", type=click.Choice(list(METHODS)), default="it-gan", show_default=True)
@click.option("--config", "file", type=FILE, help="JSON with fields of CondenserConfig, instead of a method.")
@click.option("--images-per-class", type=click.IntRange(1), help="Latents per class; by default as the method says.")
@click.option("--group-size", type=click.IntRange(1), help="Latents per class that are learned together.")
@click.option("--regularizer-weight", type=float, help="lambda, in [0, 1].")
@click.option("--lr-latents", type=float, help="Learning rate of the latents.")
@flips_option
@click.option("--prepare", "stage", flag_value="prepare", help="Before a job array: only the stages before matching.")
@click.option("--shard", metavar="K/N", help="In a job of the array: only the K-th of N shares, such as 3/16.")
@click.option("--merge", "stage", flag_value="merge", help="After the array: join what all shards have learned.")
@click.option("--latents-dtype", type=click.Choice(list(LATENTS_DTYPES)), default="float16")
@trust_option
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
    trust: Trust,
    device: str,
    max_minutes: float | None,
    **changes: Any,
) -> None:
    """Learn latents that teach a classifier well, and save them with their generator as a bundle.

    \b
    itgan-data condense --data digits --generator runs/generator --images-per-class 10 --out runs/bundle
    """
    real = load_images(open_dataset(data, "train"))
    count = given(images_per_class=images_per_class)  # some methods derive learning rates and loops from it
    measured = measure_normalization(real)
    if file:
        config = _read_config(CondenserConfig, file, {"normalization": measured}, **count)
    else:
        config = replace(METHODS[method](**count), normalization=measured)
    config = replace(config, **given(**changes))
    if not flips_of(flips, data):
        config = replace(config, strategy=without_flip(config.strategy), pool=replace(config.pool, flips=False))
    chosen = _generator(generator, method, real, config, trust)
    workdir = workdir or out.resolve().with_name(f"{out.resolve().name}-work")
    condenser = Condenser(chosen, real, config, workdir=workdir, device=device)
    latents = _latents(condenser, stage, shard, max_minutes)
    if latents is None or not Shard.of_this_process().leads:
        return  # another job or rank writes the bundle
    training = {"condenser": asdict(config), "environment": environment(device)}
    description = _describe(data, condenser.real_images.classes, config.normalization, method, training)
    bundle = save_bundle(out, chosen, latents, config=description, latents_dtype=LATENTS_DTYPES[latents_dtype])
    click.echo(f"{out}: {len(latents)} latents, {bundle.num_bytes / 1e6:.2f} MB", err=True)
    click.echo(out)


@click.command("import")
@click.argument("checkpoint", type=FILE)
@click.option("--latents", type=FILE, help="Latents released with it (`z_eff_all` or `z_inverse_all`).")
@data_option("The data set whose images the latents stand for, in its order", required=False)
@click.option("--labels", "label_file", type=FILE, help="Instead of --data: a text file with one label per line.")
@out_option("A bundle's folder; without --latents, a generator's.")
def import_command(
    checkpoint: Path, latents: Path | None, data: str | None, label_file: Path | None, out: Path
) -> None:
    """Convert a generator that other code has released, and its latents.

    \b
    itgan-data import G_ema.pth --out runs/generator
    itgan-data import G_Pretrained.pth --latents EfficientGAN_final.pt --data cifar10:data --out runs/bundle
    itgan-data import G_Pretrained.pth --latents EfficientGAN_final.pt --labels labels.txt --out runs/bundle
    """
    if (data is not None) + (label_file is not None) != (latents is not None):
        raise click.UsageError("latents are stored without labels: with --latents give --data or --labels, one of them")
    if data is not None and parse_spec(data)[0].place != "[:ROOT]":
        raise click.UsageError(f"{data} has no order that is the same for everybody; expected one of torchvision's")
    generator = import_generator(checkpoint)
    if latents is None:
        save_generator(out, generator)
        click.echo(out)
        return
    if data is not None:
        images = load_images(open_dataset(data, "train"), image_shape=generator.image_shape)
        imported = import_latents(latents, images.labels)
    else:
        assert label_file is not None  # one of them is given
        imported = import_latents(latents, read_labels(label_file))
        images = SyntheticDataset(generator, imported, cache=None)
    training = {"checkpoint": checkpoint.name, "latents": latents.name}
    normalization = measure_normalization(images)
    description = _describe(data or UNKNOWN_DATASET, images.classes, normalization, "imported", training)
    save_bundle(out, generator, imported, config=description)
    click.echo(out)


def _read_config(kind: Callable[..., Config], file: Path, defaults: Mapping[str, Any], **values: Any) -> Config:
    """Read a configuration from JSON. `values` override the file, which overrides `defaults`."""
    try:
        return from_json(kind, {**defaults, **read_json(file), **values})
    except ValueError as error:
        raise ValueError(f"{file} does not hold the fields of such a configuration ({error})") from error


def _train_monitor(
    real: LabeledImages, flips: bool, workdir: Path, device: str, max_minutes: float | None
) -> FeatureNetwork:
    """Features of a ConvNet trained on the real images, or read from `workdir` if it was trained before."""
    config, normalization = replace(MONITOR, flips=flips), measure_normalization(real)
    shard = Shard.of_this_process()
    team = Team(shard, TimeLimit(max_minutes, workdir))  # the first rank trains it, the others wait for it
    with workdir_lock(workdir, shard):
        pool = build_pool(real.to(device), config, normalization=normalization, seed=0, workdir=workdir, team=team)
    pool.load_best()
    name = f"{config.network} of {100 * max(pool.accuracies):.1f}%"
    return Judge(name=name, network=pool.network, normalization=normalization).features


def _describe(
    data: str, class_names: list[str], normalization: Normalization, method: str, training: Mapping[str, Any]
) -> BundleConfig:
    dataset, names = data.partition(":")[0], tuple(class_names)
    return BundleConfig(
        dataset=dataset, class_names=names, normalization=normalization, method=method, training=training, metrics={}
    )


def _generator(
    folder: Path | None, method: str, real: LabeledImages, config: CondenserConfig, trust: Trust
) -> ImageGenerator:
    if method in PIXEL_METHODS:
        if folder is not None:
            raise click.UsageError(f"{method} learns pixels; leave --generator out")
        return Pixels(real.image_shape, real.num_classes, config.normalization)
    if folder is None:
        raise click.UsageError(f"{method} needs --generator, the folder that `pretrain` wrote or a bundle")
    trained = folder / "generator"  # where `pretrain` leaves it
    return load_generator(trained if trained.is_dir() else folder, trust=trust)


def _latents(condenser: Condenser, stage: str | None, shard: str | None, max_minutes: float | None) -> LatentSet | None:
    """Do a stage, or everything; None if other jobs have to finish the work."""
    if stage is not None and shard is not None:
        raise click.UsageError("--prepare, --shard and --merge are for different jobs; give one of them")
    if stage == "prepare":
        condenser.prepare(max_minutes)
        return None
    if shard is not None:
        condenser.run_shard(shard, max_minutes)
        return None
    return condenser.merge() if stage == "merge" else condenser.run(max_minutes)

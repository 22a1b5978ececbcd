"""What do fewer bits cost? Accuracy of a bundle's images by how latents are stored and what the generator computes in.

The recipe, its precision and the seeds are the same for all rows; only the images differ. Results are kept as soon as
they exist; the same command again goes on with what is missing.

    python benchmarks/storage.py --data imagefolder:DIR --latents WORKDIR/condense/latents.safetensors
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import click
import torch
from setting import Setting, generator_checksum, one_line_errors, open_setting, stored_results

from itgan_data.bundle.writing import LATENTS_FILE
from itgan_data.config import Precision
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.datasets import parse_spec
from itgan_data.evaluation.results import Results, RowKey, environment
from itgan_data.latents.stored import LatentSet
from itgan_data.recipes import fast_recipe
from itgan_data.storage.files import sha256_of

ROWS = tuple(
    (stored, computed)
    for computed in ("float32", "bfloat16")
    for stored in ("float32", "float16", "int8")
    if computed == "float32" or stored == "float16"
)


def stored_latents(latents: LatentSet, dtype: str) -> tuple[LatentSet, int]:
    """The latents as they come back from a file of `dtype`, and the file's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / LATENTS_FILE
        latents.save(file, dtype=getattr(torch, dtype))
        return LatentSet.load(file), file.stat().st_size


def source_of(setting: Setting, latents: LatentSet, computed: str) -> SyntheticDataset:
    """The images, unquantised, so that nothing but the row's own rounding comes between."""
    dtype = getattr(torch, computed)
    return SyntheticDataset(setting.bundle.generator, latents, device=setting.device, dtype=dtype, cache="float")


def report(out: Path) -> str:
    """Markdown: the rows of a file of results."""
    return stored_results(out).table()


@click.command(help=__doc__.partition("\n")[0])
@click.option("--data", required=True, help="Real images: cifar10[:ROOT], imagefolder:DIR, digits.")
@click.option("--bundle", type=click.Path(path_type=Path), help="By default the bundle in the package.")
@click.option("--latents", type=click.Path(path_type=Path), required=True, help="Its latents in float32.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Networks a row.")
@click.option("--steps", default=1200, show_default=True, type=click.IntRange(1), help="Updates.")
@click.option("--precision", default="float32", show_default=True, type=click.Choice(get_args(Precision)))
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile; it needs a C++ compiler.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of PyTorch.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/storage.json"), show_default=True)
def main(
    data: str,
    bundle: Path | None,
    latents: Path,
    seeds: int,
    steps: int,
    precision: str,
    compiled: bool,
    device: str,
    threads: int | None,
    out: Path,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    flip = parse_spec(data)[0].flips
    recipe = replace(fast_recipe(steps, flip=flip), precision=precision, compile=compiled)
    with one_line_errors():
        setting = open_setting(data, bundle, network="convnet", recipe=recipe, device=device, seeds=seeds)
        exact = LatentSet.load(latents)
        common = {"network": "convnet", "recipe": recipe.to_json(), "data": data.partition(":")[0]}
        results = Results(out, settings=common, environment=environment(device))
        for stored, computed in ROWS:
            name = f"latents {stored}, generator {computed}"
            kept, num_bytes = stored_latents(exact, stored)
            content = f"latents {sha256_of(latents)[:12]}, {generator_checksum(setting.bundle)}"
            key = RowKey(num_images=len(kept), num_bytes=num_bytes, content=content)
            for seed in setting.seeds:
                if results.get(name, key, seed) is None:
                    source = source_of(setting, kept, computed)
                    results.add(name, key, setting.run(source, setting.test, seed, name))
    click.echo(report(out), nl=False)


if __name__ == "__main__":
    main()

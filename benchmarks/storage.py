"""What do fewer bits cost? Accuracy of a bundle's images by how latents are stored and what the generator computes in.

The recipe, its precision and the seeds are the same for all rows; only the images differ. Results are kept as soon as
they exist; the same command again goes on with what is missing.

    python benchmarks/storage.py --scale cpu --data imagefolder:DIR --latents WORKDIR/condense/latents.safetensors
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import click
import torch
from setting import PATH, Run, Scale, Setting, benchmark, generator_checksum, stored_results

from itgan_data.bundle.writing import LATENTS_FILE
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.evaluation.results import RowKey
from itgan_data.latents.stored import LatentSet
from itgan_data.recipes import fast_recipe, paper_recipe
from itgan_data.storage.files import sha256_of

ROWS = tuple(
    (stored, computed)
    for computed in ("float32", "bfloat16")
    for stored in ("float32", "float16", "int8")
    if computed == "float32" or stored == "float16"
)

SCALES = {
    "tiny": Scale(recipe=fast_recipe(2, 16), seeds=1),
    "cpu": Scale(recipe=replace(fast_recipe(400), precision="bfloat16", compile=True), seeds=2),
    "gpu": Scale(recipe=replace(paper_recipe(), precision="bfloat16", compile=True)),
}


def row_name(stored: str, computed: str) -> str:
    """As it stands in the results."""
    return f"latents {stored}, generator {computed}"


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
    return stored_results(out).table([row_name(*row) for row in ROWS])


@benchmark("storage", __doc__, SCALES)
@click.option("--latents", type=PATH, required=True, help="The bundle's latents in float32.")
def main(run: Run[Scale], latents: Path) -> None:
    results, setting = run.results(), run.open()
    exact = LatentSet.load(latents)
    for stored, computed in ROWS:
        name = row_name(stored, computed)
        kept, num_bytes = stored_latents(exact, stored)
        content = f"latents {sha256_of(latents)[:12]}, {generator_checksum(setting.bundle)}"
        key = RowKey(num_images=len(kept), num_bytes=num_bytes, content=content)
        for seed in setting.seeds:
            if results.get(name, key, seed) is None:
                source = source_of(setting, kept, computed)
                results.add(name, key, setting.run(source, setting.test, seed, name))
    click.echo(report(run.out), nl=False)


if __name__ == "__main__":
    main()

"""A disk that is full while something is written: one line that names the place, and what was there stays whole.

A limit on the size of files stands for the end of the disk: the kernel refuses the same calls, for one process alone.
"""

import subprocess
import sys
from pathlib import Path

from conftest import ROOT, write_bundle

from itgan_data.bundle.reading import load_bundle
from itgan_data.generators.store import save_generator

WRITERS = {
    "tensors": "save_tensors(folder / 'latents.safetensors', bundle.generator.state_dict())",
    "JSON": "write_json(folder / 'config.json', {'a': 'x' * 9000})",
    "latents": "bundle.latents.save(folder / 'latents.safetensors')",
    "shards": "bundle.latents.save(folder / 'latents.safetensors', max_shard_bytes=3000)",
    "generator": "save_generator(folder, bundle.generator)",
    "bundle": "save_bundle(folder, bundle.generator, bundle.latents, config=bundle.config, preview=False)",
    "card": "save_bundle(folder, tiny, few, config=long, preview=False)",  # a bundle of which no other file is so large
    "copy": "copy_bundle(Path(sys.argv[2]), folder / 'copy')",
}
SCRIPT = """
import resource, sys
from pathlib import Path
import torch
from itgan_data import LatentSet, Pixels, load_bundle, save_bundle
from itgan_data.cli.sharing import copy_bundle
from itgan_data.generators.store import save_generator
from itgan_data.storage.files import save_tensors, write_json

bundle = load_bundle(sys.argv[2])
tiny, few = Pixels((3, 1, 1), 3, bundle.normalization), LatentSet(torch.randn(3, 3), torch.arange(3))
long = dict(bundle.config, dataset="x" * 200)  # which the card repeats
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
for name, writer in eval(sys.argv[3]).items():
    folder = Path(sys.argv[1], name)
    try:
        exec(writer)
    except OSError as error:
        print(error)
"""


def test_a_full_disk_is_one_line_and_what_was_there_stays(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "made", ["cat", "dog", "owl"], images_per_class=100)
    for name in WRITERS:
        write_bundle(tmp_path / "there" / name, ["cat", "dog", "owl"])
    for file in (tmp_path / "there" / "generator").iterdir():
        file.unlink()
    save_generator(tmp_path / "there" / "generator", load_bundle(bundle).generator)
    before = contents(tmp_path / "there")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "there"), str(bundle), repr(WRITERS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stderr, done.returncode) == ("", 0)
    for name, line in zip(WRITERS, done.stdout.splitlines(), strict=True):
        assert "File too large; free some space, nothing was replaced" in line
        assert str(tmp_path / "there" / name) in line
    assert contents(tmp_path / "there") == before  # nothing half-written either


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

"""A bundle's way to other people, as a new user goes it: install, make, publish, fetch, train.

Everything happens in a new virtual environment and through the command line. Without --endpoint, the bundle goes to a
Hub that runs on this machine for as long as the script does (the one of the tests).

    python examples/publish_and_pull.py [--endpoint https://huggingface.co --repository NAME/digits]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMALL = {  # of CondenserConfig: seconds in place of hours, as digits need no more
    "real_batch_size": 64,
    "inversion": {"encoder_steps": 100, "encoder_batch_size": 32, "steps": 20},
    "pool": {"num_networks": 1, "width": 32, "steps": 60, "batch_size": 64, "snapshots": 2},
}
LOCAL_HUB = """
import runpy, sys
hub = runpy.run_path(sys.argv[1])["LoopbackHub"]()
print(hub.endpoint, flush=True)
sys.stdin.read()
hub.close()
"""
FIRST_BATCH = """
import sys
from itgan_data import SyntheticDataset, SyntheticLoader, load_bundle
bundle = load_bundle(sys.argv[1])
dataset = SyntheticDataset(bundle.generator, bundle.latents, classes=bundle.class_names)
loader = SyntheticLoader(dataset, 20, shuffle=True, drop_last=False, normalization=bundle.normalization)
images, labels = next(iter(loader))
print(f"first batch: {tuple(images.shape)} of classes {sorted(set(labels.tolist()))}")
"""


PARSER = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # click may not be installed yet
PARSER.add_argument("--endpoint", help="A Hub you are logged in to; by default one is started here.")
PARSER.add_argument("--repository", default="someone/digits", help="Where the bundle goes; default: %(default)s.")
PARSER.add_argument(
    "--here", action="store_true", help="Use this Python and what is installed, in place of a new environment."
)
PARSER.add_argument("--steps", default=100, type=int, help="Of each stage; few teach little. Default: %(default)s.")


def main(endpoint: str | None, repository: str, here: bool, steps: int) -> None:
    started = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        python = Path(sys.executable) if here else new_environment(Path(folder, "environment"))
        environment = {**os.environ, "HF_HOME": str(Path(folder, "maker"))}
        if endpoint is None:
            endpoint = stack.enter_context(local_hub(python))
            environment["HF_TOKEN"] = "writer"
        program = [str(python), "-c", "from itgan_data.cli import main; main()"]

        def itgan_data(*arguments: str) -> str:
            print(f"$ itgan-data {' '.join(arguments)}", flush=True)
            done = subprocess.run(
                [*program, *arguments], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            print(done.stdout, end="", flush=True)
            return done.stdout.strip()

        itgan_data("info")
        some = ("--data", "digits", "--steps", str(steps))
        Path(folder, "small.json").write_text(json.dumps(SMALL))
        itgan_data("pretrain", *some, "--preset", "digits", "--out", "generator")
        chosen = ("--config", "small.json", "--images-per-class", "10")
        itgan_data("condense", *some, "--generator", "generator", *chosen, "--out", "bundle")
        itgan_data("push", "bundle", repository, "--endpoint", endpoint)

        environment["HF_HOME"] = str(Path(folder, "user"))  # somebody else's machine, with nothing in the cache
        pulled = itgan_data("pull", repository, "--endpoint", endpoint)
        subprocess.run([str(python), "-c", FIRST_BATCH, pulled], cwd=folder, env=environment, check=True)
        print(f"{time.monotonic() - started:.0f} s from installing to the first batch of the pulled bundle", flush=True)
        verdict = itgan_data("evaluate", pulled, *some, "--seeds", "1")
    assert verdict.startswith("real test accuracy ")


@contextmanager
def local_hub(python: Path) -> Iterator[str]:
    """A Hub in a process of its own, for as long as the context lasts; its address."""
    command = [str(python), "-c", LOCAL_HUB, str(ROOT / "tests" / "hub_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def new_environment(folder: Path) -> Path:
    """A virtual environment with the package and what digits need; its Python."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", f"{ROOT}[digits]"], check=True)
    return python


if __name__ == "__main__":
    main(**vars(PARSER.parse_args()))

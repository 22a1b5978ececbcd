"""What README shows works: its Python runs, its commands are understood, its files exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, load_script

from itgan_data import CondenserConfig, GeneratorTrainerConfig, InversionConfig, PoolConfig, load_bundle
from itgan_data.cli import main
from itgan_data.generators.biggan import BigGANConfig

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^    (itgan-data .*)$", README, flags=re.MULTILINE)
SCRIPTS = re.findall(r"python ((?:examples|benchmarks)/\w+\.py(?: --?[\w-]+(?: [\w./:]+)?)*)", README)

# The sizes of a demonstration, in place of those of a real run.
SMALLER: dict[str, Any] = {
    "presets.digits()": GeneratorTrainerConfig(
        generator=BigGANConfig(latent_dim=8, channels=(8, 8, 8, 8)),
        discriminator_channels=8,
        batch_size=4,
        steps=2,
        precision="float32",
    ),
    "methods.it_gan(images_per_class=10)": CondenserConfig(
        images_per_class=2,
        real_batch_size=4,
        inversion=InversionConfig(encoder_steps=2, encoder_batch_size=4, steps=2),
        pool=PoolConfig(num_networks=1, width=8, steps=2, batch_size=8, snapshots=1),
    ),
    "steps=200": 2,
}


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = {f"smaller_{number}": value for number, value in enumerate(SMALLER.values())}
    for name, shown in zip(values, SMALLER, strict=True):
        option = shown.partition("=")[0] + "=" if shown.endswith("0") else ""
        block = block.replace(shown, option + name)
    exec(compile(block, "README.md", "exec"), values)
    if "save_bundle(" in block:
        assert len(load_bundle("runs/bundle").latents) == 20


@pytest.mark.parametrize("shown", SMALLER)
def test_the_sizes_that_are_made_smaller_are_there(shown: str) -> None:
    assert sum(shown in block for block in BLOCKS) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_is_understood(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    main.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("command", sorted(set(SCRIPTS)))
def test_the_scripts_take_the_options(command: str) -> None:
    script, *arguments = shlex.split(command)
    module = load_script(script)
    parameters = module.PARSER._actions if hasattr(module, "PARSER") else module.main.params
    known = {option for one in parameters for option in (one.opts if hasattr(one, "opts") else one.option_strings)}
    assert {argument for argument in arguments if argument.startswith("--")} <= known


def test_all_kinds_of_code_are_found() -> None:
    assert BLOCKS
    assert COMMANDS
    assert SCRIPTS


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)|`(tests/[\w/]+\.py)`", README))))
def test_the_files_exist(path: tuple[str, str]) -> None:
    assert (ROOT / "".join(path)).is_file()

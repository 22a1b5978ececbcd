"""What the README files show works: their Python runs, their commands are understood, their files exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, load_script

from itgan_data import CondenserConfig, GeneratorTrainerConfig, InversionConfig, PoolConfig, load_bundle
from itgan_data.cli import main
from itgan_data.generators.biggan import BigGANConfig

README, EXAMPLES, BENCHMARKS = (
    (ROOT / folder / "README.md").read_text(encoding="utf-8") for folder in (".", "examples", "benchmarks")
)
ALL = {".": README, "examples": EXAMPLES, "benchmarks": BENCHMARKS}
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^    (itgan-data .*)$", README, flags=re.MULTILINE)
SCRIPTS = re.findall(r"python ((?:examples|benchmarks)/\w+\.py[^`\n]*)", "\n".join(ALL.values()))
LINKS = [(folder, path) for folder, text in ALL.items() for path in re.findall(r"\]\((?!http)([^)#]+)\)", text)]
LINKS += [(".", path) for text in ALL.values() for path in re.findall(r"`((?:tests|itgan_data)/[\w/]+\.py)`", text)]

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
def test_the_command_line_is_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "data", "runs/generator"):
        Path(folder).mkdir(parents=True)
    Path("G_ema.pth").touch()
    _, name, *arguments = shlex.split(command)
    main.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("command", sorted(set(SCRIPTS)))
def test_the_scripts_take_the_options(command: str) -> None:
    script, *arguments = shlex.split(command)
    module = load_script(script)
    if hasattr(module, "PARSER"):
        module.PARSER.parse_args(arguments)
    else:
        module.main.make_context(script, arguments)


def test_the_numbers_are_those_of_the_benchmarks() -> None:
    rows = re.findall(r"^\|[^|]+(\|.*\d \|)$", README, flags=re.MULTILINE)
    assert len(rows) == 4
    assert [row for row in rows if row not in BENCHMARKS] == []


@pytest.mark.parametrize("folder", ["examples", "benchmarks"])
def test_every_script_is_shown(folder: str) -> None:
    shown = set(re.findall(r"\w+\.py", ALL[folder]))
    scripts = {file.name for file in (ROOT / folder).glob("*.py") if "__main__" in file.read_text()}
    assert scripts <= shown


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 170
    assert len(README.split()) <= 1700


def test_all_kinds_of_code_are_found() -> None:
    assert BLOCKS
    assert COMMANDS
    assert SCRIPTS


@pytest.mark.parametrize(("folder", "path"), sorted(set(LINKS)))
def test_the_files_exist(folder: str, path: str) -> None:
    assert (ROOT / folder / path).is_file()

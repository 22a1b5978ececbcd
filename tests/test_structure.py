"""The rules of the house: who imports whom, what an import loads, what lies where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import itgan_data

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "itgan_data"

BASE = {"storage", "draws", "config", "images"}  # what every room above them may use
MAY_IMPORT = {
    "storage": set(),
    "draws": set(),
    "config": set(),
    "images": {"config", "storage"},
    "image_folder": {"images"},
    "datasets": {"images", "image_folder"},
    "augmentation": {"draws", "images"},
    "networks": {"draws", "images"},
    "recipes": BASE | {"augmentation", "networks"},
    "running": BASE,
    "generators": BASE,
    "latents": BASE | {"generators"},
    "evaluation": BASE | {"datasets", "networks", "recipes", "running"},
    "pretraining": BASE | {"augmentation", "datasets", "evaluation", "generators", "networks", "recipes", "running"},
    "condense": BASE
    | {"augmentation", "datasets", "generators", "latents", "networks", "pretraining", "recipes", "running"},
    "bundle": BASE | {"generators", "latents"},
    "data": BASE | {"augmentation", "bundle", "generators", "latents"},
}
ALSO_IMPORTED_FROM = {PACKAGE / "generators" / "presets.py"}  # where users find names of a room above
PUBLIC_API_ONLY = {"cli", "__init__"}  # they may import every module but cli
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


def imported_names(file: Path) -> set[str]:
    """Dotted names that a file imports, with relative imports made absolute."""
    package = ("itgan_data", *file.relative_to(PACKAGE).parts[:-1]) if file.is_relative_to(PACKAGE) else ()
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names


def room(file: Path) -> str:
    """The module or subpackage of `itgan_data` that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(file: Path) -> set[str]:
    """The modules and subpackages of ours that a file imports, without its own."""
    ours = {name.split(".")[1] for name in imported_names(file) if name.startswith("itgan_data.")}
    return ours & {room(module) for module in MODULES} - {room(file)}


@pytest.mark.parametrize(
    "file", sorted(set(MODULES) - ALSO_IMPORTED_FROM), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_a_module_imports_only_what_its_room_allows(file: Path) -> None:
    if room(file) in PUBLIC_API_ONLY:
        assert "cli" not in rooms_imported(file)
    else:
        assert room(file) in MAY_IMPORT, f"{room(file)} is a new room: give it a line in MAY_IMPORT"
        assert rooms_imported(file) <= MAY_IMPORT[room(file)]


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_use_public_names_only(file: Path) -> None:
    ours = {name for name in imported_names(file) if name.startswith("itgan_data")}
    assert not [name for name in ours if any(part.startswith("_") for part in name.split("."))]


def test_all_public_names_exist() -> None:
    assert [name for name in itgan_data.__all__ if not hasattr(itgan_data, name)] == []


def test_importing_the_package_loads_nothing_that_is_seldom_needed() -> None:
    seldom = {"huggingface_hub", "kornia", "matplotlib", "sklearn", "torch_fidelity", "torchmetrics"}
    code = f"import sys, itgan_data; print(*({seldom} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []


def test_the_package_is_whole_and_typed() -> None:
    folders = {file.parent for file in MODULES}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []  # not installed
    assert (PACKAGE / "py.typed").is_file()


def test_the_top_level_holds_nothing_but_the_known_folders() -> None:
    known = {"itgan_data", "examples", "benchmarks", "tests"}
    passing = {"build", "data", "runs", "venv", "itgan_data.egg-info"}  # git ignores them
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert folders - passing - {"__pycache__"} == known

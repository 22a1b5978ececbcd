"""Write the tables of benchmarks/README.md from the files in benchmarks/results.

The prose there is written by hand. Between a line `<!-- FILE.json -->` and the next `<!-- end -->` stands what this
script makes of results/FILE.json: machine and versions as the file has them, and the report of the script that wrote
it.

    python benchmarks/tables.py
"""

import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import ablations
import accuracy
import augmentations
import cells
import click
import complementary
import condense_speed
import frontier
import inversion
import items
import latents_scale
import methods
import metrics
import sampling
import storage
import stress_bundles
import stress_inputs
import stress_resume
import throughput
from setting import one_line_errors, readable, stored_results

from itgan_data.storage.files import read_json, write_atomically

README = Path(__file__).parent / "README.md"
RESULTS = Path(__file__).parent / "results"
BLOCK = re.compile(r"^<!-- (\S+\.json) -->\n.*?^<!-- end -->$", flags=re.MULTILINE | re.DOTALL)


def rows_of(path: Path) -> str:
    """The rows of a file of results as they are."""
    return stored_results(path).table()


def ablations_of(path: Path) -> str:
    """The file is named after its scale."""
    return ablations.report(cells.Record(ablations.SCALES[path.stem.removeprefix("ablations-")], path))


REPORTS: dict[str, Callable[[Path], str]] = {  # the first pattern that fits a file's name
    "*.qualities.json": rows_of,
    "*.trials.json": rows_of,
    "*.tuning.json": rows_of,
    "*.table-3.json": complementary.report,
    "*.precision.json": condense_speed.precision_report,
    "ablations-*.json": ablations_of,
    "accuracy-*.json": accuracy.report,
    "augmentations.json": augmentations.report,
    "condense-speed.json": condense_speed.report,
    "frontier-*.json": frontier.report,
    "inversion.json": inversion.report,
    "items.json": items.report,
    "latents-scale.json": latents_scale.report,
    "methods-*.json": methods.report,
    "metrics.json": metrics.report,
    "sampling-*.json": sampling.report,
    "storage.json": storage.report,
    "stress-bundles.json": stress_bundles.report,
    "stress-inputs.json": stress_inputs.report,
    "stress-resume.json": stress_resume.report,
    "throughput.json": throughput.report,
}
PARTS = "*.rates.json"  # read by the report of the file that they belong to


def block(path: Path) -> str:
    """What stands in README for a file of results."""
    if not path.is_file():
        raise ValueError(f"there is no {path}; remove its lines from {README.name}")
    reports = [report for pattern, report in REPORTS.items() if fnmatch(path.name, pattern)]
    if not reports:
        raise ValueError(f"no script reports on {path.name}; add a line to REPORTS in tables.py")
    return f"<!-- {path.name} -->\n{machine(path)}\n\n{reports[0](path)}<!-- end -->"


def machine(path: Path) -> str:
    """Where a file of results was measured, as the file itself says."""
    known = dict(read_json(path)["environment"])
    python, package, torch, torchvision = (known.pop(name) for name in ("python", "itgan_data", "torch", "torchvision"))
    processor, cores, threads, gpu = (known.pop(name) for name in ("processor", "cores", "torch_threads", "gpu"))
    parts = [
        gpu or f"{processor}, {cores} cores, {threads} thread{'s' * (threads > 1)} of PyTorch",
        f"Python {python}, PyTorch {torch}, torchvision {torchvision}, itgan_data {package}",
        *(f"{name} {value}" for name, value in known.items()),
    ]
    return f"[{path.name}](results/{path.name}): {'; '.join(parts)}."


def rendered(text: str, results: Path = RESULTS) -> str:
    """README with the tables that the results give.

    Raises:
        ValueError: a file of results is missing, or in no block, or nothing reports on it.
    """
    shown = set(BLOCK.findall(text))
    if missing := {path.name for path in results.glob("*.json") if not fnmatch(path.name, PARTS)} - shown:
        raise ValueError(
            f"{README} does not show {min(missing)}; write the lines <!-- {min(missing)} --> and <!-- end -->"
        )
    return BLOCK.sub(lambda match: block(results / match[1]), text)


@click.command(help=readable(__doc__))
def main() -> None:
    with one_line_errors():
        text = rendered(README.read_text(encoding="utf-8"))
    with write_atomically(README) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

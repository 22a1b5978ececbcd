"""Accuracy over bytes: what random real images, coded with standard formats, and bundles teach at the same size.

    lossless      random real images, one lossless WebP file each
    webp          one lossy WebP file each
    webp-mosaic, avif-mosaic
                  side by side in one file, colours at full resolution
    BUNDLE        each bundle, at its own size
    real-whole    the whole real training set

Per budget, a lossy format has the quality that teaches a network most, judged on held-out training images with a
quarter of the updates. Every row trains the same network by the same recipe and number of updates. Bytes are bytes of
files, with headers, labels, decoder and configuration; decoders of standard formats are free, and so is this package.
Results are kept as they are made; the same command again goes on with what is missing, and draws the plot.

    python benchmarks/frontier.py --data imagefolder:DIR --budgets 0.1,0.3,0.65,1.3,2.6,5.2 --compile
"""

from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from coded import CODECS, LOSSLESS, NO_LIMIT, fill_with_files
from setting import balanced_order, hold_out, one_line_errors, stored_results, summary_of, train_and_test

from itgan_data.bundle import Bundle, load_bundle
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.datasets import load_images, open_dataset
from itgan_data.evaluation.protocol import measure_normalization
from itgan_data.evaluation.results import Results, RowKey, SeedResult, environment
from itgan_data.images import ImageSource, LabeledImages, Normalization
from itgan_data.networks import NETWORKS
from itgan_data.recipes import Recipe, fast_recipe
from itgan_data.storage.files import write_atomically

WHOLE = "real-whole"
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")  # told apart by everybody


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """What all cells have in common, and where their results are kept."""

    train: LabeledImages
    test: LabeledImages
    normalization: Normalization
    network: str
    recipe: Recipe
    device: str
    results: Results
    trials: Results

    def run(self, source: ImageSource, name: str, seed: int) -> SeedResult:
        """Train and test one network."""
        return self._trained(source, self.test, self.recipe, name, seed)

    def score(self, source: ImageSource, name: str) -> SeedResult:
        """What a source teaches in a quarter of the updates, judged on held-out training images."""
        judges = self.train.select(hold_out(self.train.labels)[0])
        return self._trained(source, judges, replace(self.recipe, steps=max(1, self.recipe.steps // 4)), name, 0)

    def _trained(self, source: ImageSource, test: LabeledImages, recipe: Recipe, name: str, seed: int) -> SeedResult:
        return train_and_test(
            source,
            test,
            self.network,
            recipe,
            seed=seed,
            normalization=self.normalization,
            device=self.device,
            title=f"{name}, seed {seed}",
        )


def has_seed(results: Results, name: str, seed: int) -> bool:
    """Whether a row has the result of a seed. Its key is not asked for: making it would code all images again."""
    return any(result["seed"] == seed for result in results.rows.get(name, {}).get("results", ()))


def best_quality(frontier: Frontier, row: str, budget: int) -> int | None:
    """The quality of a format that teaches most within a budget.

    Qualities rise; a higher one holds fewer images. Where all images fit with room to spare, a lower one is pointless.
    """
    codec, order = CODECS[row], hold_out(frontier.train.labels)[1]
    if len(codec.qualities) == 1:
        return codec.qualities[0]
    scores = {}
    for quality in codec.qualities:
        name = f"{row} {budget:,} quality {quality}"
        if name not in frontier.trials.rows:
            subset, num_bytes = codec.fill(frontier.train, order, budget=budget, quality=quality)
            key = RowKey(num_images=len(subset), num_bytes=num_bytes, content=f"quality {quality}")
            frontier.trials.add(name, key, frontier.score(subset, name))
        scores[quality] = frontier.trials.rows[name]["summary"]["mean"]
    return max(scores, key=lambda quality: scores[quality])


def add_coded(frontier: Frontier, row: str, budget: int, seed: int) -> None:
    """One network on random real images in a format; each seed draws other images."""
    name = f"{row} {budget:,}"
    if has_seed(frontier.results, name, seed):
        return
    quality = best_quality(frontier, row, budget)
    order = balanced_order(frontier.train.labels, seed)
    subset, num_bytes = CODECS[row].fill(frontier.train, order, budget=budget, quality=quality)
    content = "lossless" if quality is LOSSLESS else f"quality {quality}"
    key = RowKey(num_images=len(subset), num_bytes=num_bytes, content=content)
    if name in frontier.results.rows:  # one row has one key: that of the first seed's images
        key = RowKey(**frontier.results.rows[name]["key"])
    frontier.results.add(name, key, frontier.run(subset, name, seed))


def add_bundle(frontier: Frontier, bundle: Bundle, seed: int) -> None:
    """One network on a bundle."""
    name, checksums = f"bundle {bundle.path.name}", bundle.config["sha256"].values()
    key = RowKey(
        num_images=len(bundle.latents),
        num_bytes=bundle.num_bytes,
        content=" ".join(checksum[:12] for checksum in sorted(checksums)),
    )
    if frontier.results.get(name, key, seed) is None:
        dtype = getattr(torch, frontier.recipe.precision)
        source = SyntheticDataset(bundle.generator, bundle.latents, device=frontier.device, dtype=dtype)
        frontier.results.add(name, key, frontier.run(source, name, seed))


def add_whole(frontier: Frontier, seed: int) -> None:
    """One network on all real images; their bytes are those of 1,000 of them as lossless WebP, scaled up."""
    if has_seed(frontier.results, WHOLE, seed):
        return
    sample = balanced_order(frontier.train.labels, 0)[:1000]
    _, num_bytes = fill_with_files(frontier.train, sample, budget=NO_LIMIT, quality=LOSSLESS)
    count = len(frontier.train)
    key = RowKey(num_images=count, num_bytes=num_bytes * count // len(sample), content="lossless, bytes estimated")
    frontier.results.add(WHOLE, key, frontier.run(frontier.train, WHOLE, seed))


def report(path: Path) -> str:
    """A Markdown table by bytes, with the share of what the whole real set teaches under the same recipe."""
    results = stored_results(path)
    rows = sorted(results.rows.items(), key=lambda item: item[1]["key"]["num_bytes"])
    whole = results.rows.get(WHOLE, {}).get("summary", {}).get("mean")
    lines = ["| training set | coded as | images | bytes | test accuracy (%) | share of real (%) | seeds |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for name, row in rows:
        key, summary = row["key"], summary_of(row)
        share = "-" if whole is None else f"{100 * summary.mean / whole:.1f}"
        content = "codes and decoder" if name.startswith("bundle") else key["content"]
        lines.append(
            f"| {name.partition(' ')[0] if not name.startswith('bundle') else name} | {content} | "
            f"{key['num_images']:,} | {key['num_bytes']:,} | {summary} | {share} | {summary.num_seeds} |"
        )
    return "\n".join(lines) + "\n"


def draw(results: Results, out: Path) -> None:
    """The plot, as PNG and SVG: a labelled line per format, a point per bundle, the whole real set as a line."""
    from matplotlib.figure import Figure  # an extra, needed at the end alone

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for name, row in results.rows.items():
        if name != WHOLE:
            line = name if name.startswith("bundle") else name.partition(" ")[0]
            summary = row["summary"]
            point = (row["key"]["num_bytes"] / 1e6, 100 * summary["mean"], 100 * (summary["std"] or 0))
            lines.setdefault(line, []).append(point)
    for place, (line, points) in enumerate(sorted(lines.items())):
        megabytes, accuracies, spreads = zip(*sorted(points), strict=True)
        color = COLORS[place % len(COLORS)]
        axes.errorbar(megabytes, accuracies, spreads, color=color, marker="D" if "bundle" in line else "o", capsize=2)
        axes.annotate(f" {line}", (megabytes[-1], accuracies[-1]), color=color, va="center", fontsize=8)
    if WHOLE in results.rows:
        whole = 100 * results.rows[WHOLE]["summary"]["mean"]
        axes.axhline(whole, color="0.4", linestyle=":")
        axes.annotate("whole real set", (min(p[0] for line in lines.values() for p in line), whole + 0.3), fontsize=8)
    axes.set(xscale="log", xlabel="size on disk (MB)", ylabel="test accuracy (%)")
    axes.margins(x=0.15)
    for ending in (".png", ".svg"):
        with write_atomically(out.with_suffix(ending)) as temporary:
            figure.savefig(temporary, format=ending[1:], dpi=150)


@click.command(help=__doc__.partition("\n")[0])
@click.option("--data", required=True, help="Real images: cifar10[:ROOT], imagefolder:DIR, digits.")
@click.option("--budgets", default="0.1,0.3,0.65,1.3,2.6,5.2", show_default=True, help="Sizes in MB (1,000,000 bytes).")
@click.option("--bundle", "folders", multiple=True, help="A bundle's folder, or its name in the package; repeatable.")
@click.option("--rows", default=",".join([*CODECS, WHOLE]), show_default=True)
@click.option("--network", default="convnet", show_default=True, type=click.Choice(NETWORKS))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Networks per cell.")
@click.option("--steps", default=1200, show_default=True, type=click.IntRange(1), help="Updates of each network.")
@click.option("--precision", default="bfloat16", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile; it needs a C++ compiler.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of PyTorch.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/frontier.json"), show_default=True)
def main(
    data: str,
    budgets: str,
    folders: tuple[str, ...],
    rows: str,
    network: str,
    seeds: int,
    steps: int,
    precision: str,
    compiled: bool,
    device: str,
    threads: int | None,
    out: Path,
) -> None:
    if threads:
        torch.set_num_threads(threads)
    with one_line_errors():
        sizes, names = parse_budgets(budgets), parse_rows(rows)
        bundles = [load_bundle(folder) for folder in folders]
        train, test = (load_images(open_dataset(data, split)) for split in ("train", "test"))
        for bundle in bundles:
            if bundle.class_names != train.classes:
                raise ValueError(f"{bundle.path} has classes {bundle.class_names}, {data} has {train.classes}")
        recipe = replace(fast_recipe(steps), precision=precision, compile=compiled)
        settings = {"network": network, "recipe": recipe.to_json(), "data": train.fingerprint, "test": test.fingerprint}
        where = {"settings": settings, "environment": environment(device)}
        results, trials = Results(out, **where), Results(out.with_suffix(".trials.json"), **where)
        frontier = Frontier(
            train=train,
            test=test,
            normalization=measure_normalization(train),
            network=network,
            recipe=recipe,
            device=device,
            results=results,
            trials=trials,
        )
        for seed in range(seeds):  # one network of every cell before the second of any
            for bundle in bundles:
                add_bundle(frontier, bundle, seed)
            if WHOLE in names:
                add_whole(frontier, seed)
            for size in sizes:
                for row in names:
                    if row != WHOLE:
                        add_coded(frontier, row, size, seed)
    click.echo(report(out))
    draw(results, out)


def parse_budgets(text: str) -> list[int]:
    """Bytes of "0.1,1.3" megabytes.

    Raises:
        ValueError: not positive numbers.
    """
    try:
        sizes = [round(1e6 * float(part)) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"budgets are sizes in MB, such as 0.1,1.3, got {text!r}") from error
    if min(sizes) <= 0:
        raise ValueError(f"budgets must be positive, got {text!r}")
    return sizes


def parse_rows(text: str) -> list[str]:
    """The rows that can be made; formats that this Pillow lacks are named and left out.

    Raises:
        ValueError: an unknown row.
    """
    names = text.split(",")
    if unknown := set(names) - {*CODECS, WHOLE}:
        raise ValueError(f"unknown rows {', '.join(sorted(unknown))}; expected some of {', '.join([*CODECS, WHOLE])}")
    missing = [name for name in names if name != WHOLE and not CODECS[name].is_available]
    for name in missing:
        click.echo(f"left out: {name}, as this Pillow was built without {CODECS[name].feature}", err=True)
    return [name for name in names if name not in missing]


if __name__ == "__main__":
    main()

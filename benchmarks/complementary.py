"""Several generators, each trained for what those before it miss: Table 3 of Slim, 2020, on digits.

A row is named after the number of its generators and how those after the first are trained:

    independent           as the first one, from other seeds
    A_mu, A_sigma, B, C   on real images drawn with the weights of Algorithm 1, by that method: the farther an image is
                          from what all generators before make, the more often it is seen; all classes equally often

Each batch is made by one generator, drawn equally often, or in rows with a star the first three times as often as the
second. As in the source, classifiers see draws that are new in every epoch, cropped (but digits are not mirrored) and
filtered, and distances are in the features of the classifier that filters, which is trained on all real images.

The rows of a set of generators share the first one, and the k-th of all of them start from one seed, so that they
differ in the weights alone. A difference between rows is taken within each set; its spread is that over the sets.
Generators are small and stop early, on digits at their own 8 px, so that one alone leaves room for others.

Source: Slim, "Boosting generative networks for incremental learning", 2020, section 5, on CIFAR-10.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from setting import train_and_test, verdict

from itgan_data.augmentation import CropFlip
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.data.ensemble import SyntheticEnsemble
from itgan_data.datasets import DIGITS, load_images, open_dataset
from itgan_data.draws import Stream, make_rng, make_seed
from itgan_data.evaluation.features import FeatureNetwork
from itgan_data.evaluation.metrics import WEIGHT_METHODS, sample_weights
from itgan_data.evaluation.protocol import NetworkFactory
from itgan_data.evaluation.results import Results, RowKey, SeedResult, Summary, environment, summarize
from itgan_data.generators.biggan import BigGANConfig
from itgan_data.generators.frozen import FrozenBigGAN, fold
from itgan_data.images import ImageSource, LabeledImages, uint8_to_unit, unit_to_uint8
from itgan_data.latents.filtered import FilteredLatents
from itgan_data.latents.fresh import RandomLatents
from itgan_data.networks import Classifier, create_network
from itgan_data.pretraining import presets
from itgan_data.pretraining.config import GeneratorTrainerConfig
from itgan_data.pretraining.gan import GeneratorTrainer
from itgan_data.recipes import Recipe, fast_recipe
from itgan_data.storage.files import fingerprint, load_tensors, read_json, save_tensors, write_json

INDEPENDENT = "independent"
PAPER = {  # accuracy in percent, Table 3; None where it has no number
    "1": 88.56,
    "2 independent": 90.24,
    "2 A_mu": 88.12,
    "2 A_sigma": 89.06,
    "2 B": 89.27,
    "2 C": 89.33,
    "2* A_mu": 88.81,
    "2* A_sigma": 89.43,
    "2* B": 89.56,
    "2* C": 89.69,
    "3 independent": 90.61,
    "3 A_mu": 88.02,
    "3 A_sigma": 88.57,
    "3 B": None,
    "3 C": 90.25,
}
STAR = (3.0, 1.0)  # weights of the two generators
REAL = "all real images"
SIDE = 8
FILTER_SEED = 1000  # of the classifier that filters; unlike those of the rows


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much work the table is."""

    generator: GeneratorTrainerConfig
    width: int
    """Channels of the classifiers."""
    recipe: Recipe
    """What they are trained by."""
    num_images: int
    """In an epoch of fresh draws."""
    sets: int
    """Of generators."""
    networks: int
    """That judge a row of a set."""


PLAN = Plan(
    generator=replace(
        presets.digits(),
        generator=BigGANConfig(latent_dim=32, channels=(32, 32)),
        discriminator_steps=1,
        lr_generator=1e-3,  # at twice that some of the later ones collapse, and the filter waits in vain
        lr_discriminator=1e-3,
        batch_size=64,
        steps=600,
        preview_steps=600,
    ),
    width=32,
    recipe=replace(fast_recipe(150, 64), augmentation=CropFlip(padding=1, flip=False)),
    num_images=1440,
    sets=3,
    networks=3,
)


def digits(split: str) -> LabeledImages:
    """Scikit-learn's, back at the size that they have there."""
    large = load_images(open_dataset("digits", split))
    unit = F.interpolate(uint8_to_unit(large.images), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return LabeledImages(unit_to_uint8(unit), large.labels, large.class_names)


def fresh_network(rng: torch.Generator) -> Classifier:
    """What filters, gives the features and judges."""
    classes = PLAN.generator.generator.num_classes
    return create_network("convnet", classes, image_shape=(3, SIDE, SIDE), width=PLAN.width, depth=2, rng=rng)


class Bench:
    """Trains the generators of all rows, and networks on their images, each once.

    Args:
        workdir: where the generators and the classifier that filters are kept.
        out: JSON of the results; what the filters accept goes next to it.
        device: of all training.
    """

    def __init__(self, workdir: Path, out: Path, device: str) -> None:
        self.train, self.test = digits("train"), digits("test")
        self.device = device
        self.rates_file = out.with_suffix(".rates.json")
        settings = {
            "generator": asdict(PLAN.generator),
            "width": PLAN.width,
            "recipe": PLAN.recipe.to_json(),
            "data": self.train.fingerprint[:12],
        }
        self.results = Results(out, settings=settings, environment=environment(device))
        self.classifier = self._trained_on_real(workdir / "filter.safetensors")
        self.checksum = fingerprint(self.classifier.state_dict())[:12]
        self.folder = workdir / self.checksum  # the weights of images, and so the generators, depend on it
        self._made: dict[Path, FrozenBigGAN] = {}

    def _trained_on_real(self, file: Path) -> Classifier:
        """The classifier that filters and gives the features, as its file holds it; its accuracy is a row too."""
        key = RowKey(num_images=len(self.train), num_bytes=self.train.images.nbytes, content=REAL)
        if self.results.get(REAL, key, FILTER_SEED) is None or not file.is_file():
            network = fresh_network(make_rng(FILTER_SEED, stream=Stream.CLASSIFIER))
            result = self._judged(self.train, lambda _: network, FILTER_SEED, REAL)
            save_tensors(file, network.state_dict())
            self.results.add(REAL, key, result)
        loaded = fresh_network(make_rng(FILTER_SEED, stream=Stream.CLASSIFIER)).eval()
        loaded.load_state_dict(load_tensors(file))
        return loaded.to(self.device)

    def _judged(self, source: ImageSource, network: NetworkFactory, seed: int, title: str) -> SeedResult:
        return train_and_test(
            source,
            self.test,
            network,
            PLAN.recipe,
            seed=seed,
            normalization=DIGITS.normalization,
            device=self.device,
            title=f"{title}, seed {seed}",
        )

    def measure(self, number: int, name: str) -> list[SeedResult]:
        """The results of a row for one set of generators; what is missing is trained, and kept at once."""
        row, (count, _) = row_title(name, number), parts(name)
        size = sum(tensor.nbytes for tensor in FrozenBigGAN(PLAN.generator.generator).state_dict().values())
        content = f"epochs of {PLAN.num_images}, filter and features {self.checksum}"
        key = RowKey(num_images=None, num_bytes=count * size, content=content)
        measured = []
        for seed in range(number * PLAN.networks, (number + 1) * PLAN.networks):
            result = self.results.get(row, key, seed)
            if result is None:
                source, filters = self._source(number, name, seed)
                result = self._judged(source, fresh_network, seed, row)
                accepted = [one.acceptance_rate if one.num_tried.any() else None for one in filters]
                write_json(self.rates_file, {**self.rates(), row: accepted})
                self.results.add(row, key, result)
            measured.append(result)
        return measured

    def rates(self) -> dict[str, Any]:
        """The share of each generator's images that its filter accepted, with the last network of a row and set."""
        return read_json(self.rates_file) if self.rates_file.is_file() else {}

    def _source(self, number: int, name: str, seed: int) -> tuple[SyntheticEnsemble, list[FilteredLatents]]:
        """The training set of a row, and its filters."""
        datasets, filters = [], []
        for position, generator in enumerate(self.generators(number, name)):
            drawn = RandomLatents(
                PLAN.num_images, generator.latent_dim, generator.num_classes, seed=own_seed(seed, position)
            )
            filters.append(FilteredLatents(drawn, generator, self.classifier, normalization=DIGITS.normalization))
            datasets.append(SyntheticDataset(generator, filters[-1]))
        return SyntheticEnsemble(datasets, weights=STAR if "*" in name else None, seed=seed), filters

    def generators(self, number: int, name: str) -> list[FrozenBigGAN]:
        """The generators of a row, of one set."""
        count, way = parts(name)
        row: list[FrozenBigGAN] = []
        for position in range(count):
            folder = self.folder / f"set-{number}" / (f"{position + 1}-{way}" if position else "1")
            if folder not in self._made:
                self._made[folder] = self._next(folder, row, way, own_seed(number, position))
            row.append(self._made[folder])
        return row

    def _next(self, folder: Path, earlier: Sequence[FrozenBigGAN], way: str, seed: int) -> FrozenBigGAN:
        """Train the generator that follows others."""
        weights = None
        if earlier and way != INDEPENDENT:
            file = folder / "sample_weights.safetensors"
            if not file.is_file():  # kept, as another number of threads would round them otherwise
                save_tensors(file, {"sample_weights": self._weights(earlier, way, seed)})
            weights = load_tensors(file)["sample_weights"]
        config = replace(PLAN.generator, seed=seed)
        trainer = GeneratorTrainer(config, self.train, workdir=folder, device=self.device, sample_weights=weights)
        return fold(trainer.run()).to(self.device)

    def _weights(self, earlier: Sequence[FrozenBigGAN], method: str, seed: int) -> torch.Tensor:
        """Algorithm 1, on as many unfiltered images of each generator as there are real ones, of the same labels."""
        labels = self.train.labels
        features = FeatureNetwork("the filter's", self._embed).features
        synthetic = []
        for position, generator in enumerate(earlier):
            drawn = RandomLatents(
                len(labels), generator.latent_dim, generator.num_classes, labels=labels, seed=own_seed(seed, position)
            )
            unit, _ = SyntheticDataset(generator, drawn).unit_batch(torch.arange(len(labels)), 0)
            synthetic.append(features(unit_to_uint8(unit)))
        weights = sample_weights(
            features(self.train.images), labels, torch.cat(synthetic), labels.repeat(len(earlier)), method=method
        )
        sums = torch.zeros(self.train.num_classes).index_add_(0, labels, weights)
        return weights / sums[labels]

    def _embed(self, unit: torch.Tensor) -> torch.Tensor:
        return self.classifier.embed(DIGITS.normalization.standardize(unit.to(self.device)))


def own_seed(seed: int, position: int) -> int:
    """Of the generator at a position in its set."""
    return make_seed(seed, position, stream=Stream.SCRIPT)


def parts(name: str) -> tuple[int, str]:
    """The number of generators of a row, and how those after the first are trained."""
    count, _, way = name.partition(" ")
    return int(count.rstrip("*")), way


def row_title(name: str, number: int) -> str:
    """A row of one set in the results."""
    return f"{name}, set {number}"


def orders() -> Iterator[tuple[str, str, str]]:
    """Rows of the paper that differ in one choice: its name, the row that is better there, the other one."""
    ways, methods = (INDEPENDENT, *WEIGHT_METHODS), list(itertools.combinations(WEIGHT_METHODS, 2))
    pairs = [("one more", f"2 {way}", "1") for way in ways] + [("one more", f"3 {way}", f"2 {way}") for way in ways]
    for count in (2, 3):
        pairs += [("weights", f"{count} {INDEPENDENT}", f"{count} {way}") for way in WEIGHT_METHODS]
        pairs += [("method", f"{count} {one}", f"{count} {other}") for one, other in methods]
    pairs += [("star", f"2* {way}", f"2 {way}") for way in WEIGHT_METHODS]
    for choice, one, other in sorted(pairs):
        if PAPER[one] is not None and PAPER[other] is not None:
            better, worse = sorted((one, other), key=PAPER.__getitem__, reverse=True)
            yield choice, better, worse


def gain(better: Sequence[Sequence[SeedResult]], worse: Sequence[Sequence[SeedResult]]) -> Summary:
    """What one row has more than another in a set: mean and spread over the sets."""
    values = [summarize(one).mean - summarize(other).mean for one, other in zip(better, worse, strict=True)]
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(mean=statistics.fmean(values), std=std, num_seeds=len(values))


def accepted_shares(rates: Sequence[Sequence[float | None]]) -> str:
    """Percentages of each generator of a row, the mean over the sets."""
    known = [[rate for rate in each if rate is not None] for each in zip(*rates, strict=True)]
    return ", ".join(f"{100 * statistics.fmean(each):.1f}" if each else "-" for each in known)


def report(out: Path) -> str:
    """Markdown: a file of results with the paper's numbers."""
    stored, rates = read_json(out)["rows"], read_json(out.with_suffix(".rates.json"))
    rows: dict[str, list[list[SeedResult]]] = {name: [] for name in PAPER}
    for number, (name, sets) in itertools.product(range(PLAN.sets), rows.items()):
        sets.append([SeedResult(**result) for result in stored[row_title(name, number)]["results"]])
    return compare(rows, rates, stored[REAL]["summary"]["mean"])


def compare(rows: Mapping[str, Sequence[Sequence[SeedResult]]], rates: Mapping[str, Any], real_accuracy: float) -> str:
    """Markdown: the rows with the paper's, and which of its orders hold.

    Args:
        rows: results by row and set.
        rates: what the filters of a row accepted, by title of the row.
        real_accuracy: that of the network that filters.
    """
    lines = [
        f"Digits at {SIDE} px, {PLAN.sets} sets of generators, {PLAN.networks} networks per row and set. The network "
        "that filters and gives the features was trained on all real images; its test accuracy is "
        f"{100 * real_accuracy:.2f}%.",
        "",
        "| generators | filter accepts of each (%) | Slim (%) | test accuracy (%) | networks |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, sets in rows.items():
        shares = accepted_shares([rates[row_title(name, number)] for number in range(len(sets))])
        results = [result for few in sets for result in few]
        lines.append(f"| {name} | {shares} | {PAPER[name] or '-'} | {summarize(results)} | {len(results)} |")
    lines += ["", "| choice | order | Slim | here, within a set | |", "|---|---|---:|---:|---|"]
    nothing, verdicts = Summary(mean=0.0, std=0.0, num_seeds=PLAN.sets), []
    for choice, better, worse in orders():
        ours = gain(rows[better], rows[worse])
        verdicts.append(verdict(ours, nothing))
        paper = PAPER[better] - PAPER[worse]
        lines.append(f"| {choice} | {better} > {worse} | {paper:+.2f} | {ours} | {verdicts[-1]} |")
    counts = Counter(verdicts)
    found = ", ".join(f"{kind}: {counts[kind]}" for kind in ("holds", "reversed", "within the spread"))
    return "\n".join([*lines, "", f"Of {len(verdicts)} orders of the paper: {found}."]) + "\n"


def measure_all(workdir: Path, out: Path, device: str) -> None:
    """Measure what is missing of the table."""
    bench = Bench(workdir, out, device)
    for number, name in itertools.product(range(PLAN.sets), PAPER):
        bench.measure(number, name)

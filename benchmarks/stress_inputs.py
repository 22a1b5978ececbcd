"""Does what users bring ever come out as something else, in silence?

Thousands of small data sets are drawn: images of all types, modes, ranges and layouts, labels, class names, folders,
and paths and files. Each is made from levels, labels and names that are known, so what it means is known without the
code that is tested: either it must come out as just that, or it has no certain meaning and must be refused with a
ValueError of one line. Everything follows from the number of the draw and the seed.

    python benchmarks/stress_inputs.py --count 4000 --seed 0
"""

import os
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from setting import readable
from torch.utils.data import Subset

from itgan_data.datasets import DATASETS, load_images, open_dataset, parse_spec
from itgan_data.evaluation.results import environment
from itgan_data.images import LabeledImages
from itgan_data.latents.importers import read_labels
from itgan_data.storage.files import check_writable, read_json, write_json

OUTCOMES = ("right", "refused", "wrong")
REFUSE = "refuse"  # what an input without a certain meaning must come to

Levels = np.ndarray[Any, Any]  # uint8 [C, H, W]
Case = tuple[Callable[[], Any], Any]  # what is tried, and what it must give
WORDS = ("cat", "dog", "owl", "ant", "bee", "elk", "fox", "gnu")


# Images. Levels have black and white in every image, so that no range fits two meanings.


def draw_levels(rng: random.Random, channels: int, side: int, values: Sequence[int] = range(256)) -> Levels:
    levels = np.array(rng.choices(values, k=channels * side * side), dtype=np.uint8)
    levels[rng.randrange(len(levels) // 2)], levels[-1] = 0, 255
    return levels.reshape(channels, side, side)


def scaled(levels: Levels) -> Levels:
    return levels.astype(np.uint16) * 257


def hwc(levels: Levels) -> Levels:
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def pil(levels: Levels) -> Image.Image:
    return Image.fromarray(hwc(levels) if len(levels) == 3 else levels[0])


def palette(levels: Levels) -> Image.Image:
    """The grey levels as numbers of colours, which are the levels' negatives."""
    image = Image.new("P", levels.shape[:0:-1])
    image.putpalette([255 - value for value in range(256) for _ in range(3)])
    image.putdata(levels[0].flatten().tolist())
    return image


def spoiled(levels: Levels, value: float) -> torch.Tensor:
    image = torch.from_numpy(levels) / 255
    image.flatten()[-1] = value
    return image


same: Callable[[Levels], Levels] = lambda levels: levels  # noqa: E731
rgb: Callable[[Levels], Levels] = lambda levels: np.broadcast_to(levels, (3, *levels.shape[1:]))  # noqa: E731
INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint32)
FLOATS = (torch.float16, torch.float32, torch.float64)
# For each way to hold an image: how many channels it may have, how it is made of levels, and what it then means.
FORMS: dict[str, tuple[tuple[int, ...], Callable[[Levels], Any], Callable[[Levels], Levels] | None]] = {
    **{f"tensor {t}": ((1, 3), lambda x, t=t: torch.from_numpy(x).to(t), same) for t in INTEGERS},
    **{f"unit tensor {t}": ((1, 3), lambda x, t=t: (torch.from_numpy(x).double() / 255).to(t), same) for t in FLOATS},
    "unit tensor, rounded": ((1, 3), lambda x: torch.from_numpy(x) / 255 + 0.001, same),
    "unit tensor with gradient": ((1, 3), lambda x: (torch.from_numpy(x) / 255).requires_grad_(), same),
    "unit tensor, strided": ((1, 3), lambda x: (torch.from_numpy(hwc(x)) / 255).permute(2, 0, 1), same),
    "grey tensor": ((1,), lambda x: torch.from_numpy(x[0]), same),
    "16-bit tensor": ((1, 3), lambda x: torch.from_numpy(scaled(x)), same),
    **{f"array {t}": ((1, 3), lambda x, t=t: hwc(x).astype(t), same) for t in ("u1", ">i2", "<i4", "i8", ">u4", "u8")},
    **{f"unit array {t}": ((1, 3), lambda x, t=t: (hwc(x) / 255).astype(t), same) for t in ("f2", ">f4", "f8")},
    **{f"16-bit array {t}": ((1, 3), lambda x, t=t: hwc(scaled(x)).astype(t), same) for t in ("<u2", ">u2")},
    "array in Fortran's order": ((1, 3), lambda x: np.asfortranarray(hwc(x)), same),
    "array turned over": ((1, 3), lambda x: hwc(x)[::-1], lambda x: x[:, ::-1]),
    "read-only array": ((3,), lambda x: np.frombuffer(hwc(x).tobytes(), np.uint8).reshape(*x.shape[1:], 3), same),
    "grey array": ((1,), lambda x: x[0], same),
    "PIL": ((1, 3), pil, same),
    "PIL RGBA": ((1, 3), lambda x: pil(x).convert("RGBA"), rgb),
    "PIL LA": ((1,), lambda x: pil(x).convert("LA"), rgb),
    "PIL CMYK": ((3,), lambda x: pil(x).convert("CMYK"), same),
    "PIL P": ((1,), palette, lambda x: 255 - rgb(x)),
    "PIL I": ((1,), lambda x: Image.fromarray(x[0].astype(np.int32)), same),
    "PIL I;16": ((1,), lambda x: Image.fromarray(scaled(x)[0]), same),
    "PIL I;16B": ((1,), lambda x: Image.fromarray(scaled(x)[0].astype(">u2")), same),
    "PIL F": ((1,), lambda x: Image.fromarray((x[0] / 255).astype(np.float32)), same),
    "signed": ((1, 3), lambda x: torch.from_numpy(x) / 127.5 - 1, None),
    "standardized": ((1, 3), lambda x: (torch.from_numpy(x) / 255 - 0.47) / 0.25, None),
    "float 0..255": ((1, 3), lambda x: torch.from_numpy(x).float(), None),
    "array 0..255": ((1, 3), lambda x: hwc(x).astype(np.float32), None),
    "PIL F 0..255": ((1,), lambda x: Image.fromarray(x[0].astype(np.float32)), None),
    "PIL I of 16 bits": ((1,), lambda x: Image.fromarray(scaled(x)[0].astype(np.int32)), None),
    "int32 of 16 bits": ((1, 3), lambda x: torch.from_numpy(scaled(x).astype(np.int32)), None),
    "8 bits in uint16": ((1, 3), lambda x: torch.from_numpy(x.astype(np.uint16)), None),
    "8 bits in int8": ((1, 3), lambda x: torch.from_numpy(x.astype(np.int8)), None),
    "negative": ((1, 3), lambda x: torch.from_numpy(x).int() - 1, None),
    **{f"with {value}": ((1, 3), lambda x, v=value: spoiled(x, v), None) for value in (np.nan, np.inf, -np.inf)},
    "complex": ((1, 3), lambda x: torch.from_numpy(x) * 1j, None),
    "channels last": ((3,), lambda x: torch.from_numpy(hwc(x)), None),
    "array, channels first": ((3,), same, None),
    "four channels": ((1,), lambda x: torch.from_numpy(x).expand(4, -1, -1), None),
    "a batch of one": ((1, 3), lambda x: torch.from_numpy(x)[None], None),
    "nothing": ((1,), lambda x: x[:, :0], None),
    "bytes": ((1,), lambda x: x.tobytes(), None),
    "a list": ((1,), lambda x: x.tolist(), None),
    "None": ((1,), lambda x: None, None),
    "a name": ((1,), lambda x: "cat.png", None),
}
BINARY = {
    "bool tensor": lambda x: torch.from_numpy(x > 0),
    "bool array": lambda x: hwc(x > 0),
    "PIL 1": lambda x: pil(x).convert("1"),
}


def image_case(rng: random.Random, folder: Path) -> Case:
    name = rng.choice([*FORMS, *BINARY])
    if name in BINARY:
        channels, make = (1,), BINARY[name]
        meant: Callable[[Levels], Levels] | None = rgb if name == "PIL 1" else same
        values: Sequence[int] = (0, 255)
    else:
        (channels, make, meant), values = FORMS[name], range(256)
    number, side = rng.choice(channels), rng.randrange(4, 9)
    all_levels = [draw_levels(rng, number, side, values) for _ in range(rng.randrange(1, 4))]
    pairs = [(make(levels), 0) for levels in all_levels]
    if rng.random() < 0.05:
        return lambda: load_images([*pairs, (torch.zeros(3, 3, 2), 0)]), REFUSE  # another shape among them
    data: Any = {0: pairs, 1: Columns(pairs), 2: Subset(Columns(pairs), range(len(pairs)))}[rng.randrange(3)]
    return lambda: load_images(data).images, REFUSE if meant is None else stack([meant(x) for x in all_levels])


def stack(levels: Sequence[Levels]) -> torch.Tensor:
    return torch.from_numpy(np.stack(levels).copy())


class Columns:
    """Rows with named columns, as Hugging Face's data sets have them."""

    def __init__(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"label": self.pairs[index][1], "image": self.pairs[index][0]}


# Labels and class names.

LABELS: dict[str, tuple[Callable[[int], Any], bool]] = {
    "int": (int, True),
    **{f"numpy {t}": (np.dtype(t).type, True) for t in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")},
    **{f"tensor {t}": (lambda x, t=t: torch.tensor(x, dtype=t), True) for t in (torch.uint8, torch.int32, torch.int64)},
    "array": (np.array, True),
    "fraction": (lambda x: x + 0.3, False),
    "float": (float, False),
    "numpy float": (np.float32, False),
    "float tensor": (lambda x: torch.tensor(float(x)), False),
    "one-hot": (lambda x: torch.nn.functional.one_hot(torch.tensor(x), 8), False),
    "one-hot list": (lambda x: [float(x == place) for place in range(8)], False),
    "array of one": (lambda x: np.array([x]), False),
    "text": (str, False),
    "name": (lambda x: WORDS[x % 8], False),
    "None": (lambda x: None, False),
    "negative": (lambda x: -1 - x, False),
    "too large": (lambda x: x + 8, False),
    "huge": (lambda x: 1 << 80, False),
}


def label_case(rng: random.Random, folder: Path) -> Case:
    make, certain = LABELS[rng.choice(list(LABELS))]
    labels = [rng.randrange(8) for _ in range(rng.randrange(1, 6))]
    odd = rng.randrange(len(labels))
    # Where labels are of the wrong kind, one of them may stand among right ones.
    made = [certain or place == odd or rng.random() < 0.5 for place in range(len(labels))]
    given = [make(label) if is_made else label for label, is_made in zip(labels, made, strict=True)]
    data: Any = Named([(torch.zeros(1, 4, 4), label) for label in given], list(WORDS))
    return lambda: load_images(data).labels.tolist(), labels if certain else REFUSE


class Named(list[Any]):
    """A data set with class names."""

    def __init__(self, pairs: Sequence[tuple[Any, Any]], classes: Any) -> None:
        super().__init__(pairs)
        self.classes = classes


NAMES: dict[str, tuple[Callable[[Sequence[str]], Any], Callable[[str], str] | None]] = {
    "list": (list, str),
    "tuple": (tuple, str),
    "array": (np.array, str),
    "synonyms": (lambda names: [(name, name.upper()) for name in names], lambda name: f"{name}, {name.upper()}"),
    "integers": (lambda names: list(range(len(names))), None),
    "text": ("".join, None),
    "mapping": (lambda names: {name: label for label, name in enumerate(names)}, None),
    "None": (lambda names: [None] * len(names), None),
    "empty name": (lambda names: ["", *names[1:]], None),
}


def name_case(rng: random.Random, folder: Path) -> Case:
    """Names as they are given, and labels by the order of another list of them."""
    kind = rng.choice(list(NAMES))
    names = rng.sample(WORDS, rng.randrange(2, 6))
    make, shown = NAMES[kind]
    data = Named([(torch.zeros(1, 4, 4), label) for label in range(len(names))], make(names))
    if kind == "integers":
        return lambda: load_images(data).classes, [str(label) for label in range(len(names))]
    if shown is None:
        return lambda: load_images(data), REFUSE
    own = [shown(name) for name in names]
    wanted = rng.sample(own, len(own))
    other = rng.choice((False, True))
    if other:
        wanted[rng.randrange(len(wanted))] = "yak"
    if rng.random() < 0.2:
        wanted, other = wanted[1:], True

    def named() -> list[str]:
        images: LabeledImages = load_images(data).in_order_of(wanted)
        return [images.classes[label] for label in images.targets]

    return named, REFUSE if other else own


# Folders.


def write_image(path: Path, levels: Levels, rng: random.Random) -> None:
    """A grey or coloured image in any format that keeps it, at 8 bits or more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    forms: dict[str, Callable[[], Image.Image]] = {".bmp": lambda: pil(levels), ".png": lambda: pil(levels)}
    if len(levels) == 1:
        forms |= {
            "-16.png": lambda: Image.fromarray(scaled(levels)[0]),
            "-16.tiff": lambda: Image.fromarray(scaled(levels)[0]),
            "-F.tiff": lambda: Image.fromarray((levels[0] / 255).astype(np.float32)),
            "-LA.png": lambda: pil(levels).convert("LA"),
        }
    ending = rng.choice(list(forms))
    forms[ending]().save(path.with_name(path.name + ending))


def write_split(root: Path, names: Sequence[str], rng: random.Random) -> dict[str, list[int]]:
    """A folder a class; the mean of all pixels of each image, which tells it from the others."""
    means: dict[str, list[int]] = {}
    for name in names:
        for number in range(rng.randrange(1, 3)):
            levels = draw_levels(rng, rng.choice((1, 3)), 4)
            write_image(root / name / f"{number}", levels, rng)
            means.setdefault(name, []).append(int(rgb(levels).astype(int).sum()))
    return {name: sorted(values) for name, values in means.items()}


def spoil_empty(root: Path, names: Sequence[str]) -> None:
    (root / "zebra").mkdir()


def spoil_image(root: Path, names: Sequence[str]) -> None:
    (root / names[0] / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n<html>")


def spoil_cut(root: Path, names: Sequence[str]) -> None:
    file = root / names[-1] / "cut.bmp"
    Image.new("RGB", (4, 4)).save(file)
    file.write_bytes(file.read_bytes()[:60])


def spoil_name(root: Path, names: Sequence[str]) -> None:
    folder = root / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "0.png")


def spoil_size(root: Path, names: Sequence[str]) -> None:
    Image.new("RGB", (5, 4)).save(root / names[0] / "wide.png")


def spoil_splits(root: Path, names: Sequence[str]) -> None:
    for split in ("train", "test"):
        (root / names[0] / split).mkdir()
        Image.new("RGB", (4, 4)).save(root / names[0] / split / "0.png")


SPOILING = (spoil_empty, spoil_image, spoil_cut, spoil_name, spoil_size, spoil_splits)
TRAIN, TEST = ("train", "Train", "TRAIN", "training"), ("test", "Test", "val", "VAL", "valid", "validation")


def folder_case(rng: random.Random, folder: Path) -> Case:
    numbers = [str(number) for number in rng.sample(range(130), rng.randrange(2, 6))]
    words = sorted(rng.sample(WORDS, rng.randrange(2, 5)))
    names = rng.choice((words, sorted(numbers, key=int), ["bus", "car", "train"]))
    split = rng.choice(("train", "test"))
    layout = rng.choice(("classes", "splits", "flat splits", "one split", "wrapped", "spoiled", "hidden", "nothing"))
    roots = [folder]
    if layout in ("splits", "hidden", "spoiled") and rng.random() < 0.6:
        roots = [folder / rng.choice(TRAIN), folder / rng.choice(TEST)]
    if layout == "splits" and len(roots) == 1:
        roots = [folder / "train", folder / "val"]
    if layout == "one split":
        roots = [folder / "train"]
    if layout == "wrapped":
        roots = [folder / "photos"]
    if layout in ("flat splits", "nothing"):
        for name in ("train", "val") if layout == "flat splits" else ():
            write_image(folder / name / "0", draw_levels(rng, 3, 4), rng)
        folder.mkdir(exist_ok=True)
        return lambda: open_dataset(f"imagefolder:{folder}", split), REFUSE
    found = [write_split(root, names, rng) for root in roots]
    chosen = -1 if split == "test" else 0
    if layout == "spoiled":
        rng.choice(SPOILING)(roots[chosen], names)
    if layout == "hidden":
        for place in (folder / ".ipynb_checkpoints", roots[0] / ".cache", roots[0] / names[0] / ".thumbs"):
            write_image(place / "0", draw_levels(rng, 3, 4), rng)
    refused = layout in ("wrapped", "spoiled") or (layout == "one split" and split == "test")

    def read() -> tuple[list[str], dict[str, list[int]]]:
        images = load_images(open_dataset(f"imagefolder:{folder}", split))
        sums = images.images.long().flatten(1).sum(dim=1)
        return images.classes, {
            name: sorted(sums[images.labels == label].tolist()) for label, name in enumerate(images.classes)
        }

    return read, REFUSE if refused else (list(names), found[chosen])


# Paths, specs and text files.


def path_case(rng: random.Random, folder: Path) -> Case:
    return rng.choice((spec_case, writing_case, labels_file_case, json_case))(rng, folder)


def spec_case(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(list(DATASETS))
    folder.mkdir()
    places = {"": DATASETS[name].place != ":DIR", f":{folder}": DATASETS[name].place != "", f":{folder}/no": False}
    place = rng.choice(list(places))
    if rng.random() < 0.4:
        position = rng.randrange(len(name))
        typo = name[:position] + rng.choice(("", "x", name[position].upper(), " ")) + name[position + 1 :]
        return lambda: parse_spec(typo + place)[0].name, REFUSE
    return lambda: parse_spec(name + place)[0].name, name if places[place] else REFUSE


def writing_case(rng: random.Random, folder: Path) -> Case:
    folder.mkdir()
    (folder / "file").touch()
    (folder / "folder").mkdir()
    cases = {
        ("new", True): True,
        ("new/deep", False): True,
        ("folder", True): True,
        ("folder", False): False,
        ("file", True): False,
        ("file", False): True,
        ("file/below", rng.random() < 0.5): False,
        ("/proc/below", rng.random() < 0.5): False,
        ("x" * rng.randrange(256, 400), rng.random() < 0.5): False,
    }
    place, is_folder = rng.choice(list(cases))

    def check() -> list[str]:
        check_writable(folder / place, folder=is_folder)
        return sorted(path.name for path in folder.iterdir())

    return check, ["file", "folder"] if cases[place, is_folder] else REFUSE


def text_file(rng: random.Random, folder: Path, text: str) -> Path:
    folder.mkdir()
    end = rng.choice(("", "\n", "\r\n\r\n", "\n \n"))
    (folder / "file").write_bytes((text + end).encode(rng.choice(("utf-8", "utf-8-sig", "utf-16"))))
    return folder / "file"


def labels_file_case(rng: random.Random, folder: Path) -> Case:
    labels = [rng.randrange(1000) for _ in range(rng.randrange(1, 9))]
    lines: list[str] = list(map(str, labels))
    is_odd = rng.random() < 0.5
    if is_odd:
        lines.insert(rng.randrange(len(lines)), rng.choice(("", "0.5", "cat", "-1", "1,2", "9" * 30)))
    file = text_file(rng, folder, rng.choice(("\n", "\r\n")).join(lines))
    return lambda: read_labels(file).tolist(), REFUSE if is_odd else labels


def json_case(rng: random.Random, folder: Path) -> Case:
    good = {'{"é": 1}': {"é": 1}, '{"a": [0.5]}': {"a": [0.5]}, "{}": {}}
    bad = ("[1]", '{"a": NaN}', '{"a": 1, "a": 2}', "{", "", '{"a": 1e999}')
    text = rng.choice((*good, *bad))
    file = text_file(rng, folder, text)
    return lambda: read_json(file), good.get(text, REFUSE)


KINDS: dict[str, tuple[Callable[[random.Random, Path], Case], int]] = {  # and how many in 20 are of the kind
    "images": (image_case, 10),
    "labels": (label_case, 3),
    "class names": (name_case, 2),
    "folders": (folder_case, 3),
    "paths and text files": (path_case, 2),
}


def equal(given: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return isinstance(given, torch.Tensor) and given.dtype == expected.dtype and torch.equal(given, expected)
    return bool(given == expected)


def outcome_of(case: Case) -> tuple[str, str]:
    """Right, refused as it had to be, or wrong; and why."""
    attempt, expected = case
    try:
        given = attempt()
    except ValueError as error:
        one_line = "\n" not in str(error) and str(error) != ""
        return ("refused" if expected is REFUSE and one_line else "wrong"), f"refused: {error}"
    except Exception as error:  # a crash is wrong, whatever it is
        return "wrong", f"{type(error).__name__}: {error}"
    if expected is REFUSE:
        return "wrong", f"taken for {given!r:.200}"
    return ("right" if equal(given, expected) else "wrong"), f"{given!r:.200} in place of {expected!r:.200}"


def report(out: Path) -> str:
    """Markdown: what came of the inputs of each kind."""
    content = read_json(out)
    totals: Counter[str] = Counter()
    lines = [f"| inputs | {' | '.join(OUTCOMES)} |", "|---|" + "---:|" * len(OUTCOMES)]
    for kind, counts in content["counts"].items():
        totals.update(counts)
        lines.append(f"| {kind} | {' | '.join(str(counts.get(outcome, 0)) for outcome in OUTCOMES)} |")
    lines.append(f"| all | {' | '.join(str(totals[outcome]) for outcome in OUTCOMES)} |")
    return "\n".join([*lines, "", f"{totals.total():,} inputs in {content['seconds']:.0f} s."]) + "\n"


@click.command(help=readable(__doc__))
@click.option("--count", type=click.IntRange(1), default=4000, show_default=True, help="Inputs.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/stress-inputs.json"))
def main(count: int, seed: int, out: Path) -> None:
    torch.set_num_threads(1)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    kinds = [kind for kind, (_, share) in KINDS.items() for _ in range(share)]
    started = time.perf_counter()
    for number in range(count):
        kind, rng = kinds[number % len(kinds)], random.Random(f"{seed} {number}")
        with tempfile.TemporaryDirectory() as temporary:
            outcome, detail = outcome_of(KINDS[kind][0](rng, Path(temporary) / "data"))
        counts[kind][outcome] += 1
        if outcome == "wrong":
            wrong.append({"number": number, "kind": kind, "detail": detail})
    seconds = time.perf_counter() - started
    settings = {"count": count, "seed": seed}
    found = {"counts": {kind: dict(counts[kind]) for kind in KINDS}, "seconds": seconds, "wrong": wrong}
    write_json(out, {"settings": settings, "environment": environment(), **found})
    click.echo(report(out), nl=False)
    for failure in wrong[:10]:
        click.echo(failure, err=True)


if __name__ == "__main__":
    main()

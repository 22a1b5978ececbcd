"""The ablations of the IT-GAN paper, its Tables 4 to 7, with the paper's numbers and which of its orders hold.

A cell is one configuration of the Condenser. All cells share the bundle's generator, the pool of networks and the
inverted latents they start from; each is condensed once, and judged by fresh networks on real test images. Learning
rate and lambda that fit a group size are chosen on real training images that are held out of everything else. The
spread is that of the networks: there is one set of latents per cell.

    python benchmarks/ablations.py --scale cpu --data imagefolder:DIR --workdir WORKDIR

Latents and results are kept as they are made; the same command again goes on with what is missing. Processes that run
at the same time may share WORKDIR once it holds its start, if they are given different `--tables` or `--cells`.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import click
from cells import AblationsScale, Lab, Record, cell_name, tune, tune_rate
from setting import Run, benchmark, hold_out, names_in, verdict

from itgan_data.condense.condenser import OutOfTimeError
from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.inversion import InversionConfig
from itgan_data.condense.network_source import FreshNetworks
from itgan_data.condense.pool import PoolConfig
from itgan_data.evaluation.results import Summary
from itgan_data.recipes import fast_recipe, paper_recipe

# Digits, in seconds: shows that all works.
TINY = AblationsScale(
    few=4,
    many=20,
    base=CondenserConfig(
        steps=2,
        networks=FreshNetworks(width=8),
        real_batch_size=8,
        strategy="color_crop_cutout_scale_rotate",
        inversion=InversionConfig(encoder_steps=2, steps=1),
        pool=PoolConfig(
            num_networks=1, width=8, steps=60, snapshots=3, first_snapshot=1, validation_images=100, flips=False
        ),
    ),
    recipe=fast_recipe(4, 32),
    seeds=2,
    judging_seeds=1,
    rates=(0.01, 0.1),
    weights=(0.1,),
)
# Two cores, some minutes per cell.
CPU = AblationsScale(
    few=40,
    many=40,
    base=CondenserConfig(
        steps=40,
        networks=FreshNetworks(),
        real_batch_size=32,
        inversion=InversionConfig(encoder_steps=0, steps=200),  # so few latents do not repay an encoder
        pool=PoolConfig(num_networks=3, steps=1000, snapshots=12, first_snapshot=4, precision="bfloat16", compile=True),
        precision="bfloat16",
        compile=True,
        checkpoint_minutes=1.0,
    ),
    recipe=replace(fast_recipe(250, 64), precision="bfloat16", compile=True),
    seeds=3,
    judging_seeds=2,
    rates=(0.01, 0.03, 0.1),
    weights=(0.01,),
    parts=(1, 2, 5),
    lambdas=(0.0, 0.001, 0.01, 0.1, 1.0),
)
# The paper's counts and steps.
GPU = AblationsScale(
    few=100,
    many=500,
    base=CondenserConfig(
        steps=5000,
        networks=FreshNetworks(),
        inversion=InversionConfig(encoder_steps=20_000, steps=500, batch_size=2500),
        pool=PoolConfig(num_networks=50, steps=7500, snapshots=16, first_snapshot=4, precision="bfloat16"),
        precision="bfloat16",
        compile=True,
    ),
    recipe=replace(paper_recipe(num_images=5000), precision="bfloat16", compile=True),
    seeds=3,
    judging_seeds=2,
    rates=(0.001, 0.003, 0.01, 0.03),
    weights=(0.001, 0.01, 0.1),
)
PAPER_RUNS = 9  # three sets of latents, three networks each
SCALES = {"tiny": TINY, "cpu": CPU, "gpu": GPU}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One setting of a table."""

    label: str
    config: CondenserConfig
    paper: Summary | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """One of the paper's."""

    title: str
    lines: list[Line]
    orders: list[tuple[str, str]]
    """Labels of two lines, first the one that should be better; lines that are not there are passed over."""


def table_4(lab: Record) -> Table:
    rates = (0.001, 0.01, 0.1, 1.0)
    numbers = {
        "distribution": ("55.8 1.2", "56.8 1.1", "52.3 0.9", "46.5 1.2"),
        "gradient": ("56.3 1.4", "54.9 1.2", "50.9 0.9", "43.4 0.8"),
    }
    lines, orders = [], []
    for objective, row in numbers.items():
        for rate, number in zip(rates, row, strict=True):
            config = lab.cell(lab.scale.few, objective=objective, lr_latents=rate)
            lines.append(Line(label=f"{objective}, {rate:g}", config=config, paper=paper(number)))
        orders += [(f"{objective}, {low}", f"{objective}, {high}") for low, high in (("0.01", "0.1"), ("0.1", "1"))]
    orders += [("distribution, 0.01", "distribution, 0.001"), ("gradient, 0.001", "gradient, 0.01")]
    orders.append(("distribution, 0.01", "gradient, 0.001"))  # the best of each
    return Table(title="Table 4: objective, learning rate", lines=lines, orders=orders)


def table_5(lab: Record) -> Table:
    plain, tuned = [], []
    numbers = {1: "71.8 0.8", 2: "71.6 0.5", 4: "71.1 1.0", 5: "70.6 0.8"}
    for parts in lab.scale.parts:
        config = split(lab, parts)
        best = tune(lab, config)
        label = f"{parts} x {lab.scale.many // parts}{' (whole)' if parts == 1 else ''}"
        chosen = f"learning rate {best.lr_latents:g}, λ {best.regularizer_weight:g}"
        plain.append(Line(label=label, config=config, paper=paper(numbers[parts])))
        tuned.append(Line(label=f"{label}, retuned: {chosen}", config=best))
    orders = [(large.label, small.label) for row in (plain, tuned) for large, small in itertools.pairwise(row)]
    orders += [(row[0].label, row[-1].label) for row in (plain, tuned)]
    return Table(title="Table 5: splits", lines=[*plain, *tuned], orders=orders)


def table_6(lab: Record) -> Table:
    weights = (0.0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    numbers = {
        "fixed": "70.6 0.8,71.1 0.5,71.3 0.8,71.3 0.7,70.9 0.7,70.4 0.7,70.5 0.8,70.0 1.0,69.9 0.8",
        "re-drawn": "69.7 1.0,70.4 0.7,71.1 0.8,70.8 0.8,70.5 0.8,70.6 0.8,70.0 0.7,70.1 1.0,69.7 1.1",
    }
    base = tune_rate(lab, split(lab, 5))
    lines = []
    for groups, row in numbers.items():
        for weight, number in zip(weights, row.split(","), strict=True):
            if weight in lab.scale.lambdas:
                config = replace(base, regularizer_weight=weight, regroup=groups == "re-drawn")
                lines.append(Line(label=f"{groups}, λ {weight:g}", config=config, paper=paper(number)))
    orders = [("fixed, λ 0", "re-drawn, λ 0")]
    orders += [(f"{groups}, λ 0.01", f"{groups}, λ {weight}") for groups in numbers for weight in (0, 1)]
    title = f"Table 6: λ, in 5 groups that are fixed or re-drawn, learning rate {base.lr_latents:g}"
    return Table(title=title, lines=lines, orders=orders)


def table_7(lab: Record) -> Table:
    bands = {
        "10-20": "55.8 1.4",
        "20-30": "56.3 0.6",
        "30-40": "56.4 0.5",
        "40-50": "57.2 0.7",
        "50-60": "57.0 1.0",
        "60-70": "57.3 0.8",
        "70-100": "57.3 1.1",
    }
    base = tune_rate(lab, lab.cell(lab.scale.few))
    lines = [Line(label="random", config=base, paper=paper("55.8 1.2"))]
    for name, number in bands.items():
        low, high = (int(percent) / 100 for percent in name.split("-"))
        config = replace(base, networks=None, band=(low, high))
        if lab.has_networks(config):
            lines.append(Line(label=name, config=config, paper=paper(number)))
        else:
            click.echo(f"no network of the pool is {name}% accurate: the line is left out")
    lines.append(Line(label="all", config=replace(base, networks=None), paper=paper("57.3 1.2")))
    orders = [(label, "random") for label in ("40-50", "60-70", "70-100", "all")]
    orders += [("60-70", "10-20"), ("all", "10-20")]
    title = f"Table 7: networks by validation accuracy (%), learning rate {base.lr_latents:g}"
    return Table(title=title, lines=lines, orders=orders)


TABLES: dict[str, Callable[[Record], Table]] = {"4": table_4, "5": table_5, "6": table_6, "7": table_7}


def split(lab: Record, parts: int) -> CondenserConfig:
    """Learned in so many groups."""
    count = lab.scale.many
    return lab.cell(count, group_size=None if parts == 1 else count // parts)


def paper(number: str) -> Summary:
    """Mean and standard deviation in percent, as the paper prints them."""
    mean, std = (float(part) / 100 for part in number.split())
    return Summary(mean=mean, std=std, num_seeds=PAPER_RUNS)


def report(record: Record, tables: Sequence[Table] | None = None) -> str:
    """Markdown: some tables, by default all, with the paper's numbers and which of its orders hold."""
    return "\n".join(section(table, record) for table in tables or [make(record) for make in TABLES.values()])


def section(table: Table, lab: Record) -> str:
    """One of the tables: the numbers, and which orders hold."""
    ours = {line.label: lab.tested(line.config) for line in table.lines}
    papers = {line.label: line.paper for line in table.lines}
    lines = [f"### {table.title}", "", "| | ours (%) | paper (%) |", "|---|---:|---:|"]
    lines += [f"| {label} | {ours[label] or '-'} | {papers[label] or '-'} |" for label in ours]
    lines += ["", "| order | ours | paper |", "|---|---|---|"]
    for better, worse in table.orders:
        if {better, worse} <= ours.keys():
            verdicts = verdict(ours[better], ours[worse]), verdict(papers[better], papers[worse])
            lines.append(f"| {better} > {worse} | {verdicts[0]} | {verdicts[1]} |")
    return "\n".join(lines) + "\n"


@benchmark("ablations", __doc__, SCALES, keeps="the networks, the start and the latents")
@click.option("--tables", default=",".join(TABLES), show_default=True, help="Joined by commas.")
@click.option("--cells", default="", help="Only cells with this in their name; tuning does what it needs.")
@click.option("--max-minutes", type=float, help="Stop about then, to go on later.")
def main(run: Run[AblationsScale], tables: str, cells: str, max_minutes: float | None) -> None:
    names, setting = names_in(tables, TABLES), run.open()
    held_out, rest = hold_out(setting.train.labels)
    judges, setting = setting.train.select(held_out), replace(setting, train=setting.train.select(rest))
    lab = Lab(setting, judges, run.scale, workdir=run.workdir, out=run.out, max_minutes=max_minutes)
    measured, stopped = measure(lab, names, cells)
    if measured:
        click.echo(report(lab, measured), nl=False)
    if stopped is not None:
        raise click.ClickException(str(stopped))


def measure(lab: Lab, names: list[str], cells: str) -> tuple[list[Table], OutOfTimeError | None]:
    """The tables as far as the time allows, and what stopped them."""
    begun: list[Table] = []
    try:
        for name in names:
            begun.append(TABLES[name](lab))
            for line in begun[-1].lines:
                if cells in cell_name(line.config):
                    lab.test(line.config)
    except OutOfTimeError as error:
        return begun, error
    return begun, None


if __name__ == "__main__":
    main()

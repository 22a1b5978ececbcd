"""Train a classifier on condensed CIFAR-10, in the loop that one writes for torchvision's.

The one changed line is the import: `from itgan_data import ITGANCIFAR10 as CIFAR10` in place of
`from torchvision.datasets import CIFAR10`. With `--test` the verdict is the accuracy on real test images;
without it, on synthetic ones kept apart from training.
"""

import copy
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from itgan_data import ITGANCIFAR10 as CIFAR10

NORMALIZE = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
TEST_TRANSFORM = transforms.Compose([transforms.ToTensor(), NORMALIZE])
TRAIN_TRANSFORM = transforms.Compose(
    [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        NORMALIZE,
    ]
)


def convnet(width: int = 32) -> nn.Module:
    """Three blocks of convolution, normalisation and pooling, each twice as wide as the one before."""
    layers: list[nn.Module] = []
    channels = 3
    for outputs in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
        channels = outputs
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 16, 10))


def data_sets(test_spec: str | None, download: bool, source: str | None) -> tuple[Dataset, Dataset]:
    """Images to train on, and to test on: real ones, or without `test_spec` a tenth kept apart from training."""
    kind, _, folder = (test_spec or "").partition(":")
    root = folder if kind == "cifar10" and folder else "data"
    bundle = {"source": source} if source else {}  # torchvision's CIFAR10 has no such argument
    train = CIFAR10(root, train=True, transform=TRAIN_TRANSFORM, download=download, **bundle)
    if kind == "cifar10":
        return train, CIFAR10(root, train=False, transform=TEST_TRANSFORM, download=download)
    if kind == "imagefolder":
        split = Path(folder, "test")
        return train, ImageFolder(split if split.is_dir() else folder, TEST_TRANSFORM)
    if kind:
        raise ValueError(f"--test must be cifar10:ROOT or imagefolder:DIR, got {test_spec}")
    test = copy.copy(train)  # the same images, made or read once
    test.transform = TEST_TRANSFORM
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = len(order) // 10
    return Subset(train, order[held_out:]), Subset(test, order[:held_out])


def train(model: nn.Module, loader: DataLoader, steps: int, device: str) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)
    model.train()
    with tqdm(total=steps, unit="step", desc="training") as bar:
        while bar.n < steps:
            for images, labels in loader:
                loss = F.cross_entropy(model(images.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
                if bar.n == steps:
                    break


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader, device: str) -> float:
    model.eval()
    correct = sum(
        int((model(images.to(device)).argmax(dim=1).cpu() == labels).sum())
        for images, labels in tqdm(loader, desc="testing", unit="batch")
    )
    return correct / len(loader.dataset)


@click.command()
@click.option("--source", help="A bundle's folder; by default the bundle in the package.")
@click.option("--test", "test_spec", help="Real test images: cifar10:ROOT or imagefolder:DIR.")
@click.option("--download", is_flag=True, help="Let torchvision fetch CIFAR-10 into ROOT.")
@click.option("--steps", default=1200, show_default=True, type=click.IntRange(1), help="Updates of the weights.")
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(2))
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
def main(
    source: str | None,
    test_spec: str | None,
    download: bool,
    steps: int,
    batch_size: int,
    seed: int,
    device: str,
) -> None:
    """Train a small network on condensed CIFAR-10 and print its accuracy."""
    torch.manual_seed(seed)
    try:
        train_set, test_set = data_sets(test_spec, download, source)
    except (ValueError, RuntimeError, OSError) as error:
        raise click.ClickException(str(error)) from error
    print(f"{len(train_set):,} synthetic images to train on, {len(test_set):,} images to test on")
    loader = DataLoader(train_set, batch_size=min(batch_size, len(train_set)), shuffle=True, drop_last=True)
    model = convnet().to(device)
    train(model, loader, steps, device)
    percent = 100 * accuracy(model, DataLoader(test_set, batch_size=500), device)
    if test_spec:
        print(f"real test accuracy {percent:.2f}%")
    else:
        print("Tested on held-out synthetic images, which says little of real ones; pass --test for those.")
        print(f"held-out synthetic accuracy {percent:.2f}%")


if __name__ == "__main__":
    main()

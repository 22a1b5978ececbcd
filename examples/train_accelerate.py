"""Train on condensed CIFAR-10 in an accelerate loop; `train_cifar10.py` is the same in plain PyTorch.

The one changed line is the import: `from itgan_data import ITGANCIFAR10 as CIFAR10` in place of
`from torchvision.datasets import CIFAR10`. Needs `pip install accelerate`; on several devices it runs as
`accelerate launch examples/train_accelerate.py`.
"""

import copy
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
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


def train(accelerator: Accelerator, model: nn.Module, loader: DataLoader, steps: int) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    total = steps * accelerator.num_processes  # a prepared schedule takes so many steps at each update
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=total)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    model.train()
    with tqdm(total=steps, unit="step", desc="training", disable=not accelerator.is_main_process) as bar:
        while bar.n < steps:
            for images, labels in loader:
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                bar.update()
                if bar.n == steps:
                    break
    return model


@torch.no_grad()
def accuracy(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    loader = accelerator.prepare(loader)
    correct = 0
    for images, labels in loader:
        predictions, labels = accelerator.gather_for_metrics((model(images).argmax(dim=1), labels))
        correct += int((predictions == labels).sum())
    return correct / len(loader.dataset)


@click.command()
@click.option("--source", help="A bundle's folder; by default the bundle in the package.")
@click.option("--test", "test_spec", help="Real test images: cifar10:ROOT or imagefolder:DIR.")
@click.option("--download", is_flag=True, help="Let torchvision fetch CIFAR-10 into ROOT.")
@click.option("--steps", default=1200, show_default=True, type=click.IntRange(1), help="Updates of the weights.")
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(2))
@click.option("--seed", default=0, show_default=True)
def main(source: str | None, test_spec: str | None, download: bool, steps: int, batch_size: int, seed: int) -> None:
    """Train a small network on condensed CIFAR-10 with accelerate and print its accuracy."""
    set_seed(seed)
    accelerator = Accelerator()
    try:
        train_set, test_set = data_sets(test_spec, download, source)
    except (ValueError, RuntimeError, OSError) as error:
        raise click.ClickException(str(error)) from error
    loader = DataLoader(train_set, batch_size=min(batch_size, len(train_set)), shuffle=True, drop_last=True)
    model = train(accelerator, convnet(), loader, steps)
    percent = 100 * accuracy(accelerator, model, DataLoader(test_set, batch_size=500))
    kind = "real test" if test_spec else "held-out synthetic"
    accelerator.print(f"{kind} accuracy {percent:.2f}%")


if __name__ == "__main__":
    main()

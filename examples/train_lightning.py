"""Train a LightningModule on condensed CIFAR-10; `train_cifar10.py` is the same in plain PyTorch.

The one changed line is the import: `from itgan_data import ITGANCIFAR10 as CIFAR10` in place of
`from torchvision.datasets import CIFAR10`. Needs `pip install lightning`.
"""

import copy
from pathlib import Path

import click
import lightning
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

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


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = convnet()

    def training_step(self, batch: list[torch.Tensor], batch_index: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch: list[torch.Tensor], batch_index: int) -> None:
        images, labels = batch
        correct = self.network(images).argmax(dim=1) == labels
        self.log("accuracy", correct.float().mean(), batch_size=len(labels))

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@click.command()
@click.option("--source", help="A bundle's folder; by default the bundle in the package.")
@click.option("--test", "test_spec", help="Real test images: cifar10:ROOT or imagefolder:DIR.")
@click.option("--download", is_flag=True, help="Let torchvision fetch CIFAR-10 into ROOT.")
@click.option("--steps", default=1200, show_default=True, type=click.IntRange(1), help="Updates of the weights.")
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(2))
@click.option("--seed", default=0, show_default=True)
def main(source: str | None, test_spec: str | None, download: bool, steps: int, batch_size: int, seed: int) -> None:
    """Train a small network on condensed CIFAR-10 with Lightning and print its accuracy."""
    lightning.seed_everything(seed)
    try:
        train_set, test_set = data_sets(test_spec, download, source)
    except (ValueError, RuntimeError, OSError) as error:
        raise click.ClickException(str(error)) from error
    loader = DataLoader(train_set, batch_size=min(batch_size, len(train_set)), shuffle=True, drop_last=True)
    model = Classifier()
    trainer = lightning.Trainer(max_steps=steps, logger=False, enable_checkpointing=False)
    trainer.fit(model, loader)
    [results] = trainer.test(model, DataLoader(test_set, batch_size=500), verbose=False)
    kind = "real test" if test_spec else "held-out synthetic"
    print(f"{kind} accuracy {100 * results['accuracy']:.2f}%")


if __name__ == "__main__":
    main()

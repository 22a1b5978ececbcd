"""Training code of other libraries runs on our data set as on torchvision's CIFAR10 with the same images."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from conftest import write_bundle, write_cifar10
from timm.data import AugMixDataset, FastCollateMixup, create_loader
from timm.utils import random_seed
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision.datasets import CIFAR10
from torchvision.transforms import ToTensor
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from itgan_data import ITGANCIFAR10, RandomLatents, SyntheticDataset, collate_dicts, load_bundle
from itgan_data.datasets import CIFAR10 as INFO
from itgan_data.datasets import load_images
from itgan_data.images import LabeledImages, uint8_to_unit

SIZE, BATCH, EPOCHS = 40, 10, 3
NORMALIZATION = INFO.normalization
OpenDataset = Callable[..., Dataset[Any]]

# Python 3.12 and later warn at every fork of a process with threads, which torch has.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("frameworks") / "bundle", INFO.class_names, images_per_class=SIZE // 10)


@pytest.fixture(scope="module")
def images(bundle: Path) -> LabeledImages:
    """What every data set of this file holds."""
    return load_images(ITGANCIFAR10(source=bundle))


@pytest.fixture(scope="module")
def open_torchvision(
    images: LabeledImages, unchecked_cifar10: None, tmp_path_factory: pytest.TempPathFactory
) -> OpenDataset:
    root = tmp_path_factory.mktemp("torchvision")
    write_cifar10(root, images, images)
    return lambda transform=None: CIFAR10(root, transform=transform)


@pytest.fixture(params=["torchvision", "ours", "ours, by the batch"])
def tensors(request: pytest.FixtureRequest, bundle: Path, open_torchvision: OpenDataset) -> Dataset[Any]:
    """A data set of unit tensors and labels."""
    if request.param == "torchvision":
        return open_torchvision(ToTensor())
    return ITGANCIFAR10(source=bundle, transform=ToTensor() if request.param == "ours" else None)


@pytest.fixture
def fresh(bundle: Path) -> SyntheticDataset:
    """New images every epoch."""
    return SyntheticDataset(load_bundle(bundle).generator, RandomLatents(SIZE, 16, 10))


def recognise(seen: torch.Tensor, labels: torch.Tensor, images: LabeledImages) -> list[int]:
    """Which of `images` the unit images `seen` are; fails unless each is one of them, with its label."""
    known = uint8_to_unit(images.images).flatten(1)
    distance, place = torch.cdist(seen.flatten(1), known, p=torch.inf).min(dim=1)
    assert distance.max() < 1e-5
    assert torch.equal(labels, images.labels[place])
    return place.tolist()


class Record:
    """What a network was trained on."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []
        self.losses: list[float] = []

    def add(self, images: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> None:
        self.images.append(images.detach().clone())
        self.labels.append(labels.clone())
        self.losses.append(float(loss.detach()))

    def places(self, images: LabeledImages) -> list[int]:
        return recognise(torch.cat(self.images), torch.cat(self.labels), images)

    def assert_trained_on(self, images: LabeledImages) -> None:
        """Each image was seen once an epoch, in new orders, and the loss fell."""
        epochs = torch.tensor(self.places(images)).view(EPOCHS, SIZE)
        assert torch.equal(epochs.sort().values, torch.arange(SIZE).expand(EPOCHS, -1))
        assert not torch.equal(epochs[0], epochs[1])
        steps = SIZE // BATCH
        assert sum(self.losses[-steps:]) < 0.8 * sum(self.losses[:steps])


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3072, affine=False), nn.Linear(3072, 10))


# timm


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prefetcher", [False, True])
def test_timm_gets_normalised_images_with_their_labels(
    tensors: Any, images: LabeledImages, prefetcher: bool, workers: int
) -> None:
    for training in (False, True):
        loader = create_loader(
            tensors,
            (3, 32, 32),
            BATCH,
            is_training=training,
            no_aug=True,
            mean=NORMALIZATION.mean,
            std=NORMALIZATION.std,
            crop_pct=1.0,
            use_prefetcher=prefetcher,
            num_workers=workers,
            device=torch.device("cpu"),
        )
        batches = list(loader)
        seen = NORMALIZATION.to_unit(torch.cat([batch for batch, _ in batches]))
        places = recognise(seen, torch.cat([labels for _, labels in batches]), images)
        assert sorted(places) == list(range(SIZE))
        assert (places == list(range(SIZE))) == (not training)  # shuffled or not


@pytest.mark.parametrize(
    "options",
    [
        {"auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5},
        {"auto_augment": "augmix-m5-w2", "num_aug_splits": 2},
        {"collate_fn": FastCollateMixup(mixup_alpha=1.0, cutmix_alpha=1.0, num_classes=10)},
        {"input_size_choices": [32, 24]},
    ],
    ids=lambda options: "+".join(options),
)
def test_timm_augments_our_images_as_it_does_torchvisions(
    bundle: Path, open_torchvision: OpenDataset, options: dict[str, Any]
) -> None:
    def batches(dataset: Any) -> list[list[torch.Tensor]]:
        if splits := options.get("num_aug_splits"):
            dataset = AugMixDataset(dataset, num_splits=splits)
        random_seed(0)
        device = torch.device("cpu")
        loader = create_loader(dataset, (3, 32, 32), BATCH, is_training=True, num_workers=0, device=device, **options)
        return [list(batch) for batch in loader]

    ours, theirs = batches(ITGANCIFAR10(source=bundle)), batches(open_torchvision())
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


# accelerate


@pytest.fixture(autouse=True)
def accelerate_forgets() -> None:
    """Each test finds accelerate as a new process does."""
    AcceleratorState._reset_state(reset_partial_state=True)


def train_with_accelerate(dataset: Any, epochs: int, config: DataLoaderConfiguration) -> Record:
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    record = Record()
    for _ in range(epochs):
        for batch, labels in loader:
            loss = F.cross_entropy(model(batch), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            record.add(batch, labels, loss)
    return record


CONFIGS = [
    DataLoaderConfiguration(),
    DataLoaderConfiguration(dispatch_batches=True),
    DataLoaderConfiguration(use_seedable_sampler=True),
    DataLoaderConfiguration(use_stateful_dataloader=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "dispatched", "seedable", "stateful"])
def test_accelerate_trains_on_every_image(tensors: Any, images: LabeledImages, config: Any) -> None:
    train_with_accelerate(tensors, EPOCHS, config).assert_trained_on(images)


def shard_of_accelerate(dataset: Any, dispatch: bool, images: LabeledImages, folder: Path) -> None:
    torch.set_num_threads(1)
    record = train_with_accelerate(dataset, 1, DataLoaderConfiguration(dispatch_batches=dispatch))
    rank = torch.distributed.get_rank()
    (folder / f"{rank}.txt").write_text(" ".join(map(str, record.places(images))))


@pytest.mark.parametrize("dispatch", [False, True])
def test_accelerate_shares_the_images_out_to_processes(
    tensors: Any, images: LabeledImages, dispatch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # accelerate warns where it has to choose
    debug_launcher(shard_of_accelerate, (tensors, dispatch, images, tmp_path), num_processes=2)
    shards = [(tmp_path / f"{rank}.txt").read_text().split() for rank in range(2)]
    assert [len(shard) for shard in shards] == [SIZE // 2, SIZE // 2]
    assert sorted(int(place) for shard in shards for place in shard) == list(range(SIZE))


def test_accelerate_asks_for_fresh_images_every_epoch(fresh: SyntheticDataset) -> None:
    assert_fresh(train_with_accelerate(fresh, 2, DataLoaderConfiguration()), fresh)


def assert_fresh(record: Record, dataset: SyntheticDataset) -> None:
    """The first epoch saw the images of epoch 0, the second those of epoch 1."""
    seen, labels = torch.cat(record.images).split(SIZE), torch.cat(record.labels).split(SIZE)
    for epoch in (0, 1):
        expected, classes = dataset.unit_batch(torch.arange(SIZE), epoch)
        distance, place = torch.cdist(seen[epoch].flatten(1), expected.flatten(1), p=torch.inf).min(dim=1)
        assert distance.max() < 1e-5
        assert torch.equal(labels[epoch], classes[place])
        assert torch.equal(place.sort().values, torch.arange(SIZE))


# Lightning


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.record = Record()

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels)
        self.record.add(images, labels, loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class SetsEpoch(lightning.Callback):
    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        trainer.train_dataloader.dataset.set_epoch(trainer.current_epoch)


class WritesShard(lightning.Callback):
    def __init__(self, folder: Path, images: LabeledImages) -> None:
        self.folder = folder
        self.images = images

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        places = module.record.places(self.images)
        (self.folder / f"{trainer.global_rank}.txt").write_text(" ".join(map(str, places)))


def fit_with_lightning(dataset: Any, *, shuffle: bool = True, **options: Any) -> Record:
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": EPOCHS, **options},
    )
    module = Module()
    trainer.fit(module, DataLoader(dataset, batch_size=BATCH, shuffle=shuffle))
    return module.record


def test_lightning_trains_on_every_image(tensors: Any, images: LabeledImages) -> None:
    fit_with_lightning(tensors, reload_dataloaders_every_n_epochs=1).assert_trained_on(images)


def test_lightning_makes_another_loader_of_the_data_set(tensors: Any, images: LabeledImages) -> None:
    with pytest.warns(UserWarning, match="overfit"):
        record = fit_with_lightning(tensors, overfit_batches=2, max_epochs=2)
    assert record.places(images) == 2 * list(range(2 * BATCH))


def test_lightning_shares_the_images_out_to_processes(tensors: Any, images: LabeledImages, tmp_path: Path) -> None:
    callbacks = [WritesShard(tmp_path, images)]
    fit_with_lightning(tensors, strategy="ddp_fork", devices=2, max_epochs=1, callbacks=callbacks)
    shards = [(tmp_path / f"{rank}.txt").read_text().split() for rank in range(2)]
    assert sorted(int(place) for shard in shards for place in shard) == list(range(SIZE))


def test_lightning_gets_fresh_images_from_a_callback(fresh: SyntheticDataset) -> None:
    assert_fresh(fit_with_lightning(fresh, max_epochs=2, callbacks=[SetsEpoch()]), fresh)


# Hugging Face


class TakesDicts(nn.Module):
    """A network with the call of a Hugging Face image classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.record = Record()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.network(pixel_values)
        loss = F.cross_entropy(logits, labels)
        if self.training:
            self.record.add(pixel_values, labels, loss)
        return {"loss": loss, "logits": logits}


def train_with_transformers(dataset: Any, epochs: int, folder: Path) -> tuple[Trainer, Record]:
    model = TakesDicts()
    arguments = TrainingArguments(
        folder,
        use_cpu=True,
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, data_collator=collate_dicts, train_dataset=dataset)
    trainer.train()
    return trainer, model.record


def test_transformers_trains_on_every_image(tensors: Any, images: LabeledImages, tmp_path: Path) -> None:
    trainer, record = train_with_transformers(tensors, EPOCHS, tmp_path)
    record.assert_trained_on(images)
    assert trainer.predict(tensors).label_ids.tolist() == images.labels.tolist()


def test_transformers_asks_for_fresh_images_every_epoch(fresh: SyntheticDataset, tmp_path: Path) -> None:
    _, record = train_with_transformers(fresh, 2, tmp_path)
    assert_fresh(record, fresh)


def test_the_collator_names_images_and_labels(tensors: Any, images: LabeledImages) -> None:
    batch = next(iter(DataLoader(tensors, batch_size=3, collate_fn=collate_dicts)))
    assert list(batch) == ["pixel_values", "labels"]
    assert batch["labels"].dtype == torch.int64
    assert recognise(batch["pixel_values"], batch["labels"], images) == [0, 1, 2]
    model = ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], num_labels=10))
    assert model(**batch).loss.isfinite()


# torchdata


def cut_and_resume(dataset: Any, twin: Any, workers: int) -> tuple[list[Any], list[Any], list[Any]]:
    """The batches of an epoch before a cut, those after it, and those that a new loader over `twin` resumes with."""
    loader = StatefulDataLoader(dataset, BATCH, shuffle=True, num_workers=workers)
    batches = iter(loader)
    before = [next(batches), next(batches)]
    state = pickle.dumps(loader.state_dict())
    after = list(batches)
    torch.manual_seed(1)  # the order is in the state, not in the global generator
    loader = StatefulDataLoader(twin, BATCH, shuffle=True, num_workers=workers)
    loader.load_state_dict(pickle.loads(state))
    resumed = list(loader)
    assert len(list(loader)) == SIZE // BATCH  # the next epoch is whole
    return before, after, resumed


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_resumes_in_mid_epoch(tensors: Any, images: LabeledImages, workers: int) -> None:
    before, after, resumed = cut_and_resume(tensors, pickle.loads(pickle.dumps(tensors)), workers)
    torch.testing.assert_close(resumed, after, atol=0, rtol=0)
    seen, labels = (torch.cat(parts) for parts in zip(*before, *resumed, strict=True))
    assert sorted(recognise(seen, labels, images)) == list(range(SIZE))


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_resumes_fresh_images_of_the_epoch_that_is_set(fresh: SyntheticDataset, workers: int) -> None:
    twin, elsewhere = (SyntheticDataset(fresh.generator, fresh.latents) for _ in range(2))
    for dataset, epoch in ((fresh, 3), (twin, 3), (elsewhere, 0)):
        dataset.set_epoch(epoch)
    _, after, resumed = cut_and_resume(fresh, twin, workers)
    torch.testing.assert_close(resumed, after)
    _, after, resumed = cut_and_resume(fresh, elsewhere, workers)
    assert not torch.equal(resumed[0][0], after[0][0])

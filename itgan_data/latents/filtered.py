"""`FilteredLatents`: random latents whose images a classifier trained on real images recognises."""

import logging

import torch
from torch import nn

from ..generators.contract import as_generator, probe_images
from ..generators.sampling import generate
from ..images import Normalization, signed_to_unit
from .fresh import FreshSource
from .stored import LatentSource, check_fit

logger = logging.getLogger(__name__)

_CHUNK = 500  # images that are judged at a time: 6 MB at 32 px
_AT_ONCE = 32  # so many candidates take hardly longer than a few, so the last images have several each
_HOPELESS = 1000  # candidates of a class of which none was accepted: more would not help
_SAME = 4 / 255  # mean difference of signed images of one generator; reduced precision errs by less than a level
_HOPELESS_IN_ALL = 200  # the same of all classes, when the tries of an image are used up


class FilteredLatents(FreshSource):
    """Latents of another source whose images a classifier takes for their label, with enough confidence.

    The source is asked for one candidate after another until the classifier's most probable class is the label and
    has probability `min_probability`. A rejected candidate is followed by another of
    the same label, so classes stay as balanced as in the source. After `max_tries` candidates the most probable one is
    used.

    Candidate k of index i in an epoch is what the source gives i in its epoch `epoch * max_tries + k`, so the draw is
    a function of (epoch, i) alone. Rounding, which may differ with the batch, can change the decision on a candidate
    whose probability is within about 1e-5 of the threshold.

    On average an image costs `1 / acceptance_rate` passes of generator and classifier in every epoch, and one of the
    generator to make it. `LatentSet.drawn_from` pays this once, for a fixed set; use it with DataLoader workers, too,
    which hold no GPU.

    Args:
        source: a fresh source such as `RandomLatents`.
        generator: the one that will make the images, as for `SyntheticDataset`. It is set to evaluation.
        classifier: takes standardized images to logits `[B, num_classes]`; trained on real images (see
            `train_classifier`). It is set to evaluation, and runs where its parameters are.
        normalization: of the images that the classifier takes.
        min_probability: in [0, 1]; 0 asks for no more than the right class.
        max_tries: candidates per index, at most.
        dtype: torch.bfloat16 or torch.float16 generate under autocast: what the data set will do.

    Raises:
        ValueError: a source that is not fresh or does not fit the generator, or a number out of range; from `batch`,
            logits of another shape, or 1,000 candidates (in all, or of a class) of which none is accepted.

    Source: Slim, "Boosting generative networks for incremental learning", 2020, section 3.1, with probability .9,
    after Pham et al., 2019.
    """

    def __init__(
        self,
        source: LatentSource,
        generator: nn.Module,
        classifier: nn.Module,
        *,
        normalization: Normalization,
        min_probability: float = 0.9,
        max_tries: int = 100,
        dtype: torch.dtype | None = None,
    ) -> None:
        module = as_generator(generator)
        check_fit(source, module)
        if not source.fresh:
            raise ValueError("stored latents cannot be drawn again; filter fresh ones, or use LatentSet.select")
        if not 0 <= min_probability <= 1:
            raise ValueError(f"min_probability must lie in [0, 1], got {min_probability}")
        if max_tries < 1:
            raise ValueError(f"max_tries must be at least 1, got {max_tries}")
        self.source = source
        self.generator = module.eval()
        self.classifier = classifier.eval()
        self.normalization = normalization
        self.min_probability = min_probability
        self.max_tries = max_tries
        self.dtype = dtype
        self.latent_dim = source.latent_dim
        self.num_classes = module.num_classes
        self.labels = source.labels
        self.num_tried = _shared_counts(self.num_classes)
        """Candidates of each class that were judged so far, by this process and the data set workers it started."""
        self.num_accepted = _shared_counts(self.num_classes)
        """How many of them were accepted."""
        self.num_given_up = _shared_counts(self.num_classes)
        """Draws of each class without an accepted candidate, for which the most probable one is used."""

    def __repr__(self) -> str:
        return f"FilteredLatents({self.source!r}, min_probability={self.min_probability}, max_tries={self.max_tries})"

    @property
    def acceptance_rate(self) -> float:
        """Share, in [0, 1], of the candidates so far that were accepted; NaN before the first batch."""
        return float(self.num_accepted.sum() / self.num_tried.sum())

    def batch(self, indices: torch.Tensor, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents float32 `[B, latent_dim]` and labels `[B]` of one epoch, on the CPU."""
        indices = indices.cpu()
        latents = [self._accept(part, epoch) for part in torch.split(indices, _CHUNK)]
        return torch.cat(latents), self.labels.cpu()[indices]

    @torch.no_grad()
    def _accept(self, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        """For each index the first candidate that is accepted, or else the most probable one."""
        chosen = torch.zeros(len(indices), self.latent_dim, dtype=torch.float32)
        highest = torch.full((len(indices),), -1.0, dtype=torch.float32)
        pending, attempt = torch.arange(len(indices)), 0
        while len(pending) and attempt < self.max_tries:
            block = range(attempt, min(attempt + max(1, _AT_ONCE // len(pending)), self.max_tries))
            candidates, labels = self._candidates(indices[pending], epoch, block)
            probabilities, accepted = self._judge(candidates.flatten(0, 1), labels.repeat_interleave(len(block)))
            probabilities, accepted = probabilities.view(len(pending), -1), accepted.view(len(pending), -1)
            found, first = accepted.any(dim=1), accepted.int().argmax(dim=1)
            places = torch.arange(len(pending)), torch.where(found, first, probabilities.argmax(dim=1))
            better = found | (probabilities[places] > highest[pending])
            chosen[pending[better]] = candidates[places][better]
            highest[pending[better]] = probabilities[places][better]
            tried = torch.where(found, first + 1, len(block))  # those after the accepted one do not count
            self.num_tried.index_add_(0, labels, tried)
            self.num_accepted.index_add_(0, labels, found.long())
            pending, attempt = pending[~found], block.stop
        if len(pending):
            self._give_up(self.labels.cpu()[indices[pending]])
        return chosen

    def _candidates(self, indices: torch.Tensor, epoch: int, block: range) -> tuple[torch.Tensor, torch.Tensor]:
        """The candidates of some attempts `[B, attempts, latent_dim]` and the labels `[B]`, on the CPU."""
        drawn = [self.source.batch(indices, epoch * self.max_tries + attempt) for attempt in block]
        return torch.stack([latents.cpu() for latents, _ in drawn], dim=1), drawn[0][1].cpu()

    def _judge(self, latents: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The probability of the label `[B]` for each image, and whether the image is accepted, on the CPU."""
        device = next(self.generator.parameters(), latents).device
        signed = generate(self.generator, latents.to(device), labels.to(device), dtype=self.dtype)
        unit = signed_to_unit(signed).clamp_(0.0, 1.0)
        logits = self.classifier(
            self.normalization.standardize(unit.to(next(self.classifier.parameters(), unit).device))
        )
        if logits.shape != (len(labels), self.num_classes):
            raise ValueError(
                f"the classifier must give logits {(len(labels), self.num_classes)}, got {tuple(logits.shape)}; "
                "expected one for the generator's classes"
            )
        classes = logits.float().softmax(dim=1).nan_to_num(0.0).cpu()
        probabilities = classes.gather(1, labels.unsqueeze(1))[:, 0]
        return probabilities, (classes.argmax(dim=1) == labels) & (probabilities >= self.min_probability)

    def _give_up(self, labels: torch.Tensor) -> None:
        """Count draws for which no candidate was accepted.

        Raises:
            ValueError: there is no hope, in all or for a class.
        """
        hopeless = (self.num_accepted == 0) & (self.num_tried >= _HOPELESS)
        nothing = not self.num_accepted.any() and int(self.num_tried.sum()) >= _HOPELESS_IN_ALL
        if nothing or hopeless.any():
            label = int(hopeless.int().argmax())
            candidates = f"{self.num_tried.sum()}" if nothing else f"{self.num_tried[label]} of class {label}"
            raise ValueError(
                f"the filter accepted none of the candidates, {candidates}; lower min_probability "
                f"({self.min_probability}) and look at the images, the classifier and its normalization"
            )
        if not self.num_given_up.any():
            logger.warning(
                "no candidate of %d was accepted for some images, and the best stands in; see num_given_up",
                self.max_tries,
            )
        self.num_given_up += labels.bincount(minlength=self.num_classes)


def check_filter(latents: LatentSource, generator: nn.Module) -> None:
    """Refuse `FilteredLatents`, alone or inside other sources, that were made for another generator.

    Generators are compared by a few images: one that was folded, or loaded a second time, is not another one.

    Raises:
        ValueError: they were made for another generator.
    """
    for name in ("source", "other"):  # of jittered and mixed latents
        if (inner := getattr(latents, name, None)) is not None:
            check_filter(inner, generator)
    if isinstance(latents, FilteredLatents) and latents.generator is not generator:
        made, judged = probe_images(generator).cpu(), probe_images(latents.generator).cpu()
        if made.shape != judged.shape or (made - judged).abs().mean() > _SAME:
            raise ValueError(
                "FilteredLatents was made for another generator, whose images it judges; give it the generator of "
                "the data set"
            )


def _shared_counts(num_classes: int) -> torch.Tensor:
    """Zeros `[num_classes]` in memory that worker processes share."""
    return torch.zeros(num_classes, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call,no-any-return]

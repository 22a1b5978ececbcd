"""What the training of a codec is asked to do."""

from dataclasses import dataclass
from typing import Annotated

from ..config import Above, AtLeast, Between, HalfOpen, MayDiffer, Precision, check, marked
from ..generators.codec import CodecConfig


@dataclass(frozen=True, kw_only=True)
class CodecTrainerConfig:
    """How a codec is trained.

    At first all is learned together. Then the encoder is frozen, and decoder and prior are fitted to the codes that it
    gives, with weights rounded as they will be stored.
    """

    codec: CodecConfig
    steps: Annotated[int, AtLeast(1)] = 30_000
    """Updates; the learning rate falls to 0 by the last one."""
    joint_share: Annotated[float, Between(0, 1)] = 0.7
    """Share of the steps in which the encoder is learned too."""
    batch_size: Annotated[int, AtLeast(1)] = 64
    lr: Annotated[float, Above(0)] = 1e-3
    """Of AdamW, up over the first 300 steps of each part, then down to a fifth in the first part and to 0 in the last.
    The transforms, which begin where they should end, get 0.15 of it, the prior 1.5 of it."""
    rate_weight: Annotated[float, Above(0)] = 1.5e-5
    """Of a bit against the mean squared error of signed images, at a step of 1; it grows as the square of the step."""
    feature_weight: Annotated[float, AtLeast(0)] = 0.04
    """Of the relative distance in the maps of ConvNets that were trained on real images; 0 for none."""
    feature_networks: Annotated[int, AtLeast(1)] = 3
    """How many there are; they take turns."""
    feature_width: Annotated[int, AtLeast(1)] = 64
    feature_steps: Annotated[int, AtLeast(1)] = 1000
    """Updates that each is trained for."""
    step_size: Annotated[float, Above(0)] = 0.5
    """Width of quantisation, in signed images' units under an orthonormal transform, that `step` 1 stands for."""
    lowest_step: Annotated[float, Above(0)] = 0.6
    highest_step: Annotated[float, Above(0)] = 1.35
    """Each image is coded with a step between them, so that one codec serves all rates between."""
    steps_per_deviation: Annotated[float, Above(0)] = 8.0
    """How finely weights are rounded (see `Codec.round_weights`)."""
    ema_decay: Annotated[float, HalfOpen(0, 1)] = 0.998
    """Of the moving average of all weights; lower in the first steps."""
    precision: Precision = "bfloat16"
    """What convolutions compute in; weights and the optimiser stay float32."""
    compile: bool = True
    """Through torch.compile: twice as fast on the CPU, but needs a C++ compiler."""
    checkpoint_minutes: Annotated[float, Above(0), MayDiffer] = 3.0
    log_steps: Annotated[int, AtLeast(1), MayDiffer] = 100
    """Steps between two lines of losses in the log."""
    preview_steps: Annotated[int, AtLeast(1), MayDiffer] = 1000
    """Steps between two pictures of real images above what they decode to."""
    measure_steps: Annotated[int, AtLeast(1), MayDiffer] = 1000
    """Steps between two measurements of bytes an image and fidelity, at three rates."""
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)
        if self.lowest_step > self.highest_step:
            raise ValueError(f"lowest_step {self.lowest_step} must not be above highest_step {self.highest_step}")

    @property
    def joint_steps(self) -> int:
        """Steps in which the encoder is learned."""
        return round(self.joint_share * self.steps)

    def learning_rate(self, step: int) -> float:
        """Of step `step`, counted from 0."""
        first = 0 if step < self.joint_steps else self.joint_steps
        last, end = (self.joint_steps, 0.2) if step < self.joint_steps else (self.steps, 0.0)
        share = (step - first) / (last - first)
        start = 1.0 if first == 0 else 0.5
        return self.lr * min(1.0, (step - first + 1) / 300) * (start + (end - start) * share)


MAY_DIFFER = marked(CodecTrainerConfig, MayDiffer)

import sys
from collections.abc import Callable

import pytest
import torch

from itgan_data.config import needs_extra
from itgan_data.evaluation.features import inception
from itgan_data.evaluation.metrics import ms_ssim, precision_recall
from itgan_data.evaluation.plots import plot_curves, plot_weights


def test_a_missing_package_names_the_extra_to_install() -> None:
    with (
        pytest.raises(RuntimeError, match=r"no_such_package .*pip install 'itgan_data\[plots\]'") as raised,
        needs_extra("plots"),
    ):
        import no_such_package.part  # noqa: F401
    assert "\n" not in str(raised.value)


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), needs_extra("plots"):
        raise KeyError("other")


VALUES = torch.arange(18.0).view(9, 2)
IMAGES, LABELS = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("missing", "call", "extra"),
    [
        ("torch_fidelity.metric_prc", lambda: precision_recall(VALUES, VALUES), "metrics"),
        ("torch_fidelity.feature_extractor_inceptionv3", lambda: inception("weights.pth"), "metrics"),
        ("torchmetrics.functional.image", lambda: ms_ssim(IMAGES, LABELS), "metrics"),
        ("matplotlib.figure", lambda: plot_curves("a.png", {"a": [(0, 1)]}, x_label="", y_label=""), "plots"),
        (
            "sklearn.manifold",
            lambda: plot_weights("a.png", VALUES, VALUES[:, 0], title="", network="", perplexity=2),
            "plots",
        ),
    ],
)
def test_a_function_that_needs_an_extra_says_so(
    monkeypatch: pytest.MonkeyPatch, missing: str, call: Callable[[], object], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RuntimeError, match=rf"{missing} .*pip install 'itgan_data\[{extra}\]'"):
        call()

"""Pictures of training and of what came out of it, as PNG files that are whole or absent.

Every function imports the extra `plots` (matplotlib, scikit-learn) when called, and raises RuntimeError if it is not
installed. Equal arguments give equal files; neither pyplot's global state nor the global RNG is touched.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ..config import needs_extra
from ..images import check_labels, image_grid, uint8_to_unit
from ..storage.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 150
MIN_POINTS = 4  # of a t-SNE map
_PADDING = 2  # px between the images of a grid
_MARKS = "o^sDvP*X<>"  # one for every ten classes, as colours repeat after ten
_MAX_LEGEND = 20  # more curves than that are not told apart by colour anyway

Curves = Mapping[str, Sequence[tuple[float, float]]]


def plot_training(path: str | os.PathLike[str], quantities: Mapping[str, Curves]) -> None:
    """Draw what a run has logged over its steps, one panel per quantity.

    Args:
        path: the PNG file.
        quantities: the curves of each, see `curves.read_curves`.

    Raises:
        ValueError: a quantity without curves, a curve without points, or values that are not finite.
    """
    for curves in quantities.values():
        _check_curves(curves)
    figure = _figure(7, 0.5 + 3.5 * len(quantities))
    panels = figure.subplots(len(quantities), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (quantity, curves) in zip(panels, quantities.items(), strict=True):
        _draw_curves(axes, curves, quantity)
    panels[-1].set_xlabel("step")
    _save(figure, path)


def plot_preview(
    path: str | os.PathLike[str],
    images: torch.Tensor,
    labels: torch.Tensor,
    class_names: Sequence[str],
    *,
    columns: int = 10,
    title: str = "",
    real_images: torch.Tensor | None = None,
) -> None:
    """Show the first `columns` images of each class in a row with the class's name.

    Args:
        path: the PNG file.
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`, indices into `class_names`.
        class_names: one row each; classes without images are left out.
        columns: images in a full row.
        title: above the grid.
        real_images: the real image that each image stands for, uint8 `[N, C, H, W]`; shown below it.

    Raises:
        ValueError: no images, or labels or real images that do not fit.
    """
    _check_positive(columns=columns)
    _check_classes(images, labels, class_names)
    if real_images is not None and real_images.shape != images.shape:
        raise ValueError(f"expected a real image for each, {tuple(images.shape)}, got {tuple(real_images.shape)}")
    present = torch.unique(labels).tolist()
    sets = [images] if real_images is None else [images, real_images]
    grid = torch.full((len(present), len(sets), columns, *images.shape[1:]), 255, dtype=torch.uint8)
    for row, label in enumerate(present):
        for place, shown in enumerate(sets):
            members = shown[labels == label][:columns]
            grid[row, place, : len(members)] = members
    height, width = images.shape[2:]
    names = [name for label in present for name in (class_names[label], "real")[: len(sets)]]
    figure = _figure(1.4 + 0.5 * columns, 0.4 + 0.5 * len(names) * height / width)
    axes = figure.add_subplot()
    axes.imshow(image_grid(uint8_to_unit(grid.flatten(0, 2)), columns, padding=_PADDING), interpolation="nearest")
    axes.set_yticks([_PADDING + height / 2 + row * (height + _PADDING) for row in range(len(names))], names)
    axes.set_title(title)
    _hide_frame(axes)
    _save(figure, path)


def plot_neighbors(
    path: str | os.PathLike[str],
    images: torch.Tensor,
    neighbors: torch.Tensor,
    distances: torch.Tensor,
    *,
    count: int = 20,
    columns: int = 10,
) -> None:
    """Show synthetic images above their nearest real ones, the most similar pairs first.

    Args:
        path: the PNG file.
        images: synthetic ones, uint8 `[N, C, H, W]`.
        neighbors: the nearest real image of each, uint8 `[N, C, H, W]`.
        distances: `[N]`, see `metrics.nearest_neighbors`; written below each pair.
        count: pairs to show, at most.
        columns: pairs in a row.

    Raises:
        ValueError: no images, or sets of other sizes.
    """
    _check_positive(count=count, columns=columns)
    if len(images) == 0 or images.shape != neighbors.shape or distances.shape != images.shape[:1]:
        raise ValueError(
            f"expected an equal number, at least one, of images, neighbours and distances, got {tuple(images.shape)}, "
            f"{tuple(neighbors.shape)} and {tuple(distances.shape)}"
        )
    order = distances.argsort(stable=True)[:count].tolist()
    columns = min(columns, len(order))
    rows = -(-len(order) // columns)
    figure = _figure(0.75 * columns + 0.9, 1.8 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(panels.flat):
        axes.set_visible(place < len(order))
    for axes, index in zip(panels.flat, order, strict=False):
        pair = uint8_to_unit(torch.stack([images[index], neighbors[index]]))
        axes.imshow(image_grid(pair, 1, padding=_PADDING), interpolation="nearest")
        axes.set_xlabel(f"{distances[index]:.4g}", fontsize="small")
        axes.set_yticks([])
        _hide_frame(axes)
    height = images.shape[2]
    for axes in panels[:, 0]:
        axes.set_yticks([_PADDING + height / 2, 2 * _PADDING + 1.5 * height], ["synthetic", "nearest real"])
    figure.supxlabel("distance", fontsize="medium")
    _save(figure, path)


def plot_features(
    path: str | os.PathLike[str],
    real_features: torch.Tensor,
    real_labels: torch.Tensor,
    synthetic_features: torch.Tensor,
    synthetic_labels: torch.Tensor,
    class_names: Sequence[str],
    *,
    network: str,
    perplexity: float = 30.0,
) -> None:
    """Draw t-SNE maps of real and of synthetic features side by side, coloured by class.

    Both sets are embedded together, so a place means the same in both panels.

    Args:
        path: the PNG file.
        real_features, synthetic_features: `[N, d]` and `[M, d]`; a few hundred per class are enough.
        real_labels, synthetic_labels: int64, indices into `class_names`.
        class_names: the legend.
        network: the name of the network that gave the features.
        perplexity: about how many neighbours stay close to a point; at most a third of the points.

    Raises:
        ValueError: too few points, features or labels that do not fit, or values that are not finite.

    Source: Slim, "Boosting generative networks for incremental learning", 2020, figure 1.
    """
    _check_classes(real_features, real_labels, class_names)
    _check_classes(synthetic_features, synthetic_labels, class_names)
    if real_features.shape[1:] != synthetic_features.shape[1:]:
        raise ValueError(
            f"expected equally many features, got {tuple(real_features.shape)} and {tuple(synthetic_features.shape)}"
        )
    points = _tsne(torch.cat([real_features, synthetic_features]), perplexity)
    figure = _figure(11, 5)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    halves = {"real": (points[: len(real_labels)], real_labels)}
    halves["synthetic"] = (points[len(real_labels) :], synthetic_labels)
    for axes, (name, (places, labels)) in zip(panels, halves.items(), strict=True):
        for label in torch.unique(torch.cat([real_labels, synthetic_labels])).tolist():
            chosen = places[(labels == label).cpu().numpy()]
            marker = _MARKS[label // 10 % len(_MARKS)]
            axes.scatter(*chosen.T, s=8, color=f"C{label % 10}", marker=marker, label=class_names[label])
        axes.set_title(f"{name} ({len(places):,})")
        _label_map(axes, network)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", markerscale=2)
    _save(figure, path)


def plot_weights(
    path: str | os.PathLike[str],
    features: torch.Tensor,
    weights: torch.Tensor,
    *,
    title: str,
    network: str,
    perplexity: float = 30.0,
) -> None:
    """Draw a t-SNE map of the features of a class, coloured by sample weight; weights of zero are hollow.

    Args:
        path: the PNG file.
        features: `[N, d]`, of the real images of one class.
        weights: `[N]`, see `metrics.sample_weights`.
        title: names the class and the method.
        network, perplexity: as in `plot_features`.

    Raises:
        ValueError: too few points, weights that do not fit, or values that are not finite.

    Source: Slim, "Boosting generative networks for incremental learning", 2020, figure 2.
    """
    if weights.shape != features.shape[:1] or not weights.isfinite().all():
        raise ValueError(f"weights must be [{len(features)}] and finite, got {tuple(weights.shape)}")
    points = _tsne(features, perplexity)
    order = weights.argsort(stable=True).cpu().numpy()  # the heavy ones on top
    values = weights.cpu().numpy()[order]
    x, y = points[order].T
    figure = _figure(6.5, 5)
    axes = figure.add_subplot()
    zero = values == 0
    axes.scatter(x[zero], y[zero], s=10, facecolors="none", edgecolors="0.7", linewidths=0.6)
    marks = axes.scatter(x[~zero], y[~zero], s=10, c=values[~zero], cmap="viridis", vmin=0, vmax=values[-1] or 1)
    figure.colorbar(marks, ax=axes, label="sample weight")
    axes.set_title(title)
    _label_map(axes, network)
    _save(figure, path)


def _tsne(features: torch.Tensor, perplexity: float) -> npt.NDArray[Any]:
    """Places in the plane, `[N, 2]`."""
    if features.ndim != 2 or not features.isfinite().all():
        raise ValueError(f"features must be [N, d] and finite, got {tuple(features.shape)}")
    if len(features) < MIN_POINTS or not perplexity > 0:
        raise ValueError(
            f"a t-SNE map needs at least {MIN_POINTS} points and a positive perplexity, got {len(features)} points and "
            f"{perplexity}"
        )
    with needs_extra("plots"):
        from sklearn.manifold import TSNE
    embedding = TSNE(perplexity=min(perplexity, (len(features) - 1) / 3), init="pca", random_state=0)
    places: npt.NDArray[Any] = embedding.fit_transform(features.float().cpu().numpy())
    return places


def _figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, outside pyplot: no window, no global state."""
    with needs_extra("plots"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    if Path(path).suffix != ".png":
        raise ValueError(f"expected a file name that ends in .png, got {path}")
    with write_atomically(path) as temporary:
        # The layout leaves no room for labels next to an image of fixed proportions: "tight" makes it. The version of
        # matplotlib is left out of the file, so that equal pictures are equal bytes.
        figure.savefig(temporary, bbox_inches="tight", metadata={"Software": None})


def _draw_curves(axes: "Axes", curves: Curves, y_label: str) -> None:
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 50 else None)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    if len(curves) <= _MAX_LEGEND:
        axes.legend()


def _label_map(axes: "Axes", network: str) -> None:
    axes.set(xlabel=f"t-SNE 1, features of {network}", ylabel="t-SNE 2", xticks=[], yticks=[])


def _hide_frame(axes: "Axes") -> None:
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _check_curves(curves: Curves) -> None:
    if not curves:
        raise ValueError("curves is empty; expected at least one")
    for name, points in curves.items():
        values = np.asarray(points, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != 2 or not np.isfinite(values).all():
            raise ValueError(f"curve {name!r} must hold points (x, y) of finite values, at least one")


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_classes(values: torch.Tensor, labels: torch.Tensor, class_names: Sequence[str]) -> None:
    if len(values) == 0:
        raise ValueError("there is nothing to draw; expected at least one sample")
    check_labels(labels, len(values), len(class_names))

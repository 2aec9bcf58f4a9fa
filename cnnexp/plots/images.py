"""Figures of examples of a data set, clean and as runs see them after corruption and augmentation."""

from collections.abc import Sequence
from textwrap import wrap

import jax
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnexp.config import RunConfig
from cnnexp.config.data import Data, corruption_summary
from cnnexp.data.arrangement import draw_strengths
from cnnexp.data.corruptions import Corruptions
from cnnexp.data.images import Images
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.sampling import balanced_order, split_run_key

EXAMPLES = 10  # columns, one per class for the first classes
CELL_INCHES = 1.05
TITLE_CHARACTERS = 34  # of a line beside a row


def plot_data(configs: Sequence[RunConfig], images: Images | ImageFiles) -> Figure:
    """Plot one row of clean examples per split, and one for each configuration that changes them.

    Args:
        configs: configurations of one set of images; the seed of each draws its corruptions.
        images: the set.
    """
    rows = [
        _Row(split, images, config)
        for split in ("train", "test")
        for config in _list_distinct(configs, split)
    ]
    figure = Figure(
        figsize=(CELL_INCHES * EXAMPLES + 2.0, CELL_INCHES * len(rows) + 0.3), layout="constrained"
    )
    grid = figure.subplots(len(rows), EXAMPLES, squeeze=False)
    for row, axes in zip(rows, grid, strict=True):
        row.draw(list(axes))
    return figure


def _list_distinct(configs: Sequence[RunConfig], split: str) -> list[RunConfig | None]:
    """List the distinct configurations that change a split, after None for the clean images."""
    by_changes = {_describe_changes(config.data, split): config for config in configs}
    return [None, *(config for changes, config in by_changes.items() if changes)]


def _describe_changes(data: Data, split: str) -> str:
    """List the corruptions and augmentations of a split, with their strengths; empty if there are none."""
    prefix = f"corruption/{split}/"
    changes = {key: value for key, value in corruption_summary(data).items() if key.startswith(prefix)}
    named = [(key.removeprefix(prefix), value) for key, value in changes.items()]
    return ", ".join(name if value is True else f"{name} {value}" for name, value in named)


class _Row:
    """One row of examples of a split, clean (without a configuration) or as a run sees them."""

    def __init__(self, split: str, images: Images | ImageFiles, config: RunConfig | None):
        self._split, self._images, self._config = split, images, config
        labels = np.asarray(images.train_labels if split == "train" else images.test_labels)
        single = labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)
        chosen = balanced_order(single, 0)[:EXAMPLES]
        self._indices = chosen[np.argsort(single[chosen], kind="stable")].astype(np.int32)
        self._labels = labels[self._indices]

    def draw(self, axes: Sequence[Axes]) -> None:
        title = self._split
        if self._config is not None:
            title += "\n" + "\n".join(
                wrap(_describe_changes(self._config.data, self._split), TITLE_CHARACTERS)
            )
        examples, labels = self._examples()
        for axis, example, label in zip(axes, examples, labels, strict=False):
            axis.set_title(_label_text(label), fontsize=8, pad=2)
            _draw(axis, example)
        for axis in axes:
            axis.set(xticks=[], yticks=[])
        for axis in axes[len(examples) :]:
            axis.set_axis_off()
        axes[0].set_ylabel(title, fontsize=7, rotation=0, ha="right", va="center")

    def _examples(self) -> tuple[Float[np.ndarray, "n h w c"], Int[np.ndarray, "n ..."]]:
        """Return the examples, scaled to values between 0 and 1, and their labels."""
        pixels = self._pixels()
        mean, std = (np.asarray(value) for value in self._images.normalisation)
        low, high = (0.0, 255.0) if pixels.dtype == np.uint8 else (mean - 3 * std, mean + 3 * std)
        labels = self._labels
        if self._config is not None:
            data, key = self._config.data, split_run_key(jax.random.key(self._config.seed)).noise
            corruptions = Corruptions(
                data, key, draw_strengths(self._config, self._images), self._images.normalisation
            )
            image_ids = -1 - self._indices if self._split == "test" else self._indices
            step = np.zeros((), np.int32) if self._split == "train" else None
            corrupted = corruptions.images(pixels, image_ids, split=self._split, step=step)
            pixels = np.asarray(corrupted) * std + mean
            if self._split == "train":
                labels = np.asarray(corruptions.labels(labels, image_ids, self._classes()))
        width = np.where(high > low, high - low, 1)  # a constant channel is drawn black
        return np.clip((pixels - low) / width, 0, 1), labels

    def _classes(self) -> int:
        from cnnexp.data.shapes import infer_shape

        assert self._config is not None
        return infer_shape(self._config.data).classes

    def _pixels(self) -> np.ndarray:
        if isinstance(self._images, ImageFiles):
            return self._images.records[self._split].read(self._indices.tolist())[0]
        split = self._images.train_images if self._split == "train" else self._images.test_images
        return np.asarray(split[self._indices])


def _label_text(label: np.ndarray | np.integer) -> str:
    return str(label) if label.ndim == 0 else " ".join(map(str, np.flatnonzero(label)))


def _draw(axis: Axes, example: Float[np.ndarray, "h w c"]) -> None:
    _, width, channels = example.shape
    if width == 1:  # a signal
        axis.plot(example[:, 0, 0], linewidth=1, color="black")
        axis.set_ylim(-0.05, 1.05)
        axis.set_box_aspect(1)
    else:
        axis.imshow(example[..., :3] if channels >= 3 else example[..., 0], cmap="gray", vmin=0, vmax=1)

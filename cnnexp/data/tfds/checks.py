"""One pass over a prepared set: its labels and statistics, and the checks that it is what it says."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt64

from cnnexp.core.errors import UsageError
from cnnexp.core.machine import cores
from cnnexp.core.terminal import progress_bar
from cnnexp.data.images import Images, pixel_moments
from cnnexp.data.shapes import DataShape
from cnnexp.data.tfds.records import Records

BATCH = 1024
MANY_SHARED = 0.01  # of the test images: more of them among the training images are a warning
LISTED = 12  # numbers of classes in a message


class Survey(NamedTuple):
    """What one pass finds; `mean` and `std` are of the training pixels, by channel, from 0 to 255."""

    train_labels: Int[np.ndarray, "train ..."]
    test_labels: Int[np.ndarray, "test ..."]
    mean: Float[np.ndarray, " c"]
    std: Float[np.ndarray, " c"]
    shared: Int[np.ndarray, ""]  # test images that are also among the training images

    def line(self, name: str, shape: DataShape) -> str:
        """One line for a person."""
        sizes = _class_sizes(self.train_labels, shape.classes)
        absent = np.flatnonzero(sizes == 0)
        sizes = sizes[sizes > 0]
        each = f"{sizes.min():,}" if sizes.min() == sizes.max() else f"{sizes.min():,} to {sizes.max():,}"
        line = (
            f"{name}: {len(self.train_labels):,} training and {len(self.test_labels):,} test images of "
            f"{'x'.join(map(str, shape.image))}, {len(sizes)} classes of {each} training images; "
            f"{int(self.shared):,} test images are also in the training split"
        )
        if len(absent):
            line += f"; no training images of {_classes(absent)}"
        return "; ".join([line, *self._constant_channels()])

    def warnings(self, name: str, shape: DataShape) -> list[str]:
        """What makes results on these images doubtful: one line each."""
        found, count = self._constant_channels(), len(self.test_labels)
        if self.shared > MANY_SHARED * count:
            both = f"{int(self.shared):,} of {count:,} test images are also in the training split"
            found.append(f"{both}: test accuracy measures memory too")
        train = _class_sizes(self.train_labels, shape.classes)
        test = _class_sizes(self.test_labels, shape.classes)
        if len(untrained := np.flatnonzero((train == 0) & (test > 0))):
            images = f"{int(test[untrained].sum()):,} of {count:,} test images"
            found.append(f"{images} are of {_classes(untrained)}, never seen in training")
        return [f"{name}: {warning}" for warning in found]

    def _constant_channels(self) -> list[str]:
        last = len(self.std) - 1
        return [
            f"channel {channel} (of 0 to {last}) is {self.mean[channel]:g} in all training images: "
            "the network sees 0"
            for channel in np.flatnonzero(self.std == 0)
        ]


def survey_images(images: Images) -> Survey:
    """The same of images in memory."""
    train, test = (np.asarray(split) for split in (images.train_images, images.test_images))
    shared = np.isin(_digests(test), _digests(train)).sum()
    labels = np.asarray(images.train_labels), np.asarray(images.test_labels)
    mean, std = map(np.asarray, images.normalisation)
    return Survey(*labels, mean, std, np.asarray(shared))


def survey(
    splits: dict[str, Records],
    classes: int,
    keep: dict[str, UInt8[np.ndarray, "n h w c"]] | None = None,
) -> Survey:
    """Read every image of the splits `train` and `test` once.

    Args:
        splits: the records by split.
        classes: labels are from 0 to `classes - 1`.
        keep: arrays to put the images in.

    Raises:
        UsageError: a damaged file, or a label that is none.
    """
    labels: dict[str, list[np.ndarray]] = {name: [] for name in splits}
    digests: dict[str, list[np.ndarray]] = {name: [] for name in splits}
    levels = 0
    total = sum(len(records) for records in splits.values())
    with progress_bar("reading images", total) as advance:
        for name, records in splits.items():
            for start, images, found in _batches(records):
                if keep is not None:
                    keep[name][start : start + len(images)] = images
                labels[name].append(found)
                digests[name].append(_digests(images))
                if name == "train":
                    levels = levels + _levels(images)
                advance(len(images))
    joined = {name: np.concatenate(parts) for name, parts in labels.items()}
    for name, found in joined.items():
        _check_labels(name, found, classes)
    mean, std = pixel_moments(np.asarray(levels))
    test, train = np.concatenate(digests["test"]), np.concatenate(digests["train"])
    return Survey(joined["train"], joined["test"], mean, std, np.asarray(np.isin(test, train).sum()))


def _levels(images: UInt8[np.ndarray, "n h w c"]) -> Int[np.ndarray, "c 256"]:
    flat = images.reshape(-1, images.shape[-1])
    return np.stack([np.bincount(channel, minlength=256) for channel in flat.T])


def _batches(records: Records) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    starts = range(0, len(records), BATCH)

    def read(start: int) -> tuple[int, np.ndarray, np.ndarray]:
        return start, *records.read(range(start, min(start + BATCH, len(records))))

    workers = cores()
    with ThreadPoolExecutor(workers) as pool:
        for wave in range(0, len(starts), 2 * workers):  # no more ahead than a few batches of memory
            yield from pool.map(read, starts[wave : wave + 2 * workers])


def _class_sizes(labels: Int[np.ndarray, "n ..."], classes: int) -> Int[np.ndarray, " classes"]:
    return np.bincount(labels, minlength=classes) if labels.ndim == 1 else labels.sum(0)


def _classes(numbers: Int[np.ndarray, " n"]) -> str:
    shown = ", ".join(map(str, numbers[:LISTED])) + (", …" if len(numbers) > LISTED else "")
    return f"class {shown}" if len(numbers) == 1 else f"{len(numbers)} classes ({shown})"


def _digests(images: np.ndarray) -> UInt64[np.ndarray, " n"]:
    """A number for each image, the same for the same pixels."""
    made = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(made), np.uint64)


def _check_labels(split: str, labels: Int[np.ndarray, " n"], classes: int) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise UsageError(
            f"data.{split}_split: the label of image {wrong[0]} is {labels[wrong[0]]}; "
            f"allowed: 0 to {classes - 1}"
        )

"""Images of the user as splits in random access: arrays by their names, and the drawn test split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from cnnexp.core.errors import UsageError, suggestion
from cnnexp.data.pipelines import ImageRecords
from cnnexp.data.sampling import draw_test_split

SPLITS = ("train", "test", "validation")
NAMES = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
# Names that other libraries give to the same arrays: Keras (x_train) and MedMNIST (val_images).
OTHER_NAMES = {
    "images": "train_images",
    "labels": "train_labels",
    "val_images": "validation_images",
    "val_labels": "validation_labels",
    "x_train": "train_images",
    "y_train": "train_labels",
    "x_test": "test_images",
    "y_test": "test_labels",
    "x_val": "validation_images",
    "y_val": "validation_labels",
}
MAX_CLASSES = 100_000


@runtime_checkable
class UserRecords(ImageRecords, Protocol):
    """A split of images of the user, whose labels are in memory."""

    @property
    def labels(self) -> Int[np.ndarray, "n ..."]:
        """The labels of all images."""
        ...

    def select(self, indices: Int[np.ndarray, " m"]) -> "UserRecords":
        """Return the records of some of the images."""
        ...

    def read_all(self) -> np.ndarray:
        """Read all images."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class ArrayRecords:
    """Images of an array, which may be mapped from a file; they are converted when they are read.

    Attributes:
        array: The images as they are stored.
        labels: Their labels.
        name: The name of the array, for errors.
        rows: The indices in the array; None: all, in their order.
    """

    array: np.ndarray
    labels: Int[np.ndarray, "n ..."]
    name: str
    rows: Int[np.ndarray, " n"] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = (*self.array.shape[1:], 1)[:3]
        return height, width, channels

    @property
    def dtype(self) -> type[np.generic]:
        """The type of a pixel: bytes, or real numbers."""
        return np.uint8 if self.array.dtype in (np.uint8, bool) else np.float32

    def __len__(self) -> int:
        return len(self.array) if self.rows is None else len(self.rows)

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, Int[np.ndarray, "n ..."]]:
        """Read images by their indices, and their labels.

        Raises:
            UsageError: A real number is not finite.
        """
        chosen = np.asarray(indices, np.int64)
        rows = chosen if self.rows is None else self.rows[chosen]
        return _convert_pixels(self.array[rows], self.name), self.labels[chosen]

    def read_all(self) -> np.ndarray:
        """Read all images; those of a file are copied, as the file may change."""
        pixels = self.array if self.rows is None else self.array[self.rows]
        converted = _convert_pixels(pixels, self.name)
        return np.array(converted) if isinstance(self.array, np.memmap) else converted

    def select(self, indices: Int[np.ndarray, " m"]) -> "ArrayRecords":
        """Return the records of some of the images."""
        rows = indices if self.rows is None else self.rows[indices]
        return replace(self, rows=rows, labels=self.labels[indices])


def open_arrays(arrays: Mapping[str, Any], origin: str) -> dict[str, ArrayRecords]:
    """Check arrays, and open them as splits. Pixels are read later.

    Args:
        arrays: Images `(n, h, w, c)` or `(n, h, w)`: bytes from 0 to 255; 16-bit integers, which are scaled
            to 0 to 1; truth values, which become 0 and 255; or real numbers. Labels: class numbers `(n,)`, or
            0 and 1 for each class `(n, classes)`. Their names are in `NAMES` or `OTHER_NAMES`; the test and
            validation splits may be missing.
        origin: The key that names the source of the arrays, with its value, for errors.

    Raises:
        UsageError: An array is missing, or no network can be trained on it.
    """
    named = _rename(arrays, origin)
    splits = [split for split in SPLITS if f"{split}_images" in named or f"{split}_labels" in named]
    records: dict[str, ArrayRecords] = {}
    for split in splits:
        images, labels = f"{split}_images", f"{split}_labels"
        for name in (images, labels):
            if name not in named:
                raise UsageError(f"{origin}: has no array {name!r}")
        records[split] = ArrayRecords(
            array=_check_pixels(np.asanyarray(named[images]), f"{origin}: {images}"),
            labels=_to_labels(np.asarray(named[labels]), f"{origin}: {labels}"),
            name=f"{origin}: {images}",
        )
    if "train" not in splits:
        raise UsageError(
            f"{origin}: has no array 'train_images' or 'images' (got {', '.join(arrays) or 'none'})"
        )
    _check_agreement(records, origin)
    return records


def complete_splits(
    records: Mapping[str, UserRecords], origin: str, test_fraction: float | None, seed: int
) -> dict[str, UserRecords]:
    """Draw a test split from the training images if there is none.

    Args:
        records: The splits.
        origin: The key that names the source of the images, with its value, for errors.
        test_fraction: The fraction of the training images that becomes the test split; None: `TEST_FRACTION`.
        seed: The seed that draws the test split.

    Raises:
        UsageError: There is a test split and a fraction, or a split would have no images.
    """
    if "test" not in records:
        train = records["train"]
        parts = draw_test_split(train.labels, origin, test_fraction, seed)
        return {**records, **{name: train.select(indices) for name, indices in parts.items()}}
    if test_fraction is not None:
        raise UsageError(
            f"data.test_fraction={test_fraction:g}: must be null for {origin}, which has its own test split"
        )
    return dict(records)


def _rename(arrays: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return the arrays by their names in `NAMES`."""
    named: dict[str, Any] = {}
    for name, array in arrays.items():
        new_name = OTHER_NAMES.get(name, name)
        if new_name not in NAMES:
            raise UsageError(f"{origin}: the array {name!r} has no meaning; {suggestion(name, NAMES)}")
        if new_name in named:
            raise UsageError(f"{origin}: {name!r} and another array both are {new_name}")
        if array is not None:
            named[new_name] = array
    return named


def _check_pixels(array: np.ndarray, name: str) -> np.ndarray:
    """Check the shape and the type of images."""
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise UsageError(
            f"{name}: must have the shape (images, height, width) or (images, height, width, channels) "
            f"(got {_shape_text(array)})"
        )
    if array.dtype not in (np.uint8, np.uint16, bool) and not np.issubdtype(array.dtype, np.floating):
        raise UsageError(f"{name}: must be uint8, uint16, bool or float (got {array.dtype})")
    return array


def _convert_pixels(array: np.ndarray, name: str) -> np.ndarray:
    """Return images `(n, h, w, c)` of bytes or real numbers."""
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return np.where(array, np.uint8(255), np.uint8(0))
    if array.dtype == np.uint16:
        return scale_16_bits(array)
    if not np.isfinite(array).all():
        raise UsageError(f"{name}: must be finite (got {array[~np.isfinite(array)][0]})")
    return np.ascontiguousarray(array, np.float32)


def scale_16_bits(array: np.ndarray) -> np.ndarray:
    """Scale 16-bit images to real numbers from 0 to 1; all levels remain distinct."""
    return array.astype(np.float32) / np.float32(65535)


def _to_labels(array: np.ndarray, what: str) -> Int[np.ndarray, "n ..."]:
    """Return labels `(n,)`, or `(n, classes)` of 0 and 1."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2) or 0 in array.shape:
        shapes = "(images,) or (images, classes)"
        raise UsageError(f"{what}: must have the shape {shapes} (got {_shape_text(array)})")
    if array.dtype != bool and not np.issubdtype(array.dtype, np.integer):
        raise UsageError(f"{what}: must be whole numbers (got {array.dtype})")
    low, high, limit = int(array.min()), int(array.max()), 1 if array.ndim == 2 else MAX_CLASSES - 1
    if low < 0 or high > limit:
        raise UsageError(f"{what}: must be from 0 to {limit} (got {low if low < 0 else high})")
    return array.astype(np.int32)


def _check_agreement(splits: Mapping[str, ArrayRecords], origin: str) -> None:
    """Check that the images and labels of all splits match each other."""
    for split, records in splits.items():
        if len(records.array) != len(records.labels):
            number = f"{len(records.array)}, one per image (got {len(records.labels)})"
            raise UsageError(f"{origin}: {split}_labels must be {number}")
    first = splits["train"]
    for split, records in splits.items():
        for kind, (dtype, shape), (expected_dtype, expected_shape) in (
            ("images", (records.dtype, records.shape), (first.dtype, first.shape)),
            ("labels", _label_type(records), _label_type(first)),
        ):
            if (dtype, shape) != (expected_dtype, expected_shape):
                raise UsageError(
                    f"{origin}: {split}_{kind} must be as train_{kind}, "
                    f"{_item_text(expected_dtype, expected_shape)} (got {_item_text(dtype, shape)})"
                )
    labels = [records.labels for records in splits.values()]
    if labels[0].ndim == 1 and max(int(array.max()) for array in labels) == 0:
        raise UsageError(f"{origin}: labels must have at least 2 classes (got only class 0)")


def _label_type(records: ArrayRecords) -> tuple[Any, tuple[int, ...]]:
    return records.labels.dtype, records.labels.shape[1:]


def _shape_text(array: np.ndarray) -> str:
    return f"({', '.join(map(str, array.shape))}{',' if array.ndim == 1 else ''})"


def _item_text(dtype: Any, shape: Sequence[int]) -> str:
    """Describe the type and the shape of one image or label."""
    return f"{np.dtype(dtype)} {'x'.join(map(str, shape))}".strip()

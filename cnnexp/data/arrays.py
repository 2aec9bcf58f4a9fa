"""Arrays of the user as a data set: their names, types and shapes, the test split, and the checksum."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from cnnexp.core.errors import UsageError, suggestion
from cnnexp.data.images import DataShape, Images, make_images
from cnnexp.data.sampling import stratified_sample

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
TEST_FRACTION = 0.2
MAX_CLASSES = 100_000

Arrays = dict[str, np.ndarray]


def make_image_set(
    arrays: Mapping[str, Any], origin: str, *, test_fraction: float | None = None, seed: int = 0
) -> Images:
    """Check arrays, and make a data set of them.

    Args:
        arrays: Images `(n, h, w, c)` or `(n, h, w)`: bytes from 0 to 255; 16-bit integers, which are scaled
            to 0 to 1; truth values, which become 0 and 255; or real numbers. Labels: class numbers `(n,)`, or
            0 and 1 for each class `(n, classes)`. Their names are in `NAMES` or `OTHER_NAMES`; the test and
            validation splits may be missing.
        origin: The key that names the source of the arrays, with its value, for errors.
        test_fraction: The fraction of the training images that becomes the test split if there is none; None
            is `TEST_FRACTION`.
        seed: The seed that draws the test split.

    Raises:
        UsageError: An array is missing, or no network can be trained on it.
    """
    named = _rename(arrays, origin)
    splits = [split for split in SPLITS if f"{split}_images" in named or f"{split}_labels" in named]
    checked: Arrays = {}
    for name in (f"{split}_{kind}" for split in splits for kind in ("images", "labels")):
        if name not in named:
            raise UsageError(f"{origin}: has no array {name!r}")
        convert = _to_pixels if name.endswith("images") else _to_labels
        checked[name] = convert(np.asarray(named[name]), f"{origin}: {name}")
    if "train" not in splits:
        raise UsageError(
            f"{origin}: has no array 'train_images' or 'images' (got {', '.join(arrays) or 'none'})"
        )
    _check_agreement(checked, splits, origin)
    if "test" not in splits:
        checked |= _draw_test_split(checked, origin, test_fraction or TEST_FRACTION, seed)
    elif test_fraction is not None:
        raise UsageError(
            f"data.test_fraction={test_fraction:g}: must be null for {origin}, which has its own test split"
        )
    return make_images(**checked)


def describe_shape(images: Images) -> DataShape:
    """Return the shape of a set in memory, whose classes are those up to the largest label."""
    labels = [images.train_labels, images.test_labels]
    if images.validation_labels is not None:
        labels.append(images.validation_labels)
    is_multi_label = labels[0].ndim == 2
    _, height, width, channels = images.train_images.shape
    return DataShape(
        image=(height, width, channels),
        classes=labels[0].shape[1] if is_multi_label else 1 + max(int(array.max()) for array in labels),
        train_images=len(images.train_images),
        test_images=len(images.test_images),
        validation_images=0 if images.validation_images is None else len(images.validation_images),
        multi_label=is_multi_label,
        itemsize=images.train_images.dtype.itemsize,
    )


def compute_checksum(images: Images) -> str:
    """Return the checksum of all images and labels, with their types and shapes."""
    digest = hashlib.blake2b(digest_size=8)
    for name, array in images._asdict().items():
        if name != "normalisation" and array is not None:
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return f"x{digest.hexdigest()}"


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


def _to_pixels(array: np.ndarray, what: str) -> np.ndarray:
    """Return images `(n, h, w, c)` of bytes or real numbers."""
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or 0 in array.shape:
        raise UsageError(
            f"{what}: must have the shape (images, height, width) or (images, height, width, channels) "
            f"(got {_shape_text(array)})"
        )
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return np.where(array, np.uint8(255), np.uint8(0))
    if array.dtype == np.uint16:
        return scale_16_bits(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise UsageError(f"{what}: must be uint8, uint16, bool or float (got {array.dtype})")
    if not np.isfinite(array).all():
        raise UsageError(f"{what}: must be finite (got {array[~np.isfinite(array)][0]})")
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


def _check_agreement(arrays: Arrays, splits: list[str], origin: str) -> None:
    """Check that images and labels of all splits belong together."""
    for split in splits:
        images, labels = (len(arrays[f"{split}_{kind}"]) for kind in ("images", "labels"))
        if images != labels:
            raise UsageError(f"{origin}: {split}_labels must be {images}, one per image (got {labels})")
    for split in splits[1:]:
        for kind in ("images", "labels"):
            first, other = arrays[f"{splits[0]}_{kind}"], arrays[f"{split}_{kind}"]
            if (first.dtype, first.shape[1:]) != (other.dtype, other.shape[1:]):
                raise UsageError(
                    f"{origin}: {split}_{kind} must be as {splits[0]}_{kind}, {_item_text(first)} "
                    f"(got {_item_text(other)})"
                )
    labels = [arrays[f"{split}_labels"] for split in splits]
    if labels[0].ndim == 1 and max(int(array.max()) for array in labels) == 0:
        raise UsageError(f"{origin}: labels must have at least 2 classes (got only class 0)")


def _draw_test_split(arrays: Arrays, origin: str, fraction: float, seed: int) -> Arrays:
    """Divide the training images into training and test images, both in their order."""
    images, labels = arrays["train_images"], arrays["train_labels"]
    count = round(fraction * len(images))
    if not 0 < count < len(images):
        raise UsageError(
            f"data.test_fraction={fraction:g}: must leave training and test images of the "
            f"{len(images)} of {origin}"
        )
    classes = labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)
    is_test = np.zeros(len(images), bool)
    is_test[stratified_sample(classes, count, [seed, 0x7E57])] = True
    return {
        "train_images": images[~is_test],
        "train_labels": labels[~is_test],
        "test_images": images[is_test],
        "test_labels": labels[is_test],
    }


def _shape_text(array: np.ndarray) -> str:
    return f"({', '.join(map(str, array.shape))}{',' if array.ndim == 1 else ''})"


def _item_text(array: np.ndarray) -> str:
    """Describe the type and the shape of one image or label."""
    return f"{array.dtype} {'x'.join(map(str, array.shape[1:]))}".strip()

"""The images: real, split before they are scattered, drawn the same way every time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits as sklearn_digits

from cnnexp.data.arrays import check_prepared, load
from cnnexp.data.shapes import shape_of, train_size_of
from cnnexp.data.subsets import balanced_order, run_order
from cnnexp.errors import UsageError
from tests.conftest import Configure


def digits(configure: Configure, **changes: Any) -> Any:
    return configure(data=changes).data


def test_digits_as_they_are(configure: Configure) -> None:
    data = digits(configure, scatter=False)
    images = load(data)
    pixels = np.concatenate([images.train_images, images.test_images])
    original = np.round(255 * sklearn_digits().images / 16).astype(np.uint8)
    assert sorted(map(bytes, pixels[..., 0])) == sorted(map(bytes, original))
    assert images.train_images.shape == (shape_of(data).train_images, *shape_of(data).image)
    assert images.train_images.dtype == np.uint8


def test_scattered_digits_are_whole_and_test_digits_are_never_trained_on(configure: Configure) -> None:
    images = load(digits(configure, noise=0.0, images=400, test_images=200))
    base = load(digits(configure, scatter=False))
    known = {
        split: {bytes((_greys(image[..., 0]) - 85).astype(np.uint8)) for image in base_images}
        for split, base_images in (("train", base.train_images), ("test", base.test_images))
    }
    for split, canvases in (("train", images.train_images), ("test", images.test_images)):
        assert canvases.min() == 85  # paper
        assert all(known[split] & _windows(canvas[..., 0] - 85) for canvas in np.asarray(canvases))
    assert not known["train"] & known["test"]


def _greys(image: np.ndarray) -> np.ndarray:
    """An image as it is, 0 to 255, in the grey values of a canvas: paper 85, full ink 170."""
    ink = np.round(image / 255 * 16) / 16  # scikit-learn's digits have 17 levels
    return np.round(85 * (1 + ink))


def _windows(canvas: np.ndarray) -> set[bytes]:
    side = canvas.shape[0] - 7
    return {bytes(canvas[i : i + 8, j : j + 8].copy()) for i in range(side) for j in range(side)}


def test_loading_twice_is_identical_and_another_seed_is_not(configure: Configure) -> None:
    first, second = load(digits(configure)), load(digits(configure))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert (load(digits(configure, seed=1)).train_images != first.train_images).any()


def test_statistics_come_from_the_training_pixels(configure: Configure) -> None:
    images = load(digits(configure))
    assert images.mean == pytest.approx(images.train_images.astype(float).mean(), rel=1e-5)
    assert images.std == pytest.approx(images.train_images.astype(float).std(), rel=1e-5)


def test_subsets_are_nested_balanced_and_drawn_by_the_seed() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 2000)
    order = run_order(labels, seed=5)
    assert set(np.bincount(labels[order[:100]])) == {10}
    assert sorted(order) == list(range(2000))
    assert (run_order(labels, seed=6)[:100] != order[:100]).any()
    assert sorted(balanced_order(labels, 0)) == list(range(2000))


def test_what_is_not_there_is_refused_at_once(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="allowed: 1 to 120"):
        train_size_of(digits(configure, train_size=121))
    fashion = {
        "name": "fashion_mnist",
        "data_dir": str(tmp_path),
        "train_size": None,
        "validation_size": 0,
        "batch_size": 8,
        "pixel_noise": 0.0,
        "label_noise": 0.0,
    }
    values = configure().model_dump() | {"data": fashion}
    from cnnexp.config import parse

    with pytest.raises(UsageError, match="cnnexp data prepare fashion_mnist") as refusal:
        check_prepared(parse(values).data)
    assert "\n" not in str(refusal.value)

"""The digits: real images, split before they are scattered, and drawn the same way every time."""

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits as sklearn_digits

from cnnexp.core.errors import UsageError
from cnnexp.data.images import Images
from cnnexp.data.loading import load_images
from cnnexp.data.sampling import balanced_order
from cnnexp.data.shapes import check_prepared, infer_shape, resolve_train_size
from tests.conftest import Configure


def digits(configure: Configure, **changes: Any) -> Any:
    return configure(data=changes).data


def test_digits_without_scatter_are_the_images_of_scikit_learn(configure: Configure) -> None:
    data = digits(configure, scatter=False)
    images = load_images(data)
    pixels = np.concatenate([images.train_images, images.test_images])
    original = np.round(255 * sklearn_digits().images / 16).astype(np.uint8)
    assert sorted(map(bytes, pixels[..., 0])) == sorted(map(bytes, original))
    assert images.train_images.shape == (infer_shape(data).train_images, *infer_shape(data).image)
    assert images.train_images.dtype == np.uint8


def test_digits_apart_occupy_disjoint_columns_in_each_split(configure: Configure) -> None:
    images = load_images(digits(configure, noise=0.0, apart=True))  # 10 columns: a digit begins in one of 3
    assert images.validation_images is not None
    for canvases, left, right in (
        (images.validation_images, 0, 2),
        (images.train_images, 1, 1),
        (images.test_images, 2, 0),
    ):
        outside = np.concatenate([canvases[:, :, :left], canvases[:, :, canvases.shape[2] - right :]], axis=2)
        assert (outside == 85).all() and (canvases[:, :, left : left + 8] > 85).any()
    assert (images.train_images[:, 8:] > 85).any() and (images.train_images[:, :2] > 85).any()
    with pytest.raises(UsageError, match=r"data\.apart=true: needs .* data\.canvas of at least 10 \(got"):
        infer_shape(digits(configure, apart=True, canvas=9))


def test_images_are_a_function_of_the_seed(configure: Configure, images: Images) -> None:
    assert all((a == b).all() for a, b in zip(images[:4], load_images(digits(configure))[:4], strict=True))
    assert (load_images(digits(configure, seed=1)).train_images != images.train_images).any()


def test_statistics_come_from_the_training_pixels(images: Images) -> None:
    assert images.normalisation.mean == pytest.approx(images.train_images.astype(float).mean(), rel=1e-5)
    assert images.normalisation.std == pytest.approx(images.train_images.astype(float).std(), rel=1e-5)


def test_subsets_are_nested_balanced_and_drawn_by_the_seed() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 2000)
    order = balanced_order(labels, seed=5)
    assert set(np.bincount(labels[order[:100]])) == {10}
    assert sorted(order) == list(range(2000))
    assert (balanced_order(labels, seed=6)[:100] != order[:100]).any()


def test_more_images_than_available_and_streams_from_memory_are_refused(configure: Configure) -> None:
    with pytest.raises(UsageError, match="must be at most 120, the training images of digits"):
        resolve_train_size(digits(configure, train_size=121))
    with pytest.raises(UsageError, match="must be auto or never for digits, which is made in memory"):
        check_prepared(digits(configure, stream="always"))


def test_each_digit_on_a_canvas_is_a_label(configure: Configure) -> None:
    data = digits(configure, digits=3, canvas=24)
    images = load_images(data)
    assert infer_shape(data).multi_label
    assert images.train_labels.shape == (120, 10)
    assert set(np.unique(images.train_labels)) == {0, 1}
    assert set(images.train_labels.sum(1)) <= {1, 2, 3}
    single = load_images(digits(configure, digits=1, canvas=24, noise=0.0))
    several = load_images(digits(configure, digits=3, canvas=24, noise=0.0))
    assert (several.train_images > 85).sum() > 1.5 * (single.train_images > 85).sum()

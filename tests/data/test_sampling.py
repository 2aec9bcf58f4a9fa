"""Training and validation images of a run: class frequencies, nesting, and disjoint splits."""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits as sklearn_digits

from cnnexp.cli import main as cli
from cnnexp.core.errors import UsageError
from cnnexp.core.platforms import compiling_for
from cnnexp.data.datasets.digits import split_digits
from cnnexp.data.loading import count_images_per_class, draw_run_split, load_images
from cnnexp.data.sampling import batch_indices, draw_order, draw_split, stratified_sample
from cnnexp.data.shapes import infer_shape, resolve_train_size
from tests.conftest import Configure
from tests.data.test_synthetic import TASKS, section, task

# Training images of each class, as published.
CLASS_COUNTS = {
    "mnist": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "svhn": [4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659],
    "emnist_letters": [0, *[3400] * 25, 3800],  # no image of class 0, and one class with more than the others
    "digits": [143, 146, 142, 146, 145, 146, 145, 143, 139, 142],
}


def labels_of(name: str) -> np.ndarray:
    counts = CLASS_COUNTS[name]
    return np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize("size", [10, 500, 3000])
@pytest.mark.parametrize("name", CLASS_COUNTS)
def test_validation_has_the_class_frequencies_of_the_training_split(name: str, size: int) -> None:
    labels = labels_of(name)
    size = min(size, len(labels) // 3)
    quotas = np.array(CLASS_COUNTS[name]) * size / len(labels)
    for seed in range(3):
        split = draw_split(labels, seed, size)
        counts = np.bincount(labels[split.validation], minlength=len(quotas))
        assert counts.sum() == size and (np.abs(counts - quotas) < 1).all()


@pytest.mark.parametrize("name", CLASS_COUNTS)
def test_training_subsets_are_nested_and_balanced_and_hold_no_validation_image(name: str) -> None:
    labels = labels_of(name)
    split = draw_split(labels, 3, 500)
    both = np.concatenate([split.order, split.validation])
    assert len(both) == len(labels) == len(np.unique(both))
    present = np.count_nonzero(CLASS_COUNTS[name])
    for number in (1, 2, 5, 20):  # of images of each class; prefixes of one order are nested
        counts = np.bincount(labels[split.order[: number * present]], minlength=len(CLASS_COUNTS[name]))
        assert set(counts[np.array(CLASS_COUNTS[name]) > 0]) == {number}


def test_seeds_draw_different_validation_images() -> None:
    labels = labels_of("digits")
    first, second = (draw_split(labels, seed, 100).validation for seed in (0, 1))
    assert len(np.intersect1d(first, second)) < 30
    assert (draw_split(labels, 0, 100).validation == first).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(0, 500), st.integers(0, 5))
def test_a_stratified_sample_is_within_one_image_of_each_class_quota(
    counts: list[int], size: int, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    size = min(size, len(labels))
    if not len(labels):
        return
    chosen = stratified_sample(labels, size, seed)
    assert len(np.unique(chosen)) == size
    quotas = np.array(counts) * size / len(labels)
    assert (np.abs(np.bincount(labels[chosen], minlength=len(counts)) - quotas) < 1).all()


def digits(configure: Configure, **changes: Any) -> Any:
    return configure(data=changes).data


def test_each_split_of_the_digits_has_the_class_frequencies_of_all() -> None:
    labels = np.asarray(sklearn_digits().target)
    parts = split_digits(labels, 0)
    assert [len(part) for part in parts] == [1_257, 180, 360]
    assert len(np.unique(np.concatenate(parts))) == len(labels)
    for part in parts:
        quotas = np.bincount(labels) * len(part) / len(labels)
        assert (np.abs(np.bincount(labels[part]) - quotas) < 1.5).all()


@pytest.mark.parametrize("apart", [False, True])
def test_validation_canvases_show_neither_training_nor_test_digits(configure: Configure, apart: bool) -> None:
    """Find the digit on every canvas: no base image is on canvases of two splits."""
    data = digits(configure, noise=0.0, apart=apart, canvas=13, images=600, validation_images=300)
    images = load_images(data)
    assert images.validation_images is not None
    grey = np.round(85 * (1 + sklearn_digits().images / 16)).astype(np.uint8)
    base = {bytes(image): number for number, image in enumerate(grey)}
    shown, columns = {}, {}
    for split, canvases in (
        ("train", images.train_images),
        ("validation", images.validation_images),
        ("test", images.test_images),
    ):
        digits_and_columns = [find_digit(np.asarray(canvas[..., 0]), base) for canvas in canvases]
        shown[split], columns[split] = map(set, zip(*digits_and_columns, strict=True))
    overlaps = [len(shown[a] & shown[b]) for a, b in (("train", "validation"), ("train", "test"))]
    assert [*overlaps, len(shown["validation"] & shown["test"])] == [0, 0, 0]
    if apart:
        assert columns == {"validation": {0, 1}, "train": {2, 3}, "test": {4, 5}}


def find_digit(canvas: np.ndarray, base: dict[bytes, int]) -> tuple[int, int]:
    """The number of the base image that a canvas without noise shows, and its column."""
    side = canvas.shape[0] - 7
    for row in range(side):
        for column in range(side):
            number = base.get(bytes(np.ascontiguousarray(canvas[row : row + 8, column : column + 8])))
            if number is not None:
                outside = canvas.copy()
                outside[row : row + 8, column : column + 8] = 85
                if (outside == 85).all():
                    return number, column
    raise AssertionError("no digit on the canvas")


def test_validation_images_of_synthetic_tasks_are_not_trained_on() -> None:
    for name in TASKS:
        data = section(name, validation_size=100)
        images = task(name)
        split = draw_run_split(images, data, 0)
        kept = {bytes(image) for image in images.train_images[split.order]}
        assert not kept & {bytes(image) for image in images.train_images[split.validation]}
        assert not kept & {bytes(image) for image in images.test_images}


def test_validation_canvases_do_not_reduce_the_training_canvases(configure: Configure) -> None:
    data = digits(configure, train_size=None, validation_size=40)
    assert resolve_train_size(data) == data.images == infer_shape(data).train_images
    with pytest.raises(UsageError, match=r"validation_size=41: must be at most data\.validation_images=40"):
        resolve_train_size(digits(configure, validation_size=41))
    unscattered = digits(configure, scatter=False, train_size=None, validation_size=37)
    assert resolve_train_size(unscattered) == 1400


def test_images_per_class_are_counted_for_the_subsets_of_the_run(configure: Configure) -> None:
    data = digits(configure, scatter=False, train_size=50, validation_size=100)
    counts = count_images_per_class(load_images(data), data, seed=2)
    assert list(counts["training"]) == [5] * 10
    assert counts["validation"].sum() == 100 and counts["validation"].min() >= 9
    assert counts["test"].sum() == 360


def test_show_prints_the_images_of_each_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["show", "data.scatter=false", "data.train_size=200", "data.validation_size=500"]
    monkeypatch.setattr(sys, "argv", ["cnnexp", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    rows = {
        line.split()[0]: [int(number) for number in line.split()[1:]]
        for line in capsys.readouterr().out.splitlines()
        if re.match(r"(training|validation|test) ", line)
    }
    assert rows["training"] == [200, *[20] * 10]
    assert rows["validation"] == [500, *rows["validation"][1:]] and min(rows["validation"][1:]) >= 48
    assert rows["test"][0] == 360


def test_positions_are_computed_before_images_are_gathered() -> None:
    # At full optimisation jaxlib 0.11 otherwise merges the rounds into the gather and does not end.
    lowered = jax.jit(partial(batch_indices, batch_size=8)).lower(
        draw_order(jax.random.key(0)), jnp.int32(0), train_size=jnp.int32(20)
    )
    assert "optimization_barrier" in lowered.as_text()


def test_all_platforms_draw_the_same_positions() -> None:
    drawn = []
    for platform in ("cpu", "tpu"):
        with compiling_for(platform):
            draw = partial(batch_indices, batch_size=50, train_size=jnp.int32(77))
            drawn.append(
                jax.jit(lambda words, draw=draw: draw(words, jnp.int32(3)))(draw_order(jax.random.key(0)))
            )
    assert (drawn[0] == drawn[1]).all() and len(set(drawn[0].tolist())) > 40

"""Pixels in a lost order come back as neighbours, from the training images of the run alone."""

import numpy as np
import pytest
from scipy import ndimage

from cnnexp.core.errors import UsageError
from cnnexp.data import arrangement
from cnnexp.data.arrangement import arrange_pixels, correlate_pixels, draw_strengths
from cnnexp.data.shapes import check_corruptions
from cnnexp.load import draw_images
from cnnexp.training.loop import StackTrainer
from tests.conftest import Configure, load_once


@pytest.fixture(autouse=True)
def _forget_arrangements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrangement, "_arrangements", {})


def make_smooth_images(height: int, width: int, channels: int = 1) -> np.ndarray:
    """Make stationary Gaussian images whose pixels are correlated over a few pixels."""
    noise = np.random.default_rng(0).normal(size=(600, height, width, channels))
    return ndimage.gaussian_filter(noise, (0, min(height - 1, 1.2), min(width - 1, 1.2), 0))


def measure_distances(arranged: np.ndarray, height: int, width: int) -> np.ndarray:
    """Measure how far pixels that are neighbours in an arrangement were apart in the original images."""
    position = np.stack(np.divmod(arranged, width), -1).reshape(height, width, 2)
    steps = [np.diff(position, axis=axis).reshape(-1, 2) for axis in (0, 1)]
    return np.linalg.norm(np.concatenate(steps), axis=1)


@pytest.mark.parametrize("shape", [(12, 12, 1), (9, 13, 1), (10, 10, 3), (24, 1, 1)], ids=str)
def test_neighbours_of_smooth_images_come_back_as_neighbours(shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    images = make_smooth_images(*shape)
    order = np.random.default_rng(1).permutation(height * width)
    permuted = images.reshape(len(images), -1, channels)[:, order].reshape(images.shape)
    arranged = arrange_pixels(permuted)
    assert sorted(arranged) == list(range(height * width))
    before = measure_distances(order, height, width)
    after = measure_distances(order[arranged], height, width)
    assert np.mean(after < 1.5) > 0.6 > 3 * np.mean(before < 1.5)


def test_correlations_have_no_sign_or_scale_and_constant_pixels_have_none() -> None:
    images = make_smooth_images(4, 4, 2)
    correlations = correlate_pixels(images)
    assert np.diag(correlations) == pytest.approx(1)
    changed = images.copy()
    changed[:, 1, 1] *= -3
    assert correlate_pixels(changed) == pytest.approx(correlations, abs=1e-6)
    one_channel = images * np.array([100.0, 1.0], np.float32)
    assert correlate_pixels(one_channel) == pytest.approx(correlations, abs=1e-4)
    changed[:, 2, 2] = 5
    constant = correlate_pixels(changed)
    assert not constant[10].any() and not constant[:, 10].any()
    single = correlate_pixels(images[..., :1])
    expected = np.abs(np.corrcoef(images[..., 0].reshape(len(images), -1).T))
    assert single == pytest.approx(expected, abs=1e-5)


def test_only_training_images_of_the_run_decide_the_arrangement(configure: Configure) -> None:
    config = configure(data={"permutation": "fixed", "arrange": "correlations"})
    images = load_once(config.data)
    arranged = np.asarray(draw_strengths(config, images).arrangement)
    order = arrangement.draw_run_split(images, config.data, config.seed).order
    others = np.setdiff1d(np.arange(len(images.train_images)), order[: config.data.train_size])
    train = np.array(images.train_images)
    train[others] = 255 - np.roll(train[others], 3, 1)
    test = np.zeros_like(np.asarray(images.test_images))
    arrangement._arrangements.clear()
    changed = draw_strengths(config, images._replace(train_images=train, test_images=test))
    assert np.array_equal(arranged, np.asarray(changed.arrangement))
    train[order[: config.data.train_size]] = np.roll(train[order[: config.data.train_size]], 3, 1)
    arrangement._arrangements.clear()
    changed = draw_strengths(config, images._replace(train_images=train))
    assert not np.array_equal(arranged, np.asarray(changed.arrangement))


def test_images_of_both_splits_are_the_permuted_ones_in_the_new_arrangement(configure: Configure) -> None:
    permuted = configure(data={"permutation": "fixed"}, seed=2)
    images = load_once(permuted.data)
    for arrange in ("correlations", "random"):
        config = configure(data={"permutation": "fixed", "arrange": arrange}, seed=2)
        arranged = np.asarray(draw_strengths(config, images).arrangement)
        for new, old in zip(draw_images(config, images), draw_images(permuted, images), strict=True):
            if new.ndim == 4 and new.size:
                flat = np.asarray(old).reshape(len(old), -1)
                assert np.array_equal(np.asarray(new).reshape(len(new), -1), flat[:, arranged])


def test_a_stack_trains_each_run_on_its_own_arrangement(configure: Configure) -> None:
    data = {"permutation": "fixed", "arrange": "correlations"}
    configs = [configure(data=data, seed=seed) for seed in (0, 1)]
    trainer = StackTrainer(configs[0], load_once(configs[0].data), 2)
    *_, end = trainer.train(configs)
    (_, alone) = trainer.evaluate(configs, end.copy_weights())
    assert end.rows is not None and alone["test/loss"] == pytest.approx(end.rows[1]["test/loss"])
    swapped = trainer.evaluate(configs, end.copy_weights(), trained=configs[::-1])
    assert swapped[1]["test/loss"] != pytest.approx(end.rows[1]["test/loss"])


def test_arrangements_that_cannot_be_found_are_refused(configure: Configure) -> None:
    with pytest.raises(UsageError, match=r"must be none with data\.permutation=per_image"):
        check_corruptions(configure(data={"permutation": "per_image", "arrange": "correlations"}).data)
    with pytest.raises(UsageError, match=r"more than 4096 pixels \(got 65x65\)"):
        check_corruptions(configure(data={"canvas": 65, "arrange": "random"}).data)

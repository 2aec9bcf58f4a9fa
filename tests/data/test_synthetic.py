"""Synthetic tasks: their known answers hold, and a larger number of images extends a smaller one."""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import mnist1d.data
import numpy as np
import pytest
from mnist1d_reference import PAPER
from scipy import stats

from cnnexp.config.data import DATA_VARIANTS, DataSection
from cnnexp.data.datasets.hierarchy import draw_rules
from cnnexp.data.datasets.mnist1d import make_templates
from cnnexp.data.datasets.teacher import draw_layer
from cnnexp.data.images import Images
from cnnexp.data.loading import load_images
from cnnexp.data.shapes import infer_shape
from cnnexp.load import load_run
from tests.conftest import SMALL

COMMON = {key: value for key, value in SMALL["data"].items() if key in DataSection.model_fields}
TASKS: dict[str, dict[str, Any]] = {
    "signal_distribution": {"patches": 4, "dimension": 6, "noise": 0.25},
    "channel_norm": {"side": 6},
    "k_patterns": {"length": 20, "pattern": 3, "function": "parity"},
    "mnist1d": PAPER,
    "teacher": {"tying": "low_rank(2)", "length": 20},
    "random_hierarchy": {"classes": 5, "vocabulary": 4, "synonyms": 3, "depth": 3, "places": 2},
    "nonlinear_gaussian": {"side": 6, "correlation_lengths": [0.5, 1.0, 2.0]},
}


SIGNALS = 10_000


def section(name: str, **changes: Any) -> Any:
    sizes = {"images": 600, "test_images": 300, "seed": 0}
    return DATA_VARIANTS[name].model_validate({**COMMON, "name": name, **TASKS[name], **sizes, **changes})


@cache
def task(name: str, **changes: Any) -> Images:
    return load_images(section(name, **changes))


@pytest.mark.parametrize("name", TASKS)
def test_images_have_the_inferred_shape_and_more_images_extend_fewer(name: str) -> None:
    images, shape = task(name), infer_shape(section(name))
    assert images.train_images.shape == (600, *shape.image) and images.train_images.dtype == np.float32
    assert images.test_images.shape == (300, *shape.image)
    assert set(images.train_labels) == set(range(shape.classes))
    fewer = task(name, images=200)
    assert (fewer.train_images == images.train_images[:200]).all()
    assert (fewer.train_labels == images.train_labels[:200]).all()
    other = task(name, seed=1)
    assert (other.train_images != images.train_images).any()
    assert not {bytes(image) for image in images.train_images} & {
        bytes(image) for image in images.test_images
    }


def test_exactly_one_patch_carries_the_signal() -> None:
    clean = task("signal_distribution", noise=0.0)
    patches = clean.train_images.reshape(600, 4, 6)
    norms = np.linalg.norm(patches, axis=-1)
    assert np.sort(norms, axis=1) == pytest.approx(np.broadcast_to([0, 0, 0, 1], (600, 4)), abs=1e-5)
    signal = patches.sum(1) * (2 * clean.train_labels - 1)[:, None]
    assert signal == pytest.approx(np.broadcast_to(signal[0], signal.shape), abs=1e-5)
    assert stats.chisquare(np.bincount(norms.argmax(1))).pvalue > 1e-3
    noisy = task("signal_distribution", noise=0.25).train_images.reshape(600, 4, 6)
    assert (noisy - patches).std() == pytest.approx(0.25, rel=0.03)


def test_labels_of_channel_norm_name_the_channel_with_the_larger_norm() -> None:
    images = task("channel_norm")
    norms = np.linalg.norm(images.train_images.reshape(600, -1, 3), axis=1)
    assert (images.train_labels == (norms[:, 0] > norms[:, 1])).all()


@pytest.mark.parametrize("function", ["parity", "random"])
def test_labels_of_k_patterns_depend_on_consecutive_bits_at_one_position(function: str) -> None:
    images = task("k_patterns", function=function)
    bits = (images.train_images[:, :, 0, 0] > 0).astype(int)
    determines_label = []
    for start in range(18):
        windows = [bytes(bits[row, start : start + 3].astype(np.uint8)) for row in range(600)]
        answers = {(window, label) for window, label in zip(windows, images.train_labels, strict=True)}
        determines_label.append(len(answers) == len(set(windows)))
    assert sum(determines_label) == 1
    start = determines_label.index(True)
    parity = bits[:, start : start + 3].sum(1) % 2
    assert (parity == images.train_labels).all() == (function == "parity")


@pytest.mark.parametrize(("placement", "places"), [("block", 2), ("patch", 2), ("block", 1)])
def test_the_grammar_of_random_hierarchy_derives_every_signal_from_its_label(
    placement: str, places: int
) -> None:
    data = section("random_hierarchy", placement=placement, places=places)
    rules = [np.asarray(level) for level in draw_rules(data, jax.random.split(jax.random.key(0), 3)[0])]
    parents = [
        {tuple(symbols): parent for parent, tuples in enumerate(level) for symbols in tuples}
        for level in rules
    ]
    assert [len(level) for level in parents] == [5 * 3, 4 * 3, 4 * 3]  # no tuple has two parents
    images = task("random_hierarchy", placement=placement, places=places)
    derived_places, symbols_seen = set(), set()
    for signal, label in zip(images.train_images[:200, :, 0], images.train_labels, strict=False):
        assert set(signal.sum(1)) <= {0, 1}
        symbols = np.where(signal.any(1), signal.argmax(1), -1)
        symbols_seen |= {tuple(symbols)}
        for level in reversed(parents):
            patches = symbols.reshape(-1, 2 * places)
            assert set((patches >= 0).sum(1)) <= {0, 2}
            derived_places |= {tuple(np.flatnonzero(patch >= 0)) for patch in patches if patch.max() >= 0}
            derived = [level[tuple(patch[patch >= 0])] if patch.max() >= 0 else -1 for patch in patches]
            symbols = np.array(derived)
        assert list(symbols) == [label]
    assert len(symbols_seen) > 190
    number = {("block", 2): 2 * 2, ("patch", 2): 6, ("block", 1): 1}[placement, places]
    assert len(derived_places) == number


@pytest.mark.parametrize("dimensions", [1, 2])
def test_gaussian_clones_have_the_covariance_of_the_images_but_not_their_edges(dimensions: int) -> None:
    keys: dict[str, Any] = {"dimensions": dimensions, "images": 6000, "gain": 3.0}
    images, clones = (task("nonlinear_gaussian", gaussian_clone=clone, **keys) for clone in (False, True))
    for label in range(3):
        covariances, fourth_moments = [], []
        for drawn in (images, clones):
            pixels = drawn.train_images[drawn.train_labels == label].reshape(2000, -1)
            covariances.append(pixels.T @ pixels / 2000)
            fourth_moments.append((pixels**4).mean() / (pixels**2).mean() ** 2)
        assert covariances[0] == pytest.approx(covariances[1], abs=0.15)
        assert np.diag(covariances[0]).mean() == pytest.approx(1, abs=0.05)
        circulant = [covariances[0][i, (i + 1) % 6] for i in range(6)]  # the first row, around its border
        assert circulant == pytest.approx(np.full(6, np.mean(circulant)), abs=0.1)
        assert fourth_moments[0] < 1.6 and fourth_moments[1] == pytest.approx(3, abs=0.2)
    small_gain = task("nonlinear_gaussian", **{**keys, "gain": 0.1}).train_images
    assert (small_gain**4).mean() / (small_gain**2).mean() ** 2 == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize(
    ("tying", "rank"), [("shared", 1), ("low_rank(2)", 2), ("low_rank(5)", 5), ("local", 18)]
)
def test_a_teacher_labels_signals_by_position_kernels_of_the_rank_of_its_tying(tying: str, rank: int) -> None:
    images, data = task("teacher", tying=tying), section("teacher", tying=tying)
    layer_key, mixing_key, head_key, _ = jax.random.split(jax.random.split(jax.random.key(0), 3)[0], 4)
    kernels = np.asarray(draw_layer(data, layer_key, mixing_key).position_kernels(), np.float64)[
        :, 0, :, 0, 0
    ]
    assert kernels.shape == (18, 3, 8)
    assert np.linalg.matrix_rank(kernels.reshape(18, -1), tol=1e-4) == rank
    signals = np.concatenate([images.train_images, images.test_images])[:, :, 0, 0]
    windows = np.lib.stride_tricks.sliding_window_view(signals, 3, axis=1)
    features = np.maximum(np.einsum("npk,pkf->npf", windows, kernels), 0).mean(1)
    outputs = features @ np.asarray(jax.random.normal(head_key, (8, 4)))
    labels = ((outputs - outputs.mean(0)) / outputs.std(0)).argmax(1)  # of 900 signals, not of the reference
    assert (labels == np.concatenate([images.train_labels, images.test_labels])).mean() > 0.93
    assert np.bincount(images.train_labels).min() > 600 / 4 / 2


@pytest.mark.slow
def test_mnist1d_matches_the_mnist1d_package_class_by_class() -> None:
    """Mean, deviation and correlation of each class, against as many signals from the `mnist1d` package."""
    assert make_templates() == pytest.approx(mnist1d.data.get_templates()["x"])
    options = mnist1d.data.get_dataset_args()
    options.num_samples = SIGNALS
    package = mnist1d.data.make_dataset(options)
    package_signals = np.concatenate([package["x"], package["x_test"]])
    package_labels = np.concatenate([package["y"], package["y_test"]])
    images = task("mnist1d", images=SIGNALS)
    signals = (images.train_images[:, :, 0, 0] - images.normalisation.mean) / images.normalisation.std
    for digit in range(10):
        a, b = package_signals[package_labels == digit], signals[images.train_labels == digit]
        error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        assert np.abs(a.mean(0) - b.mean(0)).max() < 4.5 * error.max()
        assert a.std(0) == pytest.approx(b.std(0), rel=0.15)
        assert np.corrcoef(a.T) == pytest.approx(np.corrcoef(b.T), abs=0.2)


def test_without_a_seed_of_its_own_a_task_is_drawn_by_the_seed_of_each_run(run: Any, tmp_path: Path) -> None:
    network = [
        "data=teacher",
        "optim.learning_rate=0.1",
        "data.images=200",
        "data.test_images=50",
        "data.train_size=64",
        "train.steps=6",
    ]
    network += [
        "train.eval_every=6",
        "model.features=[2]",
        "model.padding=VALID",
        "model.pool=global_average",
    ]
    assert run("name=own", "data.seed=null", "seed=0,1", base=network) == 0
    for seed in (0, 1):
        assert run(f"name=given_{seed}", f"data.seed={seed}", f"seed={seed}", base=network) == 0
    runs = [load_run(path.parent) for path in tmp_path.glob("results/own/*/summary.json")]
    own = {loaded.config.seed: loaded for loaded in runs}
    for seed in (0, 1):
        (path,) = tmp_path.glob(f"results/given_{seed}/*/summary.json")
        given = load_run(path.parent)
        same = own[seed]
        accuracies = [loaded.summary["test/accuracy"] for loaded in (same, given)]
        assert accuracies[0] == accuracies[1]
        assert (same.data().test_images == given.data().test_images).all()
    with pytest.raises(ValueError, match=r"^data\.seed=null: load the images of a run"):
        load_images(own[0].config.data)

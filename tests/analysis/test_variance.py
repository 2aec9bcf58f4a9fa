"""The variance by test images and by the choice of learning rates, on sweeps whose variances are known."""

import numpy as np
import pandas as pd
import pytest

from cnnexp.analysis.cells import pair_cells
from cnnexp.analysis.estimates import difference, smallest_difference
from cnnexp.analysis.retuning import SEED_STRIDE, choose_again
from cnnexp.analysis.statistics import Interval, interquartile_interval, jackknife
from cnnexp.analysis.tuning import choose_hyperparameters
from cnnexp.analysis.variance import (
    GROUPS,
    Resamples,
    Variances,
    estimate_variances,
    leave_out_images,
    measure_choice_variance,
    measure_image_variance,
    widen,
)
from cnnexp.store.measurements import Hits

SHARED, LOCAL = {"model.tying": "shared"}, {"model.tying": "local"}
LEAD = difference(SHARED, LOCAL)
IMAGES, SEEDS = 100, 4


def make_sweep(*, common_images: bool = True) -> tuple[pd.DataFrame, dict[str, Hits | None]]:
    """Two tyings whose answers depend on the image; the seeds have the same test images, or each its own."""
    rng = np.random.default_rng(0)
    hits: dict[str, Hits | None] = {}
    rows = []
    images = {"shared": rng.random(IMAGES) < 0.8, "local": rng.random(IMAGES) < 0.5}
    for seed in range(SEEDS):
        for tying in ("shared", "local"):
            is_right = images[tying] ^ (rng.random(IMAGES) < 0.05)
            if not common_images:
                is_right = rng.permutation(is_right)
            run_id = f"{tying}{seed}"
            hits[run_id] = Hits(is_right=is_right, fingerprint=7 if common_images else seed)
            test = is_right.mean()
            row = {"run_id": run_id, "seed": seed, "model.tying": tying, "test/accuracy": test}
            rows.append(row | {"train/accuracy": 1.0, "gap/accuracy": 1 - test})
    return pd.DataFrame(rows), hits


def test_versions_have_the_accuracy_on_the_images_that_are_left() -> None:
    table, hits = make_sweep()
    versions = leave_out_images(table, hits, groups=4)
    assert versions is not None and len(versions) == 4 * len(table)
    by_run = versions.groupby("run_id")
    # Each image is left out once, so that the versions of a run have its accuracy on average.
    np.testing.assert_allclose(by_run["test/accuracy"].mean()[table["run_id"]], table["test/accuracy"])
    assert (by_run["test/accuracy"].nunique() > 1).all()
    np.testing.assert_allclose(versions["gap/accuracy"], 1 - versions["test/accuracy"])
    assert leave_out_images(table, hits | {"local0": None}) is None
    assert leave_out_images(table, hits, groups=IMAGES + 1) is None


def test_runs_with_the_same_test_images_lack_the_same_ones() -> None:
    table, _ = make_sweep()
    is_right = np.random.default_rng(1).random(IMAGES) < 0.5
    hits = {run_id: Hits(is_right=is_right, fingerprint=7) for run_id in table["run_id"]}
    versions = leave_out_images(table.assign(**{"test/accuracy": is_right.mean()}), hits)
    assert versions is not None
    assert np.ptp(LEAD(versions)) == 0


@pytest.mark.parametrize(("of_image", "expected"), [(0.5, 0.25 / 200), (0.0, 0.0)])
def test_the_variance_by_images_is_that_which_seeds_have_in_common(of_image: float, expected: float) -> None:
    """Values are seed + image + seed × image, of which only the second is common to all seeds."""
    rng, images, measured = np.random.default_rng(0), 200, []
    group = np.arange(images) % GROUPS
    for _ in range(300):
        values = rng.normal(0, of_image, images) + rng.normal(0, 0.2, (5, 1)) + rng.normal(0, 1, (5, images))
        measured.append(
            measure_image_variance(np.stack([values[:, group != g].mean(1) for g in range(GROUPS)]))
        )
    # What is estimated as negative is set to 0, so that the mean of none is not quite 0.
    assert np.mean(measured) == pytest.approx(expected, rel=0.1, abs=0.06 / images)


def test_an_estimate_is_widened_by_common_images_and_hardly_by_those_of_each_seed() -> None:
    def measure(*, common_images: bool) -> Variances:
        table, hits = make_sweep(common_images=common_images)
        return estimate_variances(LEAD, table, Resamples(images=leave_out_images(table, hits)))

    common, drawn = measure(common_images=True), measure(common_images=False)
    truth = (0.8 * 0.2 + 0.5 * 0.5) * 0.9**2 / IMAGES
    assert common.images == pytest.approx(truth, rel=0.6) and drawn.images < common.images / 4
    assert common.choice is None and common.beyond_seeds == common.images


def test_all_versions_at_once_have_the_variance_of_one_after_the_other() -> None:
    table, hits = make_sweep()
    resamples = Resamples(images=leave_out_images(table, hits))

    def centred(runs: pd.DataFrame) -> np.ndarray:  # the values of a seed depend on the other seeds
        return jackknife(lambda values: float(values.mean()) ** 1.0, LEAD(runs))

    def scaled(runs: pd.DataFrame) -> np.ndarray:
        return LEAD(runs) * (1 if len(runs) == len(table) else np.nan)

    expected = estimate_variances(LEAD, table, resamples).images
    assert estimate_variances(centred, table, resamples).images == pytest.approx(expected)
    assert estimate_variances(scaled, table, resamples).images == pytest.approx(expected)
    assert estimate_variances(lambda runs: LEAD(runs)[:1], table, resamples) == Variances()
    constant = estimate_variances(
        lambda runs: pair_cells(runs, "train/accuracy", SHARED)[:, 0], table, resamples
    )
    assert constant.images == 0
    smallest = smallest_difference(SHARED, LOCAL, ["train/accuracy"])
    assert estimate_variances(smallest, table, resamples).images == pytest.approx(expected)


def make_tuned_sweep(leads: list[float]) -> pd.DataFrame:
    """One network at two learning rates; the lead of the second in validation accuracy is given by seed."""
    rows = [
        {
            "run_id": f"{rate}-{seed}",
            "seed": seed,
            "model.tying": "shared",
            "optim.learning_rate": rate,
            "validation/accuracy": 0.5 + lead * (rate == 0.1),
            "test/accuracy": 0.5 + 0.2 * (rate == 0.1) + 0.01 * seed,
        }
        for seed, lead in enumerate(leads)
        for rate in (0.01, 0.1)
    ]
    return pd.DataFrame(rows)


def test_each_draw_of_seeds_chooses_its_own_learning_rate() -> None:
    table = make_tuned_sweep([0.3, -0.1, -0.1])
    draws = np.array([[0, 1, 2], [1, 1, 2], [0, 0, 1]])
    versions = choose_again(table, draws)
    rates = versions.groupby(versions["seed"] // SEED_STRIDE)["optim.learning_rate"]
    assert rates.nunique().tolist() == [1, 1, 1] and rates.first().tolist() == [0.1, 0.01, 0.1]
    kept = choose_hyperparameters(table).table
    whole = versions[versions["seed"] < SEED_STRIDE]
    assert whole["run_id"].tolist() == kept["run_id"].tolist()
    drawn_twice = versions[versions["seed"] // SEED_STRIDE == 1].sort_values("seed")
    assert drawn_twice["run_id"].tolist() == ["0.01-1", "0.01-1", "0.01-2"]


def test_values_that_diverged_are_not_chosen_by_any_draw() -> None:
    table = make_tuned_sweep([0.3, 0.1, 0.1])
    diverged = table[(table["optim.learning_rate"] == 0.1) & (table["seed"] == 0)]
    finished = table.drop(diverged.index)
    versions = choose_again(finished, np.array([[1, 2, 2]]), diverged)
    assert set(versions["optim.learning_rate"]) == {0.01}


def test_the_choice_adds_variance_only_where_draws_choose_differently() -> None:
    def measure(leads: list[float]) -> float:
        table = make_tuned_sweep(leads)
        kept = choose_hyperparameters(table).table
        draws = np.random.default_rng(0).integers(len(leads), size=(50, len(leads)))
        resamples = Resamples(choices=choose_again(table, draws), draws=draws)
        accuracy = lambda runs: pair_cells(runs, "test/accuracy", SHARED)[:, 0]  # noqa: E731
        return estimate_variances(accuracy, kept, resamples).choice

    assert measure([0.3, 0.2, 0.4, 0.3]) == 0
    assert measure([0.3, -0.1, 0.2, -0.3]) > 0.001  # the two rates are 20 points apart on test images


def test_the_choice_is_measured_beyond_the_seeds() -> None:
    values = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 3.0]])
    assert measure_choice_variance(values, values) == 0
    assert measure_choice_variance(values * 2, values) == pytest.approx(
        2 * 3 * values.mean(1).var(ddof=1), rel=1e-9
    )


def test_an_interval_is_widened_by_the_root_of_the_sum_of_squares() -> None:
    widened = widen(
        Interval(1.0, -2.0, 5.0), (4 / 2.0639) ** 2
    )  # the quantile of Student's t with 24 degrees
    assert widened == pytest.approx((1.0, 1 - 5.0, 1 + np.hypot(4, 4)), rel=1e-4)
    assert widen(Interval(1.0, 0.5, 2.0), 0.0) == (1.0, 0.5, 2.0)


def test_the_interquartile_mean_over_data_sets_disregards_the_extreme_ones() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(mean, 0.01, 10) for mean in (0.0, 0.05, 0.06, 0.9)]
    value, low, high = interquartile_interval(groups)
    assert low < value < high and 0.05 < value < 0.06 and high - low < 0.02
    assert interquartile_interval([group[:3] for group in groups]).high > value  # wider with fewer seeds
    assert interquartile_interval([np.array([0.5])]).value == 0.5

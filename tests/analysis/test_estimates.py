"""Estimates and learning curves of dataframes whose effects are known."""

from typing import Literal

import numpy as np
import pandas as pd
import pytest

from cnnexp.analysis.cells import pair_cells
from cnnexp.analysis.curves import (
    bound_log_images,
    collect_curves,
    exponent_difference,
    images_exponent,
    images_needed,
    subtract_bounds,
)
from cnnexp.analysis.estimates import correlation, difference, factorial_effect, image_shape, is_comparison
from cnnexp.analysis.statistics import (
    bounded_interval,
)

SIZES = np.array([64.0, 256, 1024, 4096])


def _table(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({key.replace("__", "."): values for key, values in columns.items()})


@pytest.fixture
def two_tyings() -> pd.DataFrame:
    """Test accuracy 0.6 and 0.3 plus the seed's own luck, which both share, at two sizes."""
    rows = [
        {
            "seed": seed,
            "model.tying": tying,
            "data.train_size": size,
            "test/accuracy": base + luck + 0.1 * (size > 64),
        }
        for seed, luck in enumerate((0.0, 0.02, -0.03, 0.01))
        for tying, base in (("shared", 0.6), ("dense", 0.3))
        for size in (64, 128)
    ]
    return pd.DataFrame(rows)


def test_pairing_removes_what_seeds_share(two_tyings: pd.DataFrame) -> None:
    cells = {"model.tying": "shared"}, {"model.tying": "dense"}
    assert difference(*cells)(two_tyings) == pytest.approx([0.3] * 4)
    assert pair_cells(two_tyings, "test/accuracy", *cells).shape == (4, 2)
    assert len(difference({"model.tying": "tiled"}, cells[1])(two_tyings)) == 0
    lacking = two_tyings.drop(index=two_tyings[two_tyings["seed"] == 3].index[:1])
    kept = difference(*cells)(lacking)  # only the sizes that both have
    assert kept == pytest.approx([0.3] * 4)
    rates = two_tyings["model.tying"].map({"shared": 0.1, "dense": 0.01})  # each cell's own, as tuned
    tuned = two_tyings.assign(**{"optim.learning_rate": rates})
    assert difference(*cells)(tuned) == pytest.approx([0.3] * 4)


def test_rank_correlation_is_one_for_any_rising_curve() -> None:
    table = _table(
        seed=[0] * 4 + [1] * 4, count=[1, 10, 100, 1000] * 2, gap=[0.1, 0.2, 0.25, 0.9, 4, 3, 2, 1]
    )
    assert correlation("gap", "count")(table) == pytest.approx([1, -1])


def test_effects_of_a_factorial_design_add_up() -> None:
    corners = [{"model.tying": name} for name in ("neither", "first", "second", "both")]
    table = _table(
        seed=[0] * 4, model__tying=["neither", "first", "second", "both"], score=[1.0, 3.0, 2.0, 10.0]
    )

    def effect(name: Literal["first", "second", "interaction", "total"]) -> float:
        return factorial_effect(name, *corners, metric="score")(table).item()

    assert (effect("first"), effect("second")) == pytest.approx((5.0, 4.0))
    assert effect("interaction") == pytest.approx(6.0)
    assert effect("first") + effect("second") == pytest.approx(effect("total"))


def test_images_needed_are_read_off_the_curve_and_censored() -> None:
    curve = np.array([[0.2, 0.4, 0.8, 0.9]])
    assert bound_log_images(SIZES, curve, 0.6) == pytest.approx(np.array([[9, 9]]))  # half way: 512
    assert bound_log_images(SIZES, curve, 0.1) == pytest.approx(np.array([[0, 6]]))
    assert bound_log_images(SIZES, curve, 0.95).tolist() == [[12, np.inf]]
    assert bound_log_images(SIZES, curve, np.array([0.8])) == pytest.approx(np.array([[10, 10]]))
    curves_ = curve + np.array([[0.0], [0.02], [-0.02], [0.01]])
    found = images_needed(SIZES, curves_, 0.6)
    assert found.low < 512 < found.high < 700
    censored = images_needed(SIZES, curves_, 0.905)  # two of four seeds reach it
    assert np.isinf(censored.high) and 1024 < censored.low <= 4096
    assert censored.low <= censored.value  # of the same estimator
    assert images_needed(SIZES, curves_, 0.99) == (4096, 4096, np.inf)
    assert images_needed(SIZES, curves_, 0.1) == (64, 1, 64)  # reached with the fewest: perhaps with one


def test_exponents_are_found_from_cells_with_sizes_of_their_own() -> None:
    """Images grow as places^3 for the local net and as places for the shared one, from 64."""
    rows = [
        {
            "seed": seed,
            "model.tying": tying,
            "data.places": places,
            "data.train_size": size,
            "test/accuracy": 0.5 + 0.1 * np.log2(size / needed) + 0.001 * seed,
        }
        for tying, exponent in (("local", 3), ("shared", 1))
        for places in (1, 2, 4)
        for needed in (64 * places**exponent,)
        for size in (needed // 2, 2 * needed, 4 * needed)
        for seed in (0, 1)
    ]
    local, shared = ({"model.tying": tying} for tying in ("local", "shared"))
    table = pd.DataFrame(rows)
    exponent = images_exponent("data.places", local, 0.5)(table)
    assert exponent == pytest.approx(np.full((2, 2), 3.0))
    difference_ = exponent_difference("data.places", local, shared, 0.5)
    assert is_comparison(difference_) and difference_(table) == pytest.approx(np.full((2, 2), 2.0))
    unreached = exponent_difference("data.places", local, shared, 0.69)(table)
    assert unreached == pytest.approx(np.full((2, 2), 2.0))  # within the largest sizes of every cell
    assert np.isinf(exponent_difference("data.places", local, shared, 0.8)(table)).any()
    assert len(exponent_difference("data.places", local, {"model.tying": "dense"}, 0.5)(table)) == 0


def test_what_is_censored_on_both_sides_is_not_known() -> None:
    reached, not_reached = np.array([[5.0, 5.0]] * 3), np.array([[8.0, np.inf]] * 3)
    assert subtract_bounds(not_reached, reached).tolist() == [[3, np.inf]] * 3
    assert subtract_bounds(reached, not_reached).tolist() == [[-np.inf, -3]] * 3
    unknown = subtract_bounds(not_reached, not_reached)
    assert bounded_interval(unknown)[1:] == (-np.inf, np.inf)


def test_curves_have_only_seeds_with_all_sizes(two_tyings: pd.DataFrame) -> None:
    table = two_tyings.drop(index=two_tyings.index[0])
    sizes, values = collect_curves(table, "test/accuracy", {"model.tying": "shared"})
    assert sizes.tolist() == [64, 128] and values.shape == (3, 1, 2)


def test_curves_of_several_cells_are_paired_by_seed_not_by_place(two_tyings: pd.DataFrame) -> None:
    """The dense net lacks the first seed, the convolution the last: two are left, and neither is mixed."""
    seed, tying = two_tyings["seed"], two_tyings["model.tying"]
    table = two_tyings[~((seed == 0) & (tying == "dense") | (seed == 3) & (tying == "shared"))]
    cells = {"model.tying": "shared"}, {"model.tying": "dense"}
    _, values = collect_curves(table, "test/accuracy", *cells)
    assert values.shape == (2, 2, 2) and values[:, 0] - values[:, 1] == pytest.approx(np.full((2, 2), 0.3))
    assert collect_curves(table, "test/accuracy", {"model.tying": "tiled"}, cells[0])[1].size == 0


@pytest.mark.parametrize(
    ("columns", "side", "channels"),
    [
        ({"data.name": ["digits"], "data.canvas": [12]}, 12, 1),
        ({"data.name": ["mnist1d", "fashion_mnist"]}, 28, 1),
        ({"data.name": ["cifar10", "mnist1d"]}, 32, 3),
    ],
)
def test_the_images_of_a_sweep_have_a_side_and_channels(
    columns: dict[str, list[object]], side: int, channels: int
) -> None:
    assert image_shape(pd.DataFrame(columns)) == (side, channels)

"""Estimates that test claims: functions from a sweep's dataframe to one number per seed.

An experiment builds them from cells, see `cnnexp.analysis.cells`. Estimates of the training images and steps
that a network needs are in `cnnexp.analysis.curves`.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import pandas as pd

from cnnexp.analysis.cells import (
    Cell,
    CellRule,
    Rows,
    cell_at,
    note_rows,
    pair_by_seed,
    pair_cells,
    resolve_cell,
    select_rows,
)
from cnnexp.analysis.dataframe import TEST, measure_by
from cnnexp.analysis.descriptions import described
from cnnexp.analysis.statistics import locality_by_chance

Estimate = Callable[[pd.DataFrame], np.ndarray]  # one number per seed, or the two bounds of each
Effect = Literal["total", "first", "second", "interaction"]  # of two factors
# Functions that make estimates of how much more one cell has than another.
COMPARISONS = (
    "difference",
    "difference_along",
    "smallest_difference",
    "images_saved",
    "images_ratio",
    "exponent_difference",
    "cost_ratio",
)
EFFECTS: tuple[Effect, ...] = get_args(Effect)
# Side in pixels and channels of the images of data sets without a canvas; CIFAR-10 stands for all others.
IMAGE_SHAPES = {"fashion_mnist": (28, 1), "mnist": (28, 1), "cifar10": (32, 3)}


@described
def value(cell: CellRule, metric: str = TEST) -> Estimate:
    """Estimate a metric in one cell.

    Args:
        cell: The cell.
        metric: A column of the dataframe.
    """
    return lambda table: pair_cells(table, metric, resolve_cell(cell, table))[:, 0]


@described
def difference(larger: CellRule, smaller: CellRule, metric: str = TEST) -> Estimate:
    """Estimate the metric in one cell minus the metric in another, paired by seed.

    Args:
        larger: The cell that is expected to have more.
        smaller: The cell that is subtracted.
        metric: A column of the dataframe; "learned/distance/*" is the mean over the layers.

    Example:
        >>> table = pd.DataFrame(
        ...     {
        ...         "seed": [0, 0, 1, 1],
        ...         "model.tying": ["shared", "local", "shared", "local"],
        ...         "test/accuracy": [0.875, 0.75, 0.875, 0.625],
        ...     }
        ... )
        >>> difference({"model.tying": "shared"}, {"model.tying": "local"})(table)
        array([0.125, 0.25 ])
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        values = pair_cells(table, metric, resolve_cell(larger, table), resolve_cell(smaller, table))
        return values[:, 0] - values[:, 1]

    return estimate


@described
def difference_along(key: str, larger: int, smaller: int, cell: Cell, metric: str = TEST) -> Estimate:
    """Estimate the difference of a metric between two values of a key that the sweep varies.

    Args:
        key: The key.
        larger: Index into its values in rising order, of the one that is expected to have more.
        smaller: Index of the value that is subtracted.
        cell: The other keys.
        metric: A column of the dataframe.

    Example:
        >>> table = pd.DataFrame({"seed": 0, "data.crop": [0, 2, 4], "test/accuracy": [0.5, 0.75, 0.625]})
        >>> difference_along("data.crop", 1, -1, {})(table)
        array([0.125])
    """
    return difference(cell_at(key, larger, cell), cell_at(key, smaller, cell), metric)


@described
def interaction(first: tuple[Cell, Cell], second: tuple[Cell, Cell], metric: str = TEST) -> Estimate:
    """Estimate an interaction: the difference of the first pair of cells minus that of the second pair.

    Args:
        first: Two cells under one condition; the second cell is subtracted from the first.
        second: The same two cells under another condition.
        metric: A column of the dataframe.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        pairs = [pair_by_seed(table, metric, *cells) for cells in (first, second)]
        differences = pd.concat([pair[0] - pair[1] for pair in pairs], axis=1, keys=[0, 1]).dropna()
        return (differences[0] - differences[1]).to_numpy(float)

    return estimate


@described
def recovery(intact: Cell, damaged: Cell, repaired: Cell, fraction: float, metric: str = TEST) -> Estimate:
    """Estimate how much more a repair gives back than a fraction of what a damage took.

    It is `repaired - damaged - fraction * (intact - damaged)`, paired by seed. A ratio of the two differences
    would have no mean where the damage of a seed may be zero.

    Args:
        intact: The cell without damage.
        damaged: The same with the damage.
        repaired: The same with the damage and its repair.
        fraction: The fraction of the damage that is subtracted.
        metric: A column of the dataframe.

    Example:
        >>> table = pd.DataFrame({"seed": 0, "data.shift": [0, 1, 2], "test/accuracy": [0.875, 0.5, 0.75]})
        >>> recovery(*({"data.shift": shift} for shift in (0, 1, 2)), fraction=0.5)(table)
        array([0.0625])
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        before, after, then = pair_cells(table, metric, intact, damaged, repaired).T
        return then - after - fraction * (before - after)

    return estimate


@described
def log_change(cell: Cell, before: str, after: str, *, less: Cell | None = None) -> Estimate:
    """Estimate log2 of one metric over another in a cell, less the same in another cell if one is given.

    Args:
        cell: The cell.
        before: A column of the dataframe with positive numbers.
        after: The column that divides it.
        less: The cell whose estimate is subtracted, paired by seed.

    Example:
        >>> table = pd.DataFrame({"seed": [0, 1], "initial/a": [1.0, 2.0], "learned/a": [0.5, 0.5]})
        >>> log_change({}, "initial/a", "learned/a")(table)
        array([1., 2.])
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        logs = pd.Series(np.log2(table[before] / table[after]), index=table.index)
        cells = [cell] if less is None else [cell, less]
        values = pair_cells(table, logs, *cells)
        return values[:, 0] - (values[:, 1] if less is not None else 0)

    return estimate


@described
def smallest_difference(larger: Cell, smaller: Cell, keys: list[str], metric: str = TEST) -> Estimate:
    """Estimate the difference of two cells at the values of some keys where its mean is smallest.

    Args:
        larger: The cell that is expected to have more.
        smaller: The cell that is subtracted.
        keys: Keys whose combinations of values are tried.
        metric: A column of the dataframe.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        differences = [difference(larger, smaller, metric)(runs) for _, runs in table.groupby(keys)]
        return min((values for values in differences if len(values)), key=np.mean, default=np.empty(0))

    return estimate


@described
def extreme_value(extreme: Literal["lowest", "best"], cells: list[Cell], metric: str = TEST) -> Estimate:
    """Estimate a metric in the extreme one of several cells.

    Args:
        extreme: "lowest" takes the lowest cell of each seed, "best" the cell with the highest mean.
        cells: The cells.
        metric: A column of the dataframe.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        values = pair_cells(table, metric, *cells)
        if not len(values):
            return np.empty(0)
        return values.min(1) if extreme == "lowest" else values[:, values.mean(0).argmax()]

    return estimate


@described
def count_ratio(numerator: Cell, denominator: Cell, count: str = "params/total") -> Estimate:
    """Compute the ratio of a count, such as the parameters, in two cells.

    Counts do not depend on the seed: the estimate is a single number, and its claim is `exact`.

    Args:
        numerator: The cell that is expected to have more.
        denominator: The cell whose count is the divisor.
        count: A column of the dataframe.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        counts = [pair_cells(table, count, cell)[:1, 0] for cell in (numerator, denominator)]
        return counts[0] / counts[1] if all(map(len, counts)) else np.empty(0)

    return estimate


@described
def correlation(metric: str, count: str = "params/total") -> Estimate:
    """Estimate Spearman's rank correlation between a count and a metric over all runs of each seed.

    Seeds with fewer than three different counts are left out.

    Args:
        metric: A column of the dataframe.
        count: Another column, for example the number of parameters.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        from scipy.stats import spearmanr

        note_rows(table)
        seeds = [runs for _, runs in table.groupby("seed") if runs[count].nunique() > 2]
        return np.array([float(spearmanr(runs[count], runs[metric]).statistic) for runs in seeds])  # pyright: ignore

    return estimate


@described
def factorial_effect(
    effect: Effect,
    neither: Cell,
    first: Cell,
    second: Cell,
    both: Cell,
    metric: str = TEST,
) -> Estimate:
    """Estimate an effect in a 2x2 design from its four cells, paired by seed.

    With two factors the main effects, each averaged over the levels of the other factor, are the Shapley
    values: they add up to the total.

    Args:
        effect: The main effect of the first or second factor; how much more the first factor is worth with
            the second than without; or the total of both.
        neither: The cell with neither factor.
        first: The cell with the first factor alone.
        second: The cell with the second factor alone.
        both: The cell with both factors.
        metric: A column of the dataframe.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        base, with_first, with_second, with_both = pair_cells(table, metric, neither, first, second, both).T
        effects = {
            "first": ((with_first - base) + (with_both - with_second)) / 2,
            "second": ((with_second - base) + (with_both - with_first)) / 2,
            "interaction": (with_both - with_second) - (with_first - base),
            "total": with_both - base,
        }
        return effects[effect]

    return estimate


@described
def locality_beyond_chance(cell: CellRule, layer: str = "conv_0", window: int = 9) -> Estimate:
    """Estimate the locality of a layer's weights, less that of random weights with as many zeros.

    Args:
        cell: The networks; each unit of the layer must see the whole image.
        layer: The layer, whose `learned/zeros` and `learned/locality` the dataframe has.
        window: Height and width of the window in which the weights of a local unit lie, in pixels.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        side, channels = image_shape(table)
        zeros, locality = (
            value(cell, f"learned/{metric}/{layer}")(table) for metric in ("zeros", "locality")
        )
        return locality - np.array(
            [locality_by_chance(fraction, side, channels, window) for fraction in zeros]
        )

    return estimate


def image_shape(table: pd.DataFrame) -> tuple[int, int]:
    """Return the side, in pixels, and the channels of the images of a sweep; signals are disregarded."""
    if "data.canvas" in table:
        return int(table["data.canvas"].max()), 1
    shapes = [IMAGE_SHAPES[name] for name in IMAGE_SHAPES if (table["data.name"] == name).any()]
    return shapes[0] if shapes else IMAGE_SHAPES["cifar10"]


@described
def within(rows: Rows, estimate: Estimate) -> Estimate:
    """Restrict an estimate to some of the runs.

    Args:
        rows: A cell, or a function that selects rows of the dataframe.
        estimate: The estimate, which is computed from these rows.
    """
    return lambda table: estimate(select_rows(table, rows))


@described
def measured_by(metric: str, estimate: Estimate) -> Estimate:
    """Compute an estimate from another metric in place of the accuracy.

    All columns of the accuracy are replaced: those of each split, the gap, and the steps to a target.

    Args:
        metric: The name of the metric, such as `average_precision` for images with several labels.
        estimate: The estimate, which may be any that depends on accuracies.

    Example:
        >>> table = pd.DataFrame(
        ...     {
        ...         "seed": [0, 0],
        ...         "model.tying": ["shared", "local"],
        ...         "test/accuracy": [0.0, 0.0],
        ...         "test/average_precision": [0.875, 0.75],
        ...     }
        ... )
        >>> lead = difference({"model.tying": "shared"}, {"model.tying": "local"})
        >>> measured_by("average_precision", lead)(table)
        array([0.125])
    """
    return lambda table: estimate(measure_by(table, metric))


def is_comparison(estimate: Estimate) -> bool:
    """Return whether an estimate compares two cells: it is positive where the first has more than the second.

    Args:
        estimate: The estimate; one that no function of this package made is not a comparison.

    Example:
        >>> shared, local = {"model.tying": "shared"}, {"model.tying": "local"}
        >>> is_comparison(within({"data.crop": 0}, difference(shared, local))), is_comparison(value(shared))
        (True, False)
    """
    made = getattr(estimate, "described_as", {})
    if isinstance(inner := made.get("estimate"), Callable):  # of `within` and `measured_by`
        return is_comparison(inner)
    return made.get("function") in COMPARISONS

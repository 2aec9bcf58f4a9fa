"""Estimates that test claims: functions from a sweep's dataframe to one number per seed.

An experiment builds them from cells, see `Cell`. A cell may also be a function of the dataframe, for values
that only the sweep knows: the largest one tried (`cell_at`), or the best one on validation images
(`best_cell`).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from cnnexp.analysis.curves import bounds_of_difference, curves, images_by_cell, log_images_needed, slope
from cnnexp.analysis.dataframe import TUNED, Cell, Rows, select_cell, select_rows, values_of, varying_keys
from cnnexp.analysis.statistics import locality_by_chance

TEST, GAP, VALIDATION = "test/accuracy", "gap/accuracy", "validation/accuracy"
Estimate = Callable[[pd.DataFrame], np.ndarray]
ALL = slice(None)
CIFAR_SHAPE = 32, 3  # height and width in pixels, channels: images without a canvas
CellRule = Cell | Callable[[pd.DataFrame], Cell]


def pair_cells(table: pd.DataFrame, metric: str, *cells: Cell) -> Float[np.ndarray, "seeds cells"]:
    """Collect a metric in several cells, seed by seed.

    Runs are paired by seed and by every varying key that no cell names, and averaged over the latter. The
    learning rate and weight decay were tuned for each cell, so they pair nothing.

    Returns:
        One row per seed that all cells have; no row where a cell has no runs.
    """
    return _pair(table, metric, *cells).to_numpy(float).reshape(-1, len(cells))


def value(cell: CellRule, metric: str = TEST) -> Estimate:
    """Estimate a metric in one cell.

    Args:
        cell: The cell.
        metric: A column of the dataframe.
    """
    return lambda table: pair_cells(table, metric, resolve(cell, table))[:, 0]


def difference(one: CellRule, other: CellRule, metric: str = TEST) -> Estimate:
    """Estimate the metric in one cell minus the metric in the other, paired by seed.

    Args:
        one: The cell that is expected to have more.
        other: The cell that is subtracted.
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
        values = pair_cells(table, metric, resolve(one, table), resolve(other, table))
        return values[:, 0] - values[:, 1]

    return estimate


def interaction(first: tuple[Cell, Cell], second: tuple[Cell, Cell], metric: str = TEST) -> Estimate:
    """Estimate an interaction: the difference of the first pair of cells minus that of the second pair.

    Args:
        first: Two cells under one condition; the second cell is subtracted from the first.
        second: The same two cells under another condition.
        metric: A column of the dataframe.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        pairs = [_pair(table, metric, *cells) for cells in (first, second)]
        both = pd.concat([pair[0] - pair[1] for pair in pairs], axis=1, keys=[0, 1]).dropna()
        return (both[0] - both[1]).to_numpy(float)

    return estimate


def smallest_difference(one: Cell, other: Cell, keys: list[str], metric: str = TEST) -> Estimate:
    """Estimate the difference of two cells at the values of some keys where its mean is smallest.

    Args:
        one: The cell that is expected to have more.
        other: The cell that is subtracted.
        keys: Keys whose combinations of values are tried.
        metric: A column of the dataframe.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        differences = [difference(one, other, metric)(runs) for _, runs in table.groupby(keys)]
        return min((values for values in differences if len(values)), key=np.mean, default=np.empty(0))

    return estimate


def extreme_value(which: Literal["lowest", "best"], cells: list[Cell], metric: str = TEST) -> Estimate:
    """Estimate a metric in the extreme one of several cells.

    Args:
        which: "lowest" takes the lowest cell of each seed, "best" the cell with the highest mean.
        cells: The cells.
        metric: A column of the dataframe.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        values = pair_cells(table, metric, *cells)
        if not len(values):
            return np.empty(0)
        return values.min(1) if which == "lowest" else values[:, values.mean(0).argmax()]

    return estimate


def count_ratio(one: Cell, other: Cell, count: str = "params/total") -> Estimate:
    """Compute the ratio of a count, such as the parameters, in two cells.

    Counts do not depend on the seed: the estimate is a single number, and its claim is `exact`.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        counts = [pair_cells(table, count, cell)[:1, 0] for cell in (one, other)]
        return counts[0] / counts[1] if all(map(len, counts)) else np.empty(0)

    return estimate


def correlation(metric: str, count: str = "params/total") -> Estimate:
    """Estimate Spearman's rank correlation between a count and a metric over all runs of each seed.

    Seeds with fewer than three different counts are left out.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        from scipy.stats import spearmanr

        seeds = [runs for _, runs in table.groupby("seed") if runs[count].nunique() > 2]
        return np.array([float(spearmanr(runs[count], runs[metric]).statistic) for runs in seeds])  # pyright: ignore

    return estimate


def factorial_effect(
    effect: Literal["first", "second", "interaction", "total"],
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
        none, one, other, all_ = pair_cells(table, metric, neither, first, second, both).T
        effects = {
            "first": ((one - none) + (all_ - other)) / 2,
            "second": ((other - none) + (all_ - one)) / 2,
            "interaction": (all_ - other) - (one - none),
            "total": all_ - none,
        }
        return effects[effect]

    return estimate


def images_saved(one: Cell, other: Cell, images: int | None = None) -> Estimate:
    """Estimate how often the training images can be halved until one net is only as accurate as the other.

    Args:
        one: The net whose training images are halved.
        other: The net that has all of them.
        images: All of them; if None, the largest number that both nets were trained on.

    Returns:
        An estimate with bounds of log2 of the images over those that `one` needs.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        sizes, accuracies = curves(table, TEST, other, one)
        if len(sizes) < 2 or images not in (None, *sizes):
            return np.empty(0)
        place = list(sizes).index(images) if images else len(sizes) - 1
        needed = log_images_needed(sizes, accuracies[:, 1], accuracies[:, 0, place])
        return np.log2(sizes[place]) - needed[:, ::-1]

    return estimate


def images_ratio(one: Cell, other: Cell, accuracy: float) -> Estimate:
    """Estimate log2 of the training images that one net needs for an accuracy, over those of the other."""
    return lambda table: bounds_of_difference(*images_by_cell(table, accuracy, one, other))


def images_exponent(
    key: str, cell: Cell, accuracy: float, bound: Callable[[float], float] | None = None
) -> Estimate:
    """Estimate the exponent with which the training images that a net needs grow with a key.

    Args:
        key: The key, for example `data.dimension`.
        cell: The net, without the key.
        accuracy: The test accuracy for which images are needed.
        bound: The growth that a theorem states, as a function of the key; its exponent over the values that
            were tried is subtracted.

    Returns:
        An estimate with bounds of the least-squares slope of log2 of the images over log2 of the key.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        values = values_of(select_cell(table, cell), key)
        if len(values) < 2:
            return np.empty(0)
        logs = np.log2(values)
        exponent = slope(logs, images_by_cell(table, accuracy, *({**cell, key: value} for value in values)))
        return exponent - (
            np.polyfit(logs, np.log2([bound(value) for value in values]), 1)[0] if bound else 0
        )

    return estimate


def cost_ratio(cost: str, one: Cell, other: Cell, accuracy: float = 0.5) -> Estimate:
    """Estimate log2 of the cost at which one net reaches a test accuracy, over that of the other.

    Both are taken with the largest number of training images of the sweep.

    Args:
        cost: "steps", or a column that each step costs, for example `macs`.
        one: The net that is expected to need more.
        other: The net whose cost is subtracted.
        accuracy: One of `TARGETS`, whose steps the dataframe has, see `steps_to`.

    Returns:
        An estimate with bounds, as the crossing lies between two evaluations.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        most = {"data.train_size": table["data.train_size"].max()}
        bounds = []
        for side in ("low", "high"):
            steps = table[f"steps_to/{accuracy:g}/{side}"].clip(lower=1)
            costs = np.log2(steps * (1 if cost == "steps" else table[cost]))
            bounds.append(pair_cells(table.assign(cost=costs), "cost", {**one, **most}, {**other, **most}))
        return bounds_of_difference(*np.stack(bounds, axis=-1).swapaxes(0, 1))

    return estimate


def locality_beyond_chance(cell: CellRule, layer: str = "conv_0", window: int = 9) -> Estimate:
    """Estimate the locality of a layer's weights, less that of random weights with as many zeros.

    Args:
        cell: The nets; each unit of the layer must see the whole image.
        layer: The layer, whose `learned/zeros` and `learned/locality` the dataframe has.
        window: Height and width of the window in which the weights of a local unit lie, in pixels.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        side, channels = (int(table["data.canvas"].max()), 1) if "data.canvas" in table else CIFAR_SHAPE
        zeros, locality = (
            value(cell, f"learned/{metric}/{layer}")(table) for metric in ("zeros", "locality")
        )
        return locality - np.array([locality_by_chance(each, side, channels, window) for each in zeros])

    return estimate


def within(rows: Rows, estimate: Estimate) -> Estimate:
    """Restrict an estimate to some of the runs.

    Args:
        rows: A cell, or a function that selects rows of the dataframe.
        estimate: What is estimated from these rows.
    """
    return lambda table: estimate(select_rows(table, rows))


def cell_at(key: str, position: int, cell: Cell) -> Callable[[pd.DataFrame], Cell]:
    """Add a key to a cell, at one of the values that the sweep has.

    Args:
        key: The key.
        position: Index into its values in rising order; -1 is the largest.
        cell: The other keys.

    Example:
        >>> table = pd.DataFrame({"data.crop": [0, 2, 4]})
        >>> cell_at("data.crop", -1, {"model.tying": "local"})(table)
        {'model.tying': 'local', 'data.crop': 4}
    """
    return lambda table: {**cell, key: (values_of(table, key) or [np.nan])[position]}


def best_cell(key: str, cell: Cell, positions: slice = ALL) -> Callable[[pd.DataFrame], Cell]:
    """Add a key to a cell, at the value whose mean accuracy on validation images is highest.

    Args:
        key: The key.
        cell: The other keys.
        positions: The values that may be chosen, of all values in rising order.
    """

    def choose(table: pd.DataFrame) -> Cell:
        cells = [{**cell, key: value} for value in values_of(table, key)[positions]]
        if not cells:
            return {**cell, key: np.nan}  # which no run has
        accuracies = pair_cells(table, VALIDATION, *cells)
        return cells[accuracies.mean(0).argmax() if len(accuracies) else 0]

    return choose


def resolve(cell: CellRule, table: pd.DataFrame) -> Cell:
    """Return a cell, or the cell that a rule chooses from the dataframe."""
    return cell(table) if callable(cell) else cell


def _pair(table: pd.DataFrame, metric: str, *cells: Cell) -> pd.DataFrame:
    if metric.endswith("*"):  # the mean over layers
        layers = [column for column in table if str(column).startswith(metric[:-1])]
        table = table.assign(**{metric: table[layers].mean(axis=1)})
    named = set().union(TUNED, *cells)
    by = ["seed", *(key for key in varying_keys(table) if key not in named)]
    columns = [select_cell(table, cell).groupby(by, dropna=False)[metric].mean() for cell in cells]
    joined = pd.concat(columns, axis=1, keys=range(len(cells))).dropna()
    return joined.groupby("seed").mean()

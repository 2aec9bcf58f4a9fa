"""Learning curves: the training images or steps that networks need for a test accuracy."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from cnnexp.analysis.cells import Cell, note_rows, pair_cells, select_cell, values_of
from cnnexp.analysis.dataframe import TEST
from cnnexp.analysis.descriptions import described
from cnnexp.analysis.estimates import Estimate
from cnnexp.analysis.statistics import Interval, bounded_interval


def collect_curves(
    table: pd.DataFrame, metric: str, *cells: Cell, x: str = "data.train_size"
) -> tuple[Float[np.ndarray, " sizes"], Float[np.ndarray, "seeds cells sizes"]]:
    """Collect a metric against the number of training images, in several cells.

    Args:
        table: One row per run.
        metric: A column of the dataframe.
        *cells: The cells.
        x: The column of the sizes.

    Returns:
        The sizes that all cells have, and the metric at these sizes for the seeds that have all of them.
    """
    wide = _pivot_curves(table, metric, cells, x)
    sizes = sorted(set.intersection(*(set(curve.columns) for curve in wide)))
    joined = pd.concat([curve[sizes] for curve in wide], axis=1).dropna()
    return np.array(sizes, float), joined.to_numpy(float).reshape(len(joined), len(cells), len(sizes))


def _pivot_curves(
    table: pd.DataFrame, metric: str, cells: Sequence[Cell], x: str = "data.train_size"
) -> list[pd.DataFrame]:
    """Return the metric by seed and size, one dataframe per cell."""
    rows = [select_cell(table, cell) for cell in cells]
    note_rows(*rows)
    return [runs.pivot_table(index="seed", columns=x, values=metric, dropna=False) for runs in rows]


def bound_log_images(
    sizes: Float[np.ndarray, " sizes"],
    accuracies: Float[np.ndarray, "seeds sizes"],
    target: float | Float[np.ndarray, " seeds"],
) -> Float[np.ndarray, "seeds 2"]:
    """Bound log2 of the number of training images at which the curve of each seed first reaches a target.

    Args:
        sizes: Numbers of training images, in ascending order.
        accuracies: The accuracy of each seed at each size.
        target: The accuracy to be reached, the same for all seeds or one per seed.

    Returns:
        The lower and the upper bound of each seed. If the target is first reached between two sizes, both are
        the point at which the curve, linear in log2 of the size, crosses it. If it is already reached at the
        smallest size, the bounds are 0 (one image) and log2 of that size; if it is reached at no size, they
        are log2 of the largest size and infinity.
    """
    log_sizes, bounds = np.log2(sizes), np.empty((len(accuracies), 2))
    targets = np.broadcast_to(target, len(accuracies))
    for seed, (curve, seed_target) in enumerate(zip(accuracies, targets, strict=True)):
        reached = np.flatnonzero(curve >= seed_target)
        if not len(reached):
            bounds[seed] = log_sizes[-1], np.inf
        elif (first := reached[0]) == 0:
            bounds[seed] = 0.0, log_sizes[0]
        else:
            fraction = (seed_target - curve[first - 1]) / (curve[first] - curve[first - 1])
            bounds[seed] = log_sizes[first - 1] + fraction * (log_sizes[first] - log_sizes[first - 1])
    return bounds


def subtract_bounds(
    minuend: Float[np.ndarray, "seeds 2"], subtrahend: Float[np.ndarray, "seeds 2"]
) -> Float[np.ndarray, "seeds 2"]:
    """Compute the bounds of a difference whose two terms are known within bounds."""
    return np.stack([minuend[:, 0] - subtrahend[:, 1], minuend[:, 1] - subtrahend[:, 0]], axis=1)


def bound_log_images_by_cell(
    table: pd.DataFrame, accuracy: float, *cells: Cell
) -> Float[np.ndarray, "cells seeds 2"]:
    """Bound log2 of the images to a test accuracy in each cell, for the seeds that all cells have.

    The sizes may differ from cell to cell. A seed counts if it has all sizes of each cell.
    """
    curves = [curve.dropna() for curve in _pivot_curves(table, TEST, cells)]
    seeds = sorted(set.intersection(*(set(curve.index) for curve in curves)))
    if not seeds:
        return np.empty((len(cells), 0, 2))
    return np.array(
        [
            bound_log_images(curve.columns.to_numpy(float), curve.loc[seeds].to_numpy(float), accuracy)
            for curve in curves
        ]
    )


def bound_slope(
    x: Float[np.ndarray, " points"], bounds: Float[np.ndarray, "points seeds 2"]
) -> Float[np.ndarray, "seeds 2"]:
    """Bound the least-squares slope of points that are known within bounds.

    A point pulls the slope up where its weight is positive: there the slope's lower bound takes the point's
    lower bound, and elsewhere its upper bound.

    Args:
        x: The points' positions.
        bounds: The lower and the upper bound of each point, by seed.
    """
    weights = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    low, high = (
        sum(
            weight * bounds[point, :, side if weight > 0 else 1 - side]
            for point, weight in enumerate(weights)
            if abs(weight) > 1e-9  # a point in the middle has no weight, and may be unbounded
        )
        for side in (0, 1)
    )
    return np.stack([low, high], axis=1)


def images_needed(
    sizes: Float[np.ndarray, " sizes"],
    accuracies: Float[np.ndarray, "seeds sizes"],
    target: float,
    confidence: float = 0.95,
) -> Interval:
    """Estimate the images at which a target is reached: the geometric mean over seeds and its interval.

    Where a seed does not reach it with the most images, the value and the lower limit are those of the same
    seeds as if they had reached it there, and the upper limit is infinite; where one reaches it with the
    fewest, the value is that with the fewest and the lower limit that of one image.

    Args:
        sizes: Numbers of training images.
        accuracies: The accuracy of each seed at each of them.
        target: The accuracy to be reached.
        confidence: The level of the interval.
    """
    bounds = bound_log_images(sizes, accuracies, target)
    _, low, high = bounded_interval(bounds, confidence)
    value = bounds.mean(0)[int(np.isfinite(bounds[:, 1]).all())]
    return Interval(*(float(2.0**limit) for limit in (value, low, high)))


@described
def images_saved(net: Cell, reference: Cell, images: int | None = None) -> Estimate:
    """Estimate how often the training images can be halved until a network is only as accurate as another.

    Args:
        net: The network whose training images are halved.
        reference: The network that has all of them.
        images: All of them; if None, the largest number that both networks were trained on.

    Returns:
        An estimate with bounds of log2 of the images over those that `net` needs.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        sizes, accuracies = collect_curves(table, TEST, reference, net)
        if len(sizes) < 2 or images not in (None, *sizes):
            return np.empty(0)
        index = list(sizes).index(images) if images else len(sizes) - 1
        reference_curves, net_curves = accuracies.swapaxes(0, 1)
        needed = bound_log_images(sizes, net_curves, target=reference_curves[:, index])
        return np.log2(sizes[index]) - needed[:, ::-1]  # what needs the most images saves the fewest

    return estimate


@described
def images_ratio(numerator: Cell, denominator: Cell, accuracy: float) -> Estimate:
    """Estimate log2 of the training images that one network needs for an accuracy, over those of another.

    Args:
        numerator: The network that is expected to need more.
        denominator: The network whose images are the divisor.
        accuracy: The test accuracy for which images are needed.

    Returns:
        An estimate with bounds, see `bound_log_images`.
    """
    return lambda table: subtract_bounds(*bound_log_images_by_cell(table, accuracy, numerator, denominator))


@described
def images_exponent(
    key: str, cell: Cell, accuracy: float, proven_growth: Callable[[float], float] | None = None
) -> Estimate:
    """Estimate the exponent with which the training images that a network needs grow with a key.

    Args:
        key: The key, for example `data.dimension`.
        cell: The net, without the key.
        accuracy: The test accuracy for which images are needed.
        proven_growth: The growth that a theorem states, as a function of the key; its exponent over the
            values that were tried is subtracted.

    Returns:
        An estimate with bounds of the least-squares slope of log2 of the images over log2 of the key.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        values = values_of(select_cell(table, cell), key)
        if len(values) < 2:
            return np.empty(0)
        log_values = np.log2(values)
        cells = [{**cell, key: value} for value in values]
        exponent = bound_slope(log_values, bound_log_images_by_cell(table, accuracy, *cells))
        if proven_growth is None:
            return exponent
        log_growth = np.log2([proven_growth(value) for value in values])
        return exponent - np.polyfit(log_values, log_growth, 1)[0]

    return estimate


@described
def exponent_difference(key: str, larger: Cell, smaller: Cell, accuracy: float) -> Estimate:
    """Estimate how much larger the exponent of `images_exponent` is for one network than for another.

    Args:
        key: The key with which the images grow.
        larger: The network that is expected to have the larger exponent, without the key.
        smaller: The network whose exponent is subtracted, without the key.
        accuracy: The test accuracy for which images are needed.

    Returns:
        An estimate with bounds, over the values of the key that both networks have.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        nets = larger, smaller
        values = sorted(set.intersection(*(set(values_of(select_cell(table, net), key)) for net in nets)))
        if len(values) < 2:
            return np.empty(0)
        cells = [{**net, key: value} for net in nets for value in values]
        bounds = bound_log_images_by_cell(table, accuracy, *cells)
        parts = bounds[: len(values)], bounds[len(values) :]
        return subtract_bounds(*(bound_slope(np.log2(values), part) for part in parts))

    return estimate


@described
def cost_ratio(cost: str, numerator: Cell, denominator: Cell, accuracy: float = 0.5) -> Estimate:
    """Estimate log2 of the cost at which one network reaches a test accuracy, over that of the other.

    Both are taken with the largest number of training images of the sweep.

    Args:
        cost: "steps", or a column that each step costs, for example `macs`.
        numerator: The network that is expected to need more.
        denominator: The network whose cost is the divisor.
        accuracy: One of `TARGETS`, whose steps the dataframe has, see `steps_to`.

    Returns:
        An estimate with bounds, as the crossing lies between two evaluations.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        all_images = {"data.train_size": table["data.train_size"].max()}
        cells = {**numerator, **all_images}, {**denominator, **all_images}
        bounds = []  # the lower and the upper one, each of shape (seeds, cells)
        for side in ("low", "high"):
            steps = table[f"steps_to/{accuracy:g}/{side}"].clip(lower=1)
            log_costs = pd.Series(np.log2(steps * (1 if cost == "steps" else table[cost])), table.index)
            bounds.append(pair_cells(table, log_costs, *cells))
        numerator_bounds, denominator_bounds = np.stack(bounds, axis=-1).swapaxes(0, 1)
        return subtract_bounds(numerator_bounds, denominator_bounds)

    return estimate

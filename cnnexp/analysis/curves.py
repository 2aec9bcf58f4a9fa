"""Learning curves against the number of training images: power laws, and the images needed for a target."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from cnnexp.analysis.dataframe import Cell, select_cell
from cnnexp.analysis.statistics import Interval, bounded_interval, interval, jackknife

STEEPEST = 5.0  # exponent that a fit may have


class PowerLaw(NamedTuple):
    """`error = scale * images**-exponent + offset`, each with its interval over seeds."""

    scale: Interval
    exponent: Interval
    offset: Interval


def curves(
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
    wide = [
        select_cell(table, cell).pivot_table(index="seed", columns=x, values=metric, dropna=False)
        for cell in cells
    ]
    sizes = sorted(set.intersection(*(set(one.columns) for one in wide)))
    joined = pd.concat([one[sizes] for one in wide], axis=1).dropna()
    return np.array(sizes, float), joined.to_numpy(float).reshape(len(joined), len(cells), len(sizes))


def fit_power_law(
    sizes: Float[np.ndarray, " sizes"], errors: Float[np.ndarray, " sizes"]
) -> Float[np.ndarray, "3"]:
    """Fit the scale, exponent and offset of a power law by least squares in the logarithm of the error.

    The offset, the error that remains with any number of images, lies between 0 and the smallest error.
    """
    from scipy.optimize import least_squares

    logs, target = np.log(sizes), np.log(np.maximum(errors, 1e-6))
    least = float(np.exp(target.min()))

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.logaddexp(x[0] - x[1] * logs, np.log(x[2])) - target

    fits = []
    for fraction in (0.05, 0.5, 0.9):  # of the smallest error, from which the offset starts
        steepness, level = np.polyfit(logs, np.log(np.exp(target) - fraction * least), 1)
        start = [level, np.clip(-steepness, 0.01, STEEPEST - 0.01), fraction * least]
        bounds = ([-50, 0, 1e-12], [50, STEEPEST, max(least, 2e-12)])
        fits.append(least_squares(residuals, start, bounds=bounds, x_scale=[1, 1, least]))
    best = min(fits, key=lambda fit: fit.cost)
    return np.array([np.exp(best.x[0]), best.x[1], best.x[2]])


def power_law(
    sizes: Float[np.ndarray, " sizes"], errors: Float[np.ndarray, "seeds sizes"], confidence: float = 0.95
) -> PowerLaw:
    """Fit the power law of the mean curve, with jackknife intervals over seeds."""
    whole = fit_power_law(sizes, errors.mean(0))
    pseudo = jackknife(lambda some: fit_power_law(sizes, some.mean(0)), errors)
    limits = [interval(values, confidence) for values in pseudo.T]
    return PowerLaw(*(Interval(float(w), lim.low, lim.high) for w, lim in zip(whole, limits, strict=True)))


def log_images_needed(
    sizes: Float[np.ndarray, " sizes"],
    accuracies: Float[np.ndarray, "seeds sizes"],
    target: float | Float[np.ndarray, " seeds"],
) -> Float[np.ndarray, "seeds 2"]:
    """Compute bounds of log2 of the images at which each seed's curve first reaches a target.

    Between sizes the curve is a line over the logarithm, and both bounds are the place on it. Where the
    target is not reached it takes more images than there are (the upper bound is infinite); where it is
    reached with the fewest, between one image and those.
    """
    logs, needed = np.log2(sizes), np.empty((len(accuracies), 2))
    for seed, (curve, wanted) in enumerate(
        zip(accuracies, np.broadcast_to(target, len(accuracies)), strict=True)
    ):
        reached = np.flatnonzero(curve >= wanted)
        if not len(reached):
            needed[seed] = logs[-1], np.inf
        elif (i := reached[0]) == 0:
            needed[seed] = 0.0, logs[0]
        else:
            part = (wanted - curve[i - 1]) / (curve[i] - curve[i - 1])
            needed[seed] = logs[i - 1] + part * (logs[i] - logs[i - 1])
    return needed


def bounds_of_difference(
    one: Float[np.ndarray, "seeds 2"], other: Float[np.ndarray, "seeds 2"]
) -> Float[np.ndarray, "seeds 2"]:
    """Compute the bounds of a difference whose two terms are known within bounds."""
    return np.stack([one[:, 0] - other[:, 1], one[:, 1] - other[:, 0]], axis=1)


def images_by_cell(table: pd.DataFrame, accuracy: float, *cells: Cell) -> Float[np.ndarray, "cells seeds 2"]:
    """Compute bounds of log2 of the images to a test accuracy, for the seeds that all cells have."""
    sizes, accuracies = curves(table, "test/accuracy", *cells)
    if not accuracies.size:
        return np.empty((len(cells), 0, 2))
    return np.array([log_images_needed(sizes, one, accuracy) for one in accuracies.swapaxes(0, 1)])


def slope(
    x: Float[np.ndarray, " points"], bounds: Float[np.ndarray, "points seeds 2"]
) -> Float[np.ndarray, "seeds 2"]:
    """Compute bounds of the least-squares slope of points that are known within bounds.

    A point pulls the slope up where its weight is positive: there the slope's lower bound takes the point's
    lower bound, and elsewhere its upper bound.
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
    """
    bounds = log_images_needed(sizes, accuracies, target)
    _, low, high = bounded_interval(bounds, confidence)
    value = bounds.mean(0)[int(np.isfinite(bounds[:, 1]).all())]
    return Interval(*(float(2.0**limit) for limit in (value, low, high)))

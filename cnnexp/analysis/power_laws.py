"""Power laws: how the test error falls with the number of images, parameters or operations."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from cnnexp.analysis.cells import Cell, note_rows, select_cell
from cnnexp.analysis.dataframe import TEST
from cnnexp.analysis.descriptions import described
from cnnexp.analysis.estimates import Estimate
from cnnexp.analysis.statistics import Interval, interval, jackknife

MAX_EXPONENT = 5.0  # of a fitted power law
SMALLEST_ERROR = 1e-4  # the logarithm of an error of zero is that of this one


class PowerLaw(NamedTuple):
    """`error = scale * images**-exponent + offset`, each with its interval over seeds."""

    scale: Interval
    exponent: Interval
    offset: Interval


def fit_power_law(
    sizes: Float[np.ndarray, " sizes"], errors: Float[np.ndarray, " sizes"]
) -> Float[np.ndarray, "3"]:
    """Fit the scale, exponent and offset of a power law by least squares in the logarithm of the error.

    The offset, the error that remains with any number of images, lies between 0 and the smallest error.

    Args:
        sizes: Numbers of training images.
        errors: The error at each of them, as a fraction.

    Returns:
        The scale, the exponent and the offset.
    """
    from scipy.optimize import least_squares

    logs, target = np.log(sizes), np.log(np.maximum(errors, 1e-6))
    smallest = float(np.exp(target.min()))

    def residuals(parameters: np.ndarray) -> np.ndarray:
        log_scale, exponent, offset = parameters
        return np.logaddexp(log_scale - exponent * logs, np.log(offset)) - target

    fits = []
    for fraction in (0.05, 0.5, 0.9):  # of the smallest error, from which the offset starts
        steepness, level = np.polyfit(logs, np.log(np.exp(target) - fraction * smallest), 1)
        start = [level, np.clip(-steepness, 0.01, MAX_EXPONENT - 0.01), fraction * smallest]
        bounds = ([-50, 0, 1e-12], [50, MAX_EXPONENT, max(smallest, 2e-12)])
        fits.append(least_squares(residuals, start, bounds=bounds, x_scale=[1, 1, smallest]))
    best = min(fits, key=lambda fit: fit.cost)
    return np.array([np.exp(best.x[0]), best.x[1], best.x[2]])


def fit_mean_power_law(
    sizes: Float[np.ndarray, " sizes"], errors: Float[np.ndarray, "seeds sizes"], confidence: float = 0.95
) -> PowerLaw:
    """Fit the power law of the mean curve, with jackknife intervals over seeds.

    Args:
        sizes: Numbers of training images.
        errors: The error of each seed at each of them, as a fraction.
        confidence: The level of the intervals.
    """
    fitted = fit_power_law(sizes, errors.mean(0))
    pseudo_values = jackknife(lambda seeds: fit_power_law(sizes, seeds.mean(0)), errors)
    intervals = [interval(values, confidence) for values in pseudo_values.T]
    return PowerLaw(
        *(Interval(float(x), limits.low, limits.high) for x, limits in zip(fitted, intervals, strict=True))
    )


def fit_error_exponents(table: pd.DataFrame, x: str, cell: Cell) -> pd.Series:
    """Fit the exponent with which the test error of a network falls with a number, for each seed.

    Args:
        table: One row per run.
        x: The column of the number, such as `data.train_size`, `params/total` or `macs`.
        cell: The network, with all its values of `x`.

    Returns:
        By seed, minus the least-squares slope of the logarithm of the error over that of the number; empty if
        there are fewer than two numbers. Seeds that lack one of them are left out.
    """
    runs = select_cell(table, cell)
    note_rows(runs)
    errors = 1 - runs.pivot_table(index="seed", columns=x, values=TEST, dropna=False).dropna()
    if errors.shape[1] < 2 or not len(errors):
        return pd.Series(dtype=float)
    log_errors = np.log(errors.clip(lower=SMALLEST_ERROR).to_numpy(float))
    return pd.Series(-np.polyfit(np.log(errors.columns.to_numpy(float)), log_errors.T, 1)[0], errors.index)


@described
def error_exponent(x: str, cell: Cell, smaller: Cell | None = None) -> Estimate:
    """Estimate the exponent with which the test error of a network falls with a number.

    The law has no offset, so the exponent is that of the numbers that were tried, see `fit_error_exponents`.

    Args:
        x: The column of the number.
        cell: The network, with all its values of `x`.
        smaller: A network whose exponent is subtracted; its values of `x` may be others.
    """

    def estimate(table: pd.DataFrame) -> np.ndarray:
        exponents = [fit_error_exponents(table, x, one) for one in (cell, smaller) if one is not None]
        paired = pd.concat(exponents, axis=1).dropna().to_numpy(float)
        return paired[:, 0] - paired[:, 1:].sum(1)

    return estimate

"""Learning curves against the number of training images: power laws, and the images that a target takes."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from cnnexp.analysis.statistics import Cell, Interval, in_cell, interval, jackknife

STEEPEST = 5.0  # exponent that a fit may have


class PowerLaw(NamedTuple):
    """`error = scale * images**-exponent + offset`, each with its interval over seeds."""

    scale: Interval
    exponent: Interval
    offset: Interval


def curves(
    table: pd.DataFrame, metric: str, cell: Cell | None = None, x: str = "data.train_size"
) -> tuple[Float[np.ndarray, " sizes"], Float[np.ndarray, "seeds sizes"]]:
    """The sizes and, seed by seed, the metric at each of them; only seeds that have all."""
    wide = in_cell(table, cell or {}).pivot_table(index="seed", columns=x, values=metric).dropna()
    return wide.columns.to_numpy(float), wide.to_numpy(float)


def fit_power_law(
    sizes: Float[np.ndarray, " sizes"], errors: Float[np.ndarray, " sizes"]
) -> Float[np.ndarray, "3"]:
    """Scale, exponent and offset of the power law nearest in the logarithm of the error.

    The offset, what remains with any number of images, lies between 0 and the smallest error.
    """
    from scipy.optimize import least_squares

    logs, target = np.log(sizes), np.log(np.maximum(errors, 1e-6))
    least = float(np.exp(target.min()))

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.logaddexp(x[0] - x[1] * logs, np.log(x[2])) - target

    fits = []
    for share in (0.05, 0.5, 0.9):  # of the smallest error, where to start the offset
        slope, level = np.polyfit(logs, np.log(np.exp(target) - share * least), 1)
        start = [level, np.clip(-slope, 0.01, STEEPEST - 0.01), share * least]
        bounds = ([-50, 0, 1e-12], [50, STEEPEST, max(least, 2e-12)])
        fits.append(least_squares(residuals, start, bounds=bounds, x_scale=[1, 1, least]))
    best = min(fits, key=lambda fit: fit.cost)
    return np.array([np.exp(best.x[0]), best.x[1], best.x[2]])


def power_law(
    sizes: Float[np.ndarray, " sizes"], errors: Float[np.ndarray, "seeds sizes"], confidence: float = 0.95
) -> PowerLaw:
    """The power law of the mean curve, with jackknife intervals over seeds."""
    pseudo = [
        jackknife(lambda some, k=k: float(fit_power_law(sizes, some.mean(0))[k]), errors) for k in range(3)
    ]
    whole = fit_power_law(sizes, errors.mean(0))
    limits = [interval(values, confidence) for values in pseudo]
    return PowerLaw(*(Interval(float(w), lim.low, lim.high) for w, lim in zip(whole, limits, strict=True)))


def log_images_needed(
    sizes: Float[np.ndarray, " sizes"], accuracies: Float[np.ndarray, "seeds sizes"], target: float
) -> Float[np.ndarray, " seeds"]:
    """The logarithm (base 2) of the images at which each seed's curve first reaches a target.

    Between sizes the curve is a line over the logarithm; infinite where the target is not reached
    (censored), the smallest size where it is reached there already.
    """
    logs = np.log2(sizes)
    needed = []
    for curve in accuracies:
        reached = np.flatnonzero(curve >= target)
        if not len(reached):
            needed.append(np.inf)
        elif reached[0] == 0:
            needed.append(logs[0])
        else:
            i = reached[0]
            part = (target - curve[i - 1]) / (curve[i] - curve[i - 1])
            needed.append(logs[i - 1] + part * (logs[i] - logs[i - 1]))
    return np.array(needed)


def images_needed(
    sizes: Float[np.ndarray, " sizes"],
    accuracies: Float[np.ndarray, "seeds sizes"],
    target: float,
    confidence: float = 0.95,
) -> Interval:
    """Images at which a target is reached: the geometric mean over seeds and its interval.

    Where some seeds do not reach it with the most images, the upper limit is infinite, and the lower one is
    that of the same seeds as if they had reached it there; the value is infinite where half of them do not.
    """
    logs = log_images_needed(sizes, accuracies, target)
    censored = np.isinf(logs)
    least = interval(np.where(censored, np.log2(sizes[-1]), logs), confidence)
    if not censored.any():
        return Interval(*(float(2.0**limit) for limit in least))
    value = float(2.0 ** np.median(logs)) if censored.mean() < 0.5 else np.inf
    low = np.log2(sizes[-1]) if censored.all() else least.low
    return Interval(value, float(2.0**low), np.inf)

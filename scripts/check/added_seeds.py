#!/usr/bin/env python3
"""Print how often a claim is decided wrongly if seeds are added until it is: scripts/check/added_seeds.py

The true effect lies on the limit of the claim, so that any decision is wrong.
"""

import numpy as np

from cnnexp.analysis.statistics import student_quantile

SIMULATIONS = 20_000
SCHEDULES = {  # the seeds at each look
    "5 seeds, then 10": [5, 10],
    "5 seeds, then 10, 15 and 20": [5, 10, 15, 20],
    "5 seeds, then one more at a time, up to 20": list(range(5, 21)),
}


def count_errors(looks: list[int], *, halved: bool) -> float:
    """Return the fraction of simulated sweeps that are decided at any look.

    Args:
        looks: the number of seeds at each look.
        halved: whether the chance of an error is halved at each further look, as reports do.
    """
    values = np.random.default_rng(0).normal(size=(SIMULATIONS, looks[-1]))
    decided = np.zeros(SIMULATIONS, bool)
    for number, seeds in enumerate(looks):
        tail = 0.025 / (2**number if halved else 1)
        part = values[:, :seeds]
        errors = part.std(axis=1, ddof=1) / np.sqrt(seeds)
        decided |= np.abs(part.mean(axis=1)) > student_quantile(1 - tail, seeds - 1) * errors
    return float(decided.mean())


def main() -> None:
    """Print the table."""
    print("| seeds | every analysis at 95% | error halved at each addition |\n|---|---|---|")
    for name, looks in SCHEDULES.items():
        rates = [100 * count_errors(looks, halved=halved) for halved in (False, True)]
        print(f"| {name} | {rates[0]:.1f} | {rates[1]:.1f} |")


if __name__ == "__main__":
    main()

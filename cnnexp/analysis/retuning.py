"""The choice of hyperparameters made again: by other seeds, and among fewer values."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.special import comb

from cnnexp.analysis.cells import Rows, select_rows
from cnnexp.analysis.dataframe import varying_keys
from cnnexp.analysis.tuning import (
    Tuning,
    Values,
    collect_candidates,
    concatenate,
    distance_from_middle,
    find_diverged_values,
    select_criterion,
    select_values,
)
from cnnexp.config.execution import TUNED

SEED_STRIDE = 2**33  # between the seeds of versions of a dataframe; every seed is below 2**32
Histories = Mapping[str, Sequence[Mapping[str, int | float]]]  # the evaluations of each run, by its id


def choose_again(
    table: pd.DataFrame,
    draws: Int[np.ndarray, "draws seeds"],
    diverged: pd.DataFrame | None = None,
    stopped: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Choose the hyperparameters of each cell again, by the seeds of each of several draws.

    Args:
        table: The finished runs, one row per run.
        draws: Seeds, drawn with replacement.
        diverged: See `choose_hyperparameters`.
        stopped: The runs that were stopped early, whose values are not chosen here either.

    Returns:
        The runs of the values that are best for each draw, stacked. The seed at a place of a draw is numbered
        `draw * SEED_STRIDE + place`.
    """
    varying = varying_keys(table)
    tried = concatenate(table, stopped, diverged)
    keys, criterion = [key for key in TUNED if key in varying_keys(tried)], select_criterion(table)
    cell_keys = [key for key in varying if key not in keys]
    numbers = np.arange(len(draws))[:, None] * SEED_STRIDE + np.arange(draws.shape[1])
    rows, seeds = [], []  # positions in the dataframe, and the seeds that they get
    narrow = table[["seed", criterion, *keys, *cell_keys]].reset_index(drop=True)
    for values, cell in narrow.groupby(cell_keys, sort=True, dropna=False) if cell_keys else [((), narrow)]:
        diverged_values = find_diverged_values(diverged, dict(zip(cell_keys, values, strict=True)), keys)
        candidates = collect_candidates(cell, keys, criterion, diverged_values)
        choices = _choose_by_draw(candidates, draws)
        for index, candidate in enumerate(candidates):
            runs = select_values(cell, keys, candidate).drop_duplicates("seed")
            positions = pd.Index(runs["seed"]).get_indexer(pd.Index(draws[choices == index].ravel()))
            has_run = positions >= 0
            rows.append(runs.index.to_numpy()[positions[has_run]])
            seeds.append(numbers[choices == index].ravel()[has_run])
    return table.iloc[np.concatenate(rows)].assign(seed=np.concatenate(seeds)).reset_index(drop=True)


def _choose_by_draw(
    candidates: Mapping[Values, pd.Series], draws: Int[np.ndarray, "draws seeds"]
) -> Int[np.ndarray, " draws"]:
    """Return the index of the candidate with the best mean over the seeds of each draw."""
    names, accuracies = list(candidates), pd.concat(list(candidates.values()), axis=1).dropna()
    counts = (draws[..., None] == accuracies.index.to_numpy()).sum(1)  # of each seed in each draw
    means = counts @ accuracies.to_numpy() / np.maximum(counts.sum(1, keepdims=True), 1)
    means[counts.sum(1) == 0] = accuracies.to_numpy().mean(0)  # a draw of other seeds than all values have
    tie_break = [1e-9 * distance_from_middle(name, names) for name in names]
    return (means - tie_break).argmax(1)


def expect_accuracies(accuracies: Float[np.ndarray, "seeds values"]) -> Float[np.ndarray, "seeds values"]:
    """Compute the expected accuracy of the value that is chosen when only some of them have been tried.

    The mean is over all subsets of k of the n values (Dodge 2019, arXiv:1909.03004): the value of rank i is
    chosen from `comb(i - 1, k - 1)` of the `comb(n, k)` subsets.

    Args:
        accuracies: The accuracy of each value, the least preferred first: the last is chosen from all.

    Returns:
        The expected accuracy for k = 1 to n.

    Example:
        >>> expect_accuracies(np.array([[0.1, 0.4, 0.7]])).round(2).tolist()
        [[0.4, 0.6, 0.7]]
    """
    number = accuracies.shape[1]
    ranks, sizes = np.arange(number), np.arange(1, number + 1)[:, None]
    return accuracies @ (comb(ranks, sizes - 1) / comb(number, sizes)).T


def trace_budgets(
    tuning: Tuning, panels: Mapping[str, Rows], histories: Histories, metric: str
) -> dict[str, dict[str, pd.DataFrame]]:
    """Trace the accuracy of networks against the number of values tried, see `expect_accuracies`.

    Values that were stopped early, which have the accuracies of their last evaluation, are chosen only where
    none that was trained to the end is among those tried; values that diverged, only where no other is.

    Args:
        tuning: How the values were chosen.
        panels: The runs to show, by the title of each panel.
        histories: The evaluations of each run, by its id.
        metric: The name of the metric, without its split.

    Returns:
        By panel and tying, the expected metric on test images, one row per seed and one column per number of
        values. Cells of the same tying are averaged, up to the smallest of their numbers. Networks with one
        value are left out.
    """
    if not tuning.keys:
        return {}
    test = f"test/{metric}"
    cell_keys = [key for key in varying_keys(tuning.tried["finished"]) if key not in tuning.keys]
    runs = _collect_tried(tuning, histories, cell_keys, test)
    cell = runs.groupby(cell_keys, dropna=False).ngroup() if cell_keys else pd.Series(0, runs.index)
    by = "model.tying" if "model.tying" in tuning.table else "model.name"
    traced: dict[str, dict[str, pd.DataFrame]] = {}
    for title, rows in panels.items():
        chosen = select_rows(tuning.table, rows)
        for tying, of_tying in chosen.groupby(chosen[by].astype(str)):
            numbers = cell[runs["run_id"].isin(of_tying["run_id"])].unique()
            traces = [_trace_cell(runs[cell == number], tuning, test) for number in numbers]
            if smallest := min((trace.shape[1] for trace in traces if trace.shape[1] > 1), default=0):
                mean = pd.concat([trace.iloc[:, :smallest] for trace in traces]).groupby(level=0).mean()
                traced.setdefault(title, {})[str(tying)] = mean.dropna(axis="columns")
    return traced


def _collect_tried(tuning: Tuning, histories: Histories, cell_keys: Sequence[str], test: str) -> pd.DataFrame:
    """Collect the runs of all values, with `preference`: larger for values that are chosen before others."""
    stopped = tuning.tried["stopped"]
    if len(stopped):
        last = [histories[run_id][-1] for run_id in stopped["run_id"]]
        metrics = {name: [row.get(name, np.nan) for row in last] for name in (tuning.criterion, test)}
        stopped = stopped.assign(**metrics)
    ordered = (tuning.tried["diverged"], stopped, tuning.tried["finished"])
    columns = [*cell_keys, *tuning.keys, "run_id", "seed", tuning.criterion, test]
    frames = [
        runs.reindex(columns=columns).assign(preference=preference)
        for preference, runs in enumerate(ordered)
        if len(runs)
    ]
    return pd.concat(frames, ignore_index=True)


def _trace_cell(runs: pd.DataFrame, tuning: Tuning, test: str) -> pd.DataFrame:
    """Trace one cell: one row per seed that all values have, one column per number of values."""
    runs = runs.assign(value=runs.groupby(tuning.keys, dropna=False).ngroup())
    by_seed = runs.pivot_table(index="seed", columns="value", values=test).dropna()
    common = runs[runs["seed"].isin(by_seed.index)].groupby("value")
    order = pd.DataFrame({"preference": common["preference"].min(), "mean": common[tuning.criterion].mean()})
    order["from the middle"] = -abs(np.arange(len(order)) - (len(order) - 1) / 2)
    ranked = order.sort_values(list(map(str, order)), na_position="first").index
    expected = expect_accuracies(by_seed[ranked].to_numpy(float))
    return pd.DataFrame(expected, index=by_seed.index, columns=np.arange(1, len(ranked) + 1))

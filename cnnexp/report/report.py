"""The contents of a sweep's report: tables, verdicts and figures, gathered once for all of its formats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import pandas as pd

from cnnexp.analysis.cells import resolve_cell, select_cell, select_rows
from cnnexp.analysis.claims import Claim
from cnnexp.analysis.dataframe import (
    choose_metric,
    find_mixed_cells,
    measure_by,
    read_finished_runs,
    varying_keys,
)
from cnnexp.analysis.frozen import FrozenClaims
from cnnexp.analysis.retuning import trace_budgets
from cnnexp.analysis.tables import compare_tyings, distinguishing_keys, format_value, summarize_cells
from cnnexp.analysis.tuning import Tuning, tune
from cnnexp.analysis.variance import Resamples, make_resamples
from cnnexp.analysis.verdicts import Verdict, judge
from cnnexp.core.text import figure_text, format_keys, format_ranges, pluralize
from cnnexp.plots.figures import Drawing, draw_by_count, draw_by_images, draw_by_key
from cnnexp.plots.growth import draw_budgets, draw_learning_curves
from cnnexp.plots.layers import plot_kernels
from cnnexp.plots.rendering import RenderedFigure, start_rendering
from cnnexp.report.experiments import Experiment, choose_curves, load_experiment
from cnnexp.store.measurements import read_kernels
from cnnexp.store.runs import StoredRun, read_commands

MAX_NETWORKS = 6  # whose kernels are drawn
SETS = {"first": "seeds", "confirm": "fresh seeds"}  # that a report judges, and what it calls them
KERNELS_CAPTION = (
    "First filters of the first layer for the first input channel, drawn at their output positions in the "
    "middle of the image (one seed, after training; red: positive, blue: negative). All have one colour "
    "scale. A convolution has the same filter at every position."
)

UNITS_CAPTION = (
    " Of units that see the whole image, the weights of all pixels are drawn, each unit on its own colour "
    "scale."
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The contents of the report of a sweep.

    Attributes:
        folder: the folder into which it is written.
        experiment: the question, claims and figures of the sweep's experiment.
        runs: all runs that can be read, finished or not.
        corrupt: corrupt files of the other runs.
        mixed_cells: one line for each cell whose runs were computed differently, see `find_mixed_cells`.
        table: one row per finished run, each cell at its chosen learning rate and weight decay.
        metric: the metric that claims, figures and the comparison are measured by, see `choose_metric`.
        tuning: how these were chosen.
        cells: one row per cell.
        comparison: one row per tying that is compared with `shared`, see `compare_tyings`.
        verdicts: those on the claims that were measured, in the order of the experiment; on the fresh seeds
            where there are any.
        first_verdicts: those on the same claims on the first seeds, where `verdicts` are on fresh ones.
        seeds: the seeds of the runs in `table`, on which the `verdicts` are based, in words.
        counted_variance: a sentence on the sources of variance that the intervals of `verdicts` account for.
        notes: what a reader must know about the claims: added seeds, and claims that were dropped.
        unmeasured_claims: the claims for which the sweep lacks cells.
        figures: the caption and the images of each figure, by its name.
        commands: the commands that made the runs.
    """

    folder: Path
    experiment: Experiment
    runs: list[StoredRun]
    corrupt: list[Path]
    mixed_cells: list[str]
    table: pd.DataFrame
    metric: str
    tuning: Tuning
    cells: pd.DataFrame
    comparison: pd.DataFrame
    verdicts: list[Verdict]
    first_verdicts: list[Verdict]
    seeds: str
    counted_variance: str
    notes: list[str]
    unmeasured_claims: list[Claim]
    figures: Mapping[str, tuple[str, RenderedFigure]]
    commands: list[str]

    @property
    def stopping_rule(self) -> str:
        """The steps or epochs for which runs were trained, in words."""
        steps = sorted(int(step) for step in self.table["steps"].unique())
        if len(steps) == 1:
            return pluralize(steps[0], "step")
        epochs = sorted(float(epoch) for epoch in self.table["epochs"].round(3).unique())
        return f"{epochs[0]:g} epochs" if len(epochs) == 1 else f"{steps[0]:,} to {steps[-1]:,} steps"


def make_report(
    folder: Path,
    config_folder: Path | None = None,
    metric: str | None = None,
    *,
    with_figures: bool = True,
) -> Report:
    """Judge the claims, tabulate the cells and draw the figures of a sweep.

    Args:
        folder: the sweep's.
        config_folder: the user's folder of configuration files, see `load_experiment`.
        metric: the metric that claims and figures are measured by; None: that of the experiment.
        with_figures: whether to draw the figures, which takes most of the time.

    Returns:
        The contents of the report, of which nothing is written yet.

    Raises:
        UsageError: there is no such sweep, no finished run in it, or the metric was not measured.
    """
    runs, corrupt = read_finished_runs(folder)
    by_set = _split_by_seeds(runs)
    headline = list(by_set)[-1]  # the fresh seeds, where there are any
    tuning = tune(by_set[headline])
    table = tuning.table
    experiment = load_experiment(str(table["experiment"].iloc[0]), folder.parent, config_folder)
    metric = choose_metric(table, metric or experiment.metric)
    measured = measure_by(table, metric)
    drawings = _make_drawings(experiment, measured, runs, metric, tuning) if with_figures else {}
    with start_rendering(drawings, measured) as wait_for_figures:  # by other processes, while this one judges
        resamples = make_resamples(by_set[headline], tuning, metric)
        judged = _judge_set(folder, headline, measured, experiment, metric, resamples)
        first = judged
        if headline != "first" and "first" in by_set:
            first_tuning = tune(by_set["first"])
            first_table = measure_by(first_tuning.table, metric)
            first_resamples = make_resamples(by_set["first"], first_tuning, metric)
            first = _judge_set(folder, "first", first_table, experiment, metric, first_resamples)
        cells, comparison = summarize_cells(table, metric=metric), compare_tyings(measured)
        figures = wait_for_figures()
    pairs = list(zip(judged.verdicts, first.verdicts, strict=True))
    is_measured = [any(verdict.interval is not None for verdict in pair) for pair in pairs]
    rows = list(compress(pairs, is_measured))
    return Report(
        folder=folder / "report",
        experiment=experiment,
        runs=runs,
        corrupt=corrupt,
        mixed_cells=find_mixed_cells(table),
        table=table,
        metric=metric,
        tuning=tuning,
        cells=cells,
        comparison=comparison,
        verdicts=[verdict for verdict, _ in rows],
        first_verdicts=[verdict for _, verdict in rows] if first is not judged else [],
        seeds=f"{SETS[headline]} {format_ranges(set(table['seed']))}",
        counted_variance=resamples.describe(),
        notes=list(dict.fromkeys([*judged.notes, *first.notes])),
        unmeasured_claims=[
            pair[0].claim for pair, known in zip(pairs, is_measured, strict=True) if not known
        ],
        figures={name: (drawings[name].caption, figure) for name, figure in figures.items()},
        commands=read_commands(folder) or [_reconstruct_command(table, folder.name)],
    )


def _split_by_seeds(runs: Sequence[StoredRun]) -> dict[str, list[StoredRun]]:
    """Split runs by their set of seeds, in the order of `SETS`; a set without a finished run is left out."""
    fresh = [run for run in runs if run.config.get("seeds") == "confirm"]
    first = [run for run in runs if run.config.get("seeds") != "confirm"]
    sets = dict(zip(SETS, (first, fresh), strict=True))
    return {name: of_set for name, of_set in sets.items() if any(run.status == "finished" for run in of_set)}


@dataclass(frozen=True)
class _Judgement:
    """The verdicts on all claims on one set of seeds, and what a reader must know about them."""

    verdicts: Sequence[Verdict]
    notes: Sequence[str]


def _judge_set(
    folder: Path,
    seed_set: str,
    table: pd.DataFrame,
    experiment: Experiment,
    metric: str,
    resamples: Resamples,
) -> _Judgement:
    """Judge the claims of an experiment on one set of seeds, against what was frozen before its first run.

    Args:
        folder: the folder of the sweep.
        seed_set: the name of the set.
        table: its runs, one row per run, each cell at its tuned values.
        experiment: the experiment.
        metric: the metric by which the claims are measured.
        resamples: versions of `table`, for the variance by test images and tuning.
    """
    claims = experiment.claims
    default = choose_metric(table, experiment.metric)
    frozen_metric = experiment.metric if metric == default else metric
    seeds_of_runs = dict(zip(table["run_id"], table["seed"], strict=True))
    frozen = FrozenClaims(folder, seed_set, seeds_of_runs, claims, frozen_metric)
    verdicts = []
    for verdict in judge(claims, table, frozen.confidence, resamples=resamples):
        freeze = frozen.judge_freeze(verdict.claim)
        is_seen = not frozen.sizes or any(size in verdict.claim.seen_sizes for size in frozen.sizes)
        is_known = seed_set == "first" and is_seen and bool(verdict.claim.exploratory)
        known = [verdict.claim.exploratory] if is_known else []
        reasons = "; ".join([*freeze.changes, *known])
        verdicts.append(replace(verdict, exploratory=reasons, frozen=str(freeze)))
    dropped = [
        f"This claim was frozen before the first run, and is no longer in the experiment: {sentence}"
        for sentence in frozen.list_dropped()
    ]
    return _Judgement(verdicts, [*frozen.describe_added_seeds(), *dropped])


def _make_drawings(
    experiment: Experiment, table: pd.DataFrame, runs: Sequence[StoredRun], metric: str, tuning: Tuning
) -> dict[str, Drawing]:
    """Choose the figures for which a sweep has runs, in the order of the report."""
    drawings = {
        name: drawing
        for name, drawing in (experiment.figures or make_default_drawings(table)).items()
        if drawing.needs(table)
    }
    if curves := choose_curves(experiment, table):
        histories = {run.run_id: run.history for run in runs}
        shown = pd.concat([select_rows(table, rows) for rows in curves.values()])["run_id"]
        if max((len(histories[run_id]) for run_id in shown), default=0) > 2:  # or a line from start to end
            drawings["learning_curves"] = draw_learning_curves(curves, histories, metric)
        if budgets := trace_budgets(tuning, curves, histories, metric):
            drawings["accuracy_by_budget"] = draw_budgets(budgets, metric)
    if kernels := _select_kernels(experiment, table, runs):
        sees_image = any(k.shape[:2] == (1, 1) for layers in kernels.values() for k in layers.values())
        caption = KERNELS_CAPTION + (UNITS_CAPTION if sees_image else "")
        drawings["kernels"] = Drawing(draw=lambda _: plot_kernels(kernels), caption=caption)
    return drawings


def make_default_drawings(table: pd.DataFrame) -> Mapping[str, Drawing]:
    """Choose the figures of a sweep whose experiment has none of its own."""
    drawings = {}
    if "data.train_size" in table and table["data.train_size"].nunique() > 1:
        drawings["accuracy_by_images"] = draw_by_images()
    if "model.tying" in table and table["params/total"].nunique() > 1:
        drawings["accuracy_by_params"] = draw_by_count()
    sizes = table["model.kernel_size"] if "model.kernel_size" in table else pd.Series(dtype=float)
    if sizes.nunique() > 1 and pd.api.types.is_numeric_dtype(sizes):
        drawings["accuracy_by_kernel_size"] = draw_by_key("model.kernel_size", "kernel size")
    return drawings


def _select_kernels(
    experiment: Experiment, table: pd.DataFrame, runs: Sequence[StoredRun]
) -> dict[str, dict]:
    """Read the first layer's kernels in one run of each network, of the runs that stored any.

    Returns:
        By the network's label, the kernels by the name of the layer, as `plot_kernels` takes them.
    """
    folders = {run.run_id: run.folder for run in runs}
    sizes = [key for key in ("data.train_size",) if key in table]
    ordered = table.sort_values([*sizes, "seed"], ascending=[False] * len(sizes) + [True])
    named = {
        label: select_cell(ordered, resolve_cell(rule, table)) for label, rule in experiment.kernels.items()
    }
    kernels: dict[str, dict] = {}
    for label, network in (named or _group_networks(ordered)).items():
        layers = read_kernels(folders[network["run_id"].iloc[0]])[1] if len(network) else {}
        if layers and len(kernels) < MAX_NETWORKS:
            kernels[figure_text(label)] = dict(list(layers.items())[:1])
    return kernels


def _group_networks(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Group runs by the keys `model.*` that vary; return the runs of each network by its label."""
    keys = [key for key in varying_keys(table) if key.startswith("model.")]
    short = format_keys(distinguishing_keys(table[keys].drop_duplicates())).items()
    groups = {}
    for _, network in table.groupby(keys, sort=True) if keys else [((), table)]:
        values = (f"{name}={format_value(network[key].iloc[0])}" for key, name in short)
        groups[" ".join(values) or str(table["model.name"].iloc[0])] = network
    return groups


def _reconstruct_command(table: pd.DataFrame, name: str) -> str:
    """Reconstruct a command for a sweep whose commands were not stored."""
    experiment = str(table["experiment"].iloc[0])
    if experiment != "default":
        return f"cnnexp run experiment={experiment}" + (f" name={name}" if name != experiment else "")
    choices = (f"{key}={','.join(map(str, table[key].unique()))}" for key in [*varying_keys(table), "seed"])
    return " ".join(["cnnexp run", *choices]) + "  # add the constant keys of the protocol"

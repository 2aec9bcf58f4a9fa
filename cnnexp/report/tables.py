"""The tables of a report as dataframes of text, its common sentences, and a network's table of layers."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from cnnexp.analysis.dataframe import constant_keys, make_dataframe, varying_keys
from cnnexp.analysis.tables import distinguishing_keys, format_percent, format_value, title_metric
from cnnexp.analysis.tuning import Tuning
from cnnexp.analysis.verdicts import Verdict
from cnnexp.config import RunConfig
from cnnexp.core.text import duration_text, format_keys, pluralize
from cnnexp.models.layers import LayerSpec, NetworkSpec, OtherLayers
from cnnexp.report.report import Report
from cnnexp.store.files import read_json
from cnnexp.store.runs import STATUS, StoredRun

VERDICT_COLUMNS = [
    "claim",
    "verdict",
    "effect",
    "standard errors",
    "P(A > B)",
    "verdict on the first seeds",
    "effect on the first seeds",
    "expected",
    "measured by",
    "seeds that agree",
    "would decide",
    "scope",
    "frozen",
    "published",
    "source",
    "exploratory",
]
OPTIONAL_COLUMNS = [*VERDICT_COLUMNS[3:7], "would decide", "frozen", "published", "exploratory"]
LAYER_COLUMNS = [
    "layer",
    "output",
    "tying",
    "params",
    "weights",
    "connections",
    "sparsity",
    "sharing",
    "MACs",
    "memory",
]
COUNT_COLUMNS = ("params", "weights", "connections", "MACs", "memory")


def tabulate_verdicts(verdicts: Sequence[Verdict], first: Sequence[Verdict] = ()) -> pd.DataFrame:
    """Tabulate verdicts, one row per claim.

    Args:
        verdicts: those on the claims that were measured.
        first: those on the same claims on the first seeds, where `verdicts` are on fresh ones.

    Returns:
        The columns of `VERDICT_COLUMNS`, without those that would be empty, and without the source or the
        scope where all claims have the same one.
    """
    rows = [
        {
            "claim": verdict.claim.sentence,
            "verdict": verdict.marked_outcome,
            "effect": verdict.effect,
            "standard errors": verdict.errors,
            "P(A > B)": verdict.win_rate,
            "verdict on the first seeds": earlier.marked_outcome if earlier else "",
            "effect on the first seeds": earlier.effect if earlier else "",
            "expected": verdict.condition,
            "measured by": verdict.claim.quantity,
            "seeds that agree": "" if verdict.claim.exact else f"{verdict.agreeing_seeds} of {verdict.seeds}",
            "would decide": verdict.advice,
            "scope": verdict.scope,
            "frozen": verdict.frozen,
            "published": verdict.claim.published,
            "source": verdict.claim.source,
            "exploratory": verdict.exploratory,
        }
        for verdict, earlier in zip_longest(verdicts, first)
    ]
    table = pd.DataFrame(rows, columns=VERDICT_COLUMNS)
    omitted = [column for column in OPTIONAL_COLUMNS if (table[column] == "").all()]
    return table.drop(columns=omitted + [key for key in ("source", "scope") if table[key].nunique() == 1])


def tabulate_counts(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Tabulate what is true by construction: counts, which no data could refute.

    Args:
        verdicts: those on claims that are exact; no other is shown.
    """
    rows = [
        {
            "statement": verdict.claim.sentence,
            "count": verdict.effect,
            "of": verdict.claim.quantity,
            "as stated": "yes" if verdict.outcome == "count" else "no",
        }
        for verdict in verdicts
        if verdict.claim.exact
    ]
    return pd.DataFrame(rows)


def tabulate_comparison(comparison: pd.DataFrame) -> pd.DataFrame:
    """Tabulate how often and by how much `shared` is more accurate than each other tying.

    Args:
        comparison: see `compare_tyings`.
    """
    differences, probabilities = (
        zip(*(comparison[f"{name}{limit}"] for limit in ("", "/low", "/high")), strict=True)
        for name in ("difference", "probability")
    )
    return pd.DataFrame(
        {
            "shared against": comparison["model.tying"].map(format_value),
            "seeds": comparison["seeds"].astype(str),
            "difference": [format_percent(*estimate) for estimate in differences],
            "P(shared > other)": [
                f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in probabilities
            ],
        }
    )


def tabulate_tuning(tuning: Tuning) -> pd.DataFrame:
    """Tabulate the chosen hyperparameters, one row per cell."""
    choices, criterion = tuning.choices, tuning.criterion
    shown = choices.drop(columns="tried").assign(
        **{criterion: (100 * choices[criterion]).map("{:.1f}".format)}
    )
    shown = shown[[*distinguishing_keys(shown), criterion, "at_edge"]].map(format_value)
    titles = format_keys(list(shown.columns))
    titles |= {criterion: title_metric(criterion), "at_edge": "at the edge"}
    return shown.rename(columns=titles)


def tabulate_stopped(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """Tabulate the runs that successive halving stopped: one row per cell and value, with when and why.

    Returns:
        An empty table where nothing was stopped.
    """
    stopped = [run for run in runs if run.status == "stopped" and run.stop]
    if not stopped:
        return pd.DataFrame()
    table = make_dataframe(stopped, "stopped")
    keys = [key for key in varying_keys(make_dataframe(runs, status=None)) if key in table]
    names = format_keys(keys).values()
    rows = []
    by_id = {run.run_id: run.stop for run in stopped}
    for values, cell in table.groupby(keys, sort=True, dropna=False) if keys else [((), table)]:
        stop = by_id[cell["run_id"].iloc[0]]
        assert stop is not None
        rows.append(
            {
                **{name: format_value(value) for name, value in zip(names, values, strict=True)},
                "runs": str(len(cell)),
                "rung": f"{stop.rung} of {stop.rungs}",
                "step": f"{stop.step:,}",
                f"mean {stop.by}": _format_metric(stop.value),
                "worst kept": _format_metric(stop.cut),
            }
        )
    return pd.DataFrame(rows)


def tabulate_parameters(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the parameters of each layer and the multiply-accumulates, one row per network.

    Args:
        table: one row per finished run.
    """
    keys = [key for key in varying_keys(table) if key.startswith("model.")] or ["model.name"]
    counts = [name for name in table.columns if name.startswith("params/")]
    networks = table.drop_duplicates([*keys, *counts])[[*keys, *counts, "macs"]].sort_values(keys)
    titles = {name: name.removeprefix("params/").replace("total", "parameters") for name in counts}
    titles |= format_keys(keys) | {"macs": "MACs"}
    numbers = networks[[*counts, "macs"]].map(lambda n: "" if pd.isna(n) else f"{int(n):,}")
    return pd.concat([networks[keys].astype(str), numbers], axis=1).rename(columns=titles)


def tabulate_protocol(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the configuration keys that all runs have in common, with their values.

    Args:
        table: one row per finished run.
    """
    keys = constant_keys(table)
    return pd.DataFrame({"key": list(keys), "value": list(keys.values())})


def list_cell_runs(table: pd.DataFrame) -> list[list[tuple[int, str]]]:
    """List the seed and the id of each run of a cell, in the order of the rows of `summarize_cells`.

    Args:
        table: one row per finished run.
    """
    keys = varying_keys(table) or ["model.name"]
    return [
        sorted(zip(map(int, cell["seed"]), cell["run_id"], strict=True))
        for _, cell in table.groupby(keys, sort=True, dropna=False)
    ]


def summarize_runs(report: Report) -> str:
    """Summarise in one line how many runs there are, how they ended, and when and where they were trained."""
    counts = Counter(run.status for run in report.runs)
    states = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    corrupt = len({file.parent for file in report.corrupt})
    excluded = f"; {pluralize(corrupt, 'corrupt run')} left out" if corrupt else ""
    seconds = sum(run.summary.get("wall_seconds") or 0 for run in report.runs)
    devices = " and ".join(sorted(map(str, report.table["device"].unique())))
    training = f"{duration_text(seconds)} of training on {devices}"
    dates = _describe_dates([run.folder for run in report.runs])
    return f"{pluralize(len(report.runs), 'run')}: {states}{excluded}; {training}.{dates}"


def _describe_dates(folders: Sequence[Path]) -> str:
    """Say when the first run started and the last one ended; empty where their statuses do not say so."""
    statuses = [read_json(folder / STATUS) for folder in folders]
    start = min((status["started"] for status in statuses if "started" in status), default=None)
    end = max((status["updated"] for status in statuses if "updated" in status), default=None)
    if not start or not end:
        return ""
    day = datetime.fromtimestamp(start, UTC).date().isoformat()
    return f" The first run started on {day}; the last one ended {duration_text(end - start)} later."


def list_versions(table: pd.DataFrame) -> list[str]:
    """List the package versions, devices and Git revisions with which runs were made.

    Args:
        table: one row per finished run.
    """
    columns = [*(key for key in table.columns if key.startswith("version/")), "device", "git_revision"]
    return [
        f"{column.rpartition('/')[2]} {' or '.join(map(str, table[column].unique()))}" for column in columns
    ]


def tabulate_layers(layers: NetworkSpec, config: RunConfig) -> list[dict[str, Any]]:
    """Tabulate the layers of a network, and then their total.

    Args:
        layers: the network.
        config: gives the number of values that the optimiser stores per weight.

    Returns:
        The values of `LAYER_COLUMNS` for each row; memory is in bytes.
    """
    rows = [_tabulate_layer(layer, config) for layer in layers]
    tied = all(not isinstance(layer, OtherLayers) for layer in layers)
    unit_pairs = sum(layer.geometry.in_units * layer.geometry.out_units for layer in layers)
    sums = {column: sum(row[column] for row in rows) for column in COUNT_COLUMNS}
    ratios = {
        "sparsity": 1 - sums["connections"] / unit_pairs if tied else "",
        "sharing": sums["connections"] / sums["weights"] if tied else "",
    }
    rows.append({"layer": "total", "output": "", "tying": ""} | sums | ratios)
    return rows


def _tabulate_layer(layer: LayerSpec, config: RunConfig) -> dict[str, Any]:
    counts, geometry = layer.counts, layer.geometry
    flat = geometry.covers_image or layer.tying.kind == "dense"
    tying = "dense" if flat else f"{layer.tying} {geometry.kernel_size[0]}x{geometry.kernel_size[1]}"
    if geometry.connectivity == "random" and not flat:
        tying += " random"
    other = isinstance(layer, OtherLayers)
    if other:
        tying = "not tied"
    return {
        "layer": layer.name,
        "output": "x".join(map(str, geometry.out_shape))
        if geometry.positions > 1
        else str(geometry.features),
        "tying": tying,
        "params": counts.params,
        "weights": counts.weights,
        "connections": counts.connections,
        "sparsity": "" if other else counts.sparsity,
        "sharing": "" if other else counts.sharing,
        "MACs": counts.macs,
        "memory": _count_bytes(layer, config),
    }


def _count_bytes(layer: LayerSpec, config: RunConfig) -> int:
    """Count the bytes of a layer's parameters and of the optimiser's state for them."""
    from cnnexp.training.named_optimizers import count_slots  # a report needs no JAX, which this imports

    itemsize = {"float32": 4, "bfloat16": 2, "float16": 2}[layer.param_dtype]
    slots = count_slots(config.optim, loads_user_code=False)  # the results may be somebody else's
    return round(layer.counts.params * (itemsize + 4 * slots))  # optimisers keep float32


def _format_metric(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"

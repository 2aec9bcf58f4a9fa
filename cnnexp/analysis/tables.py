"""Tables of cells, for people and for papers: terminal, Markdown, LaTeX, CSV, JSON, Parquet."""

import io
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from cnnexp.analysis.cells import pair_cells
from cnnexp.analysis.dataframe import FRACTIONS, choose_metric, varying_keys
from cnnexp.analysis.json_rows import encode_json_rows
from cnnexp.analysis.statistics import interquartile_mean, interval, probability_greater
from cnnexp.config.execution import TUNED
from cnnexp.config.sections import LABEL_ACCURACY
from cnnexp.core.text import format_keys, markdown_text

if TYPE_CHECKING:
    from rich.table import Table

Format = Literal["table", "csv", "json", "parquet", "latex", "markdown"]
NUMBER = re.compile(
    r"(?:[≥≤<>] ?)?[+−-]?(?:\d[\d,]*\.?\d*|∞)(?:e[+-]?\d+)?(?:[%x]|(?=[ \[])|$)"
)  # and its interval
EXACT_MATCH = "test exact match"  # the title of the accuracy where images have several labels
MIN_SEEDS_FOR_IQM = 4  # with fewer, the interquartile mean is the mean


def summarize_cells(
    table: pd.DataFrame, keys: Sequence[str] | None = None, metric: str | None = None
) -> pd.DataFrame:
    """Summarise each cell in one row: its keys, counts, seeds, and each metric's mean and interval limits.

    Args:
        table: One row per run.
        keys: The keys that tell cells apart; all that vary if None.
        metric: The metric that comes first; None: that of `choose_metric`.
    """
    keys = list(keys or varying_keys(table) or ["model.name"])
    metric = metric or choose_metric(table)
    columns = list(list_metrics(table, metric))
    used = dict.fromkeys([*keys, "seed", "params/total", "macs", *columns])
    rows = []
    for values, cell in table[list(used)].groupby(keys, sort=True, dropna=False):  # to copy all is slow
        row: dict[str, object] = dict(
            zip(keys, values if isinstance(values, tuple) else (values,), strict=True)
        )
        row |= {
            name: int(cell[name].iloc[0]) for name in ("params/total", "macs") if cell[name].nunique() == 1
        }
        by_seed = cell.groupby("seed")[columns].mean()
        row["seeds"] = len(by_seed)
        for column in columns:
            estimate = interval(by_seed[column].dropna().to_numpy())
            low, high = estimate[1:]
            if is_fraction(column):  # the interval of Student's t may leave the range
                low, high = np.clip((low, high), -1 if column.startswith("gap") else 0, 1)
            row |= {column: estimate.value, f"{column}/low": low, f"{column}/high": high}
        row[f"test/{metric}/iqm"] = interquartile_mean(by_seed[f"test/{metric}"].to_numpy())
        rows.append(row)
    return pd.DataFrame(rows)


def list_metrics(table: pd.DataFrame, metric: str | None = None) -> dict[str, str]:
    """List the metrics that tables show, with their titles: the leading one, and further ones on test images.

    Args:
        table: One row per run, or the rows of `summarize_cells`.
        metric: The leading metric; None: that of `choose_metric`, or that of `summarize_cells`.
    """
    names = [column.removeprefix("test/") for column in map(str, table.columns) if column.startswith("test/")]
    measured = [name for name in names if f"train/{name}" in table or f"test/{name}/low" in table]
    measured = [name for name in measured if "/" not in name and name != "loss"]
    if metric is None:
        summarized = [name for name in measured if f"train/{name}/low" in table]
        metric = summarized[0] if summarized else choose_metric(table)
    columns = [f"{split}/{metric}" for split in ("train", "test", "gap") if f"{split}/{metric}" in table]
    columns += [f"test/{name}" for name in measured if name != metric]
    has_several_labels = metric != "accuracy" and LABEL_ACCURACY in measured
    renamed = {"test/accuracy": EXACT_MATCH} if has_several_labels else {}
    return {column: renamed.get(column) or title_metric(column) for column in columns}


def title_metric(metric: str) -> str:
    """Return the title of a metric in tables."""
    return "gap" if metric.startswith("gap/") else metric.replace("/", " ").replace("_", " ")


def is_fraction(metric: str) -> bool:
    """Return whether a metric is an accuracy or another fraction, or a difference of two."""
    return metric.partition("/")[2] in ("accuracy", *FRACTIONS)


def compare_tyings(table: pd.DataFrame) -> pd.DataFrame:
    """Compare the test accuracy of `shared` with that of every other tying, one row per other tying.

    Runs are paired by seed and by all other keys that vary, and averaged over the latter, see `pair_cells`.
    Tyings that have no such pair are left out.

    Args:
        table: one row per finished run.

    Returns:
        The columns `model.tying`, `seeds`, `difference` (shared − other) and `probability` (of shared >
        other, over seeds), the latter two with the limits of their intervals in `/low` and `/high`. Without
        `shared` there are no rows.
    """
    tyings = table["model.tying"].astype(str).unique() if "model.tying" in table else []
    rows = []
    for tying in tyings if "shared" in tyings else ():
        values = pair_cells(table, "test/accuracy", {"model.tying": "shared"}, {"model.tying": tying})
        if tying == "shared" or not len(values):
            continue
        row: dict[str, object] = {"model.tying": tying, "seeds": len(values)}
        estimates = {
            "difference": interval(values[:, 0] - values[:, 1]),
            "probability": probability_greater(values),
        }
        for name, estimate in estimates.items():
            row |= {name: estimate.value, f"{name}/low": estimate.low, f"{name}/high": estimate.high}
        rows.append(row)
    return pd.DataFrame(rows)


def format_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """Format the rows of `summarize_cells` for people: an interval in one column, short names."""
    names = format_keys(distinguishing_keys(cells))
    shown = {name: cells[key].map(format_value) for key, name in names.items()}
    for column, title in (("params/total", "parameters"), ("macs", "MACs")):
        if column in cells:
            shown[title] = cells[column].map(lambda n: "several" if pd.isna(n) else f"{int(n):,}")
    shown["seeds"] = cells["seeds"].astype(str)
    for metric, title in list_metrics(cells).items():
        triples = zip(cells[metric], cells[f"{metric}/low"], cells[f"{metric}/high"], strict=True)
        estimates = [format_estimate(metric, *triple) for triple in triples]
        shown[title] = pd.Series(estimates, index=cells.index)
        if f"{metric}/iqm" in cells and cells["seeds"].max() >= MIN_SEEDS_FOR_IQM:
            shown["test IQM"] = (100 * cells[f"{metric}/iqm"]).map("{:.1f}".format)
    return pd.DataFrame(shown)


def distinguishing_keys(cells: pd.DataFrame) -> list[str]:
    """List the fewest keys that tell all cells apart, and those that were tuned.

    Where parts of a sweep have data or networks of their own, many keys change together. Lists are left out
    first, then what only some cells have, then what has the longest values; names of data and networks last.
    """
    keys = [key for key in cells.columns if "." in key]
    kept = [key for key in keys if key not in TUNED]
    texts = cells[kept].map(format_value)

    def rank(key: str) -> tuple[bool, bool, bool, int]:
        values = list(texts[key])
        is_list = any(text.startswith("[") for text in values)
        return key.endswith(".name"), not is_list, all(values), -max(map(len, values))

    for key in sorted(kept, key=rank):
        others = [other for other in kept if other != key]
        if key != "model.tying" and others and not texts.duplicated(others).any():
            kept = others
    return [key for key in keys if key in kept or key in TUNED]


def format_percent(value: float, low: float, high: float) -> str:
    """Format an accuracy, or a difference of two, with its interval, in hundredths.

    Example:
        >>> format_percent(0.5, 0.25, 0.75)
        '50.0 [25.0, 75.0]'
    """
    return f"{100 * value:.1f}" + ("" if pd.isna(low) else f" [{100 * low:.1f}, {100 * high:.1f}]")


def format_estimate(metric: str, value: float, low: float = np.nan, high: float = np.nan) -> str:
    """Format a metric with its interval, if it has one: fractions in hundredths, others as they are."""
    if pd.isna(value):
        return ""
    if is_fraction(metric):
        return format_percent(value, low, high)
    return f"{value:.4g}" + ("" if pd.isna(low) else f" [{low:.4g}, {high:.4g}]")


def markdown_table(table: pd.DataFrame, marked: Collection[str] = ()) -> str:
    """Format a table in Markdown, escaped so that its text is shown unchanged; numbers lie on the right.

    Args:
        table: The texts.
        marked: The columns whose text is Markdown already.
    """
    shown = [name if name in marked else markdown_text(name) for name in table.columns]
    texts = table.map(format_value)
    rules = ["---:" if _has_numbers(texts.iloc[:, i]) else "---" for i in range(len(table.columns))]
    lines = [shown, rules]
    for row in texts.itertuples(index=False):
        cells = zip(table.columns, row, strict=True)
        lines.append([text if name in marked else markdown_text(text) for name, text in cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex_table(table: pd.DataFrame, columns: str | None = None) -> str:
    """Format a table in LaTeX, with the rules of the package booktabs.

    Args:
        table: The texts.
        columns: LaTeX's format of the columns; if None, numbers to the right and others to the left.
    """
    escaped = table.rename(columns=_latex).map(lambda value: _latex(format_value(value)))
    numbers = [column for column in table.columns if all(map(_is_number, table[column]))]
    columns = columns or "".join("r" if column in numbers else "l" for column in table.columns)
    return escaped.style.hide(axis="index").to_latex(hrules=True, column_format=columns)


def print_table(shown: pd.DataFrame, title: str | None = None) -> None:
    """Print a table in the terminal, see `draw_table`."""
    from rich.console import Console

    Console().print(draw_table(shown, title))


def draw_table(shown: pd.DataFrame, title: str | None = None) -> "Table":
    """Draw a table for the terminal, with numbers aligned to the right.

    Args:
        shown: The texts.
        title: The line above the table.
    """
    from rich.table import Table
    from rich.text import Text

    drawn = Table(
        title=title and Text(title), title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    for index, column in enumerate(shown.columns):
        header = str(column).replace("_", "\n").replace(" ", "\n")
        drawn.add_column(Text(header), justify="left" if index == 0 else "right", overflow="fold")
    for row in shown.itertuples(index=False):
        drawn.add_row(*(Text(str(value)) for value in row))
    return drawn


def encode_table(table: pd.DataFrame, shown: pd.DataFrame, form: Format) -> bytes:
    """Encode a table in a file format.

    Args:
        table: Every number, for the formats that programs read.
        shown: The same as text, for the formats that people read.
        form: Any but `table`, which is for the terminal.
    """
    if form == "parquet":
        file = io.BytesIO()
        table.to_parquet(file, index=False)
        return file.getvalue()
    if form == "csv":
        return table.to_csv(index=False).encode()
    if form == "json":
        return encode_json_rows(table)
    return (markdown_table(shown) + "\n" if form == "markdown" else latex_table(shown)).encode()


def format_value(value: object) -> str:
    """Format a value for people: `10,000`, and `local, shared` for the tyings of two layers."""
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:,}"
    text = str(value)
    return text[1:-1].replace("'", "") if text.startswith("['") else text


SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "−": "$-$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "σ": r"$\sigma$",
    "<": "$<$",
    ">": "$>$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "…": r"\ldots{}",
    "∞": r"$\infty$",
    "Ω": r"$\Omega$",
    "²": "$^2$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


def _latex(text: object) -> str:
    escaped = "".join(SPECIAL.get(character, character) for character in str(text))
    # After \\ or a rule, LaTeX takes a bracket or a star for an argument.
    return f"{{{escaped[0]}}}{escaped[1:]}" if escaped.startswith(("[", "*")) else escaped


def _has_numbers(texts: pd.Series) -> bool:
    """Return whether all texts of a column that are not empty begin with a number."""
    filled = [text for text in texts if text]
    return bool(filled) and all(map(NUMBER.match, filled))


def _is_number(value: object) -> bool:
    return format_value(value).replace(",", "").replace("%", "")[:1].lstrip("+-−").isdigit() or isinstance(
        value, int | float
    )

"""The screen of `cnnexp watch`: counts, table of cells and learning curves, drawn with characters."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cnnexp.analysis.cell_curves import Curve
from cnnexp.analysis.progress import WITH_RESULT
from cnnexp.analysis.tables import draw_table, is_fraction
from cnnexp.cli.snapshot import Snapshot, choose_curves

MAX_ROWS, MAX_PANELS = 40, 12  # of a screen that is as high as it needs to be
PANEL_COLUMNS, PANEL_GAP = 36, 2  # characters, at least and between two panels
BAR_COLUMNS = 40
TITLE_ROWS = 3  # above the curves
CANVAS_ROWS = 4  # characters
PANEL_ROWS = CANVAS_ROWS + 4  # with the title, the counts, the axis and an empty line
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, by row and column
BRAILLE = 0x2800


def draw_screen(snapshot: Snapshot, console: Console, rows: int | None = None) -> RenderableType:
    """Draw a snapshot.

    Args:
        snapshot: The sweep at one moment.
        console: The terminal, whose width is used.
        rows: The height of the screen; None: as high as needed, with at most `MAX_ROWS` rows of the table
            and `MAX_PANELS` curves.
    """
    parts: list[RenderableType] = [_draw_header(snapshot, console)]
    parts += [
        Text(note, style="yellow", overflow="ellipsis", no_wrap=rows is not None) for note in snapshot.notes
    ]
    left = None if rows is None else rows - _height(Group(*parts), console)
    if len(snapshot.cells):
        table = _draw_cells(snapshot, console, left)
        parts.append(table)
        left = None if left is None else left - _height(table, console)
    else:
        parts.append(Text("\nno run has finished yet"))
        left = None if left is None else left - 2
    parts.append(_draw_curves(snapshot, console, left))
    return Group(*parts)


def _height(part: RenderableType, console: Console) -> int:
    return len(console.render_lines(part))


def _draw_header(snapshot: Snapshot, console: Console) -> RenderableType:
    progress, title = snapshot.progress, Text(snapshot.name, style="bold")
    if snapshot.experiment:
        title.append(f"  experiment {snapshot.experiment}", style="not bold")
    title.append(f"  {snapshot.describe_state()}", style="not bold")
    total = max(1, len(progress.states))
    filled = BAR_COLUMNS * count_done(snapshot) // total
    done, waiting = "#-" if console.options.ascii_only else "━━"
    bar = Text(done * filled, style="green")
    bar.append(waiting * (BAR_COLUMNS - filled), style="dim white")
    bar.append(f" {100 * count_done(snapshot) // total}%", style="not dim default")
    read_at = time.strftime("%H:%M:%S", time.localtime(snapshot.time))
    return Group(
        title,
        bar,
        Text(snapshot.describe_counts()),
        Text(f"{snapshot.describe_time()}, read at {read_at}", style="dim"),
    )


def count_done(snapshot: Snapshot) -> int:
    """Count the runs that will not be trained any further."""
    return sum(snapshot.progress.counts.get(state, 0) for state in WITH_RESULT)


def _draw_cells(snapshot: Snapshot, console: Console, rows: int | None) -> RenderableType:
    """Draw the first rows of the table of cells, as many as fit into half of the rows."""
    shown = min(len(snapshot.cells), MAX_ROWS)
    table = _draw_rows(snapshot, shown)
    while rows is not None and shown > 1 and (height := _height(table, console)) > rows // 2:
        shown = max(1, min(shown - 1, shown * (rows // 2) // height))
        table = _draw_rows(snapshot, shown)
    return table


def _draw_rows(snapshot: Snapshot, number: int) -> RenderableType:
    title = "finished runs: accuracies in %, mean [95% interval over seeds]"
    parts: list[RenderableType] = [Text(), draw_table(snapshot.cells.head(number), title)]
    if number < len(snapshot.cells):
        left_out = len(snapshot.cells) - number
        parts.append(Text(f"and {left_out:,} more; all: cnnexp results {snapshot.name} --by", style="dim"))
    return Group(*parts)


@dataclass(frozen=True)
class Scale:
    """The range of steps and values that all panels have in common."""

    last_step: int | float
    low: int | float
    high: int | float

    @classmethod
    def of(cls, curves: Sequence[Curve], *, with_seeds: bool = False) -> "Scale":
        """Return the smallest range that holds the means of all curves, or also all of their seeds."""
        points = [point for curve in curves for point in curve.points]
        lows = [point.low if with_seeds else point.mean for point in points]
        highs = [point.high if with_seeds else point.mean for point in points]
        last_step = max((point.step for point in points), default=0.0)
        return cls(last_step, min(lows, default=0.0), max(highs, default=0.0))


def _draw_curves(snapshot: Snapshot, console: Console, rows: int | None) -> RenderableType:
    """Draw one panel for each cell, on a common scale: lines over each other would differ by colour alone."""
    columns = max(1, (console.width + PANEL_GAP) // (PANEL_COLUMNS + PANEL_GAP))
    limit = MAX_PANELS if rows is None else columns * max(0, (rows - TITLE_ROWS) // PANEL_ROWS)
    shown = choose_curves(snapshot.curves, limit)
    scale = Scale.of(snapshot.curves)
    if not shown or not any(curve.points for curve in snapshot.curves):
        return Text("no run has been evaluated yet" if snapshot.curves and limit else "")
    low, high = (format_curve_value(snapshot.metric, value) for value in (scale.low, scale.high))
    axes = f"all panels: {low} to {high}, step 0 to {scale.last_step:,}"
    if len(shown) < len(snapshot.curves):
        axes += f"; {len(snapshot.curves) - len(shown):,} cells left out"
    grid = Table.grid(padding=(0, PANEL_GAP, 0, 0))
    columns = min(columns, len(shown))
    width = (console.width + PANEL_GAP) // columns - PANEL_GAP
    width = min(width, 2 * PANEL_COLUMNS)
    canvas_rows = 0 if console.options.ascii_only else CANVAS_ROWS  # braille is not ASCII
    for start in range(0, len(shown), columns):
        grid.add_row(
            *(
                _draw_panel(curve, scale, snapshot.metric, width, canvas_rows)
                for curve in shown[start:][:columns]
            )
        )
    is_cut = rows is not None
    title = Text(snapshot.describe_metric(), style="italic", overflow="ellipsis", no_wrap=is_cut)
    return Group(Text(), title, Text(axes, style="dim", overflow="ellipsis", no_wrap=is_cut), grid)


def _draw_panel(curve: Curve, scale: Scale, metric: str, width: int, rows: int) -> RenderableType:
    """Draw the name, state and curve of a cell; without a curve where the canvas has no rows."""
    counts = ", ".join(f"{number} {state}" for state, number in curve.counts.items())
    last = f", last {format_curve_value(metric, curve.points[-1].mean)}" if curve.points else ""
    name = Text(
        curve.cell, style="bold" if "running" in curve.counts else "", overflow="ellipsis", no_wrap=True
    )
    name.truncate(width, overflow="ellipsis")
    state = Text(f"{counts}{last}", style="dim", no_wrap=True)
    state.truncate(width, overflow="ellipsis")
    if not rows:
        return Group(name, state)
    lines = [Text(f"│{line}", style="cyan") for line in draw_braille(curve, scale, width - 1, rows)]
    return Group(name, state, *lines, Text("└" + "─" * (width - 1), style="cyan"), Text())


def format_curve_value(metric: str, value: int | float) -> str:
    """Format a value of a curve: a fraction as a percentage, anything else as it is."""
    return f"{100 * value:.1f}%" if is_fraction(metric) else f"{value:.4g}"


def draw_braille(curve: Curve, scale: Scale, columns: int, rows: int) -> list[str]:
    """Draw the means of a curve as lines of braille characters, of two by four dots each.

    Args:
        curve: The curve.
        scale: What the edges of the canvas stand for.
        columns: The width, in characters.
        rows: The height, in characters.
    """
    width, height = 2 * columns - 1, 4 * rows - 1
    steps, values = scale.last_step or 1.0, (scale.high - scale.low) or 1.0
    dots = [
        (round(point.step / steps * width), round((scale.high - point.mean) / values * height))
        for point in curve.points
    ]
    masks = [[0] * columns for _ in range(rows)]
    for (x, y), (next_x, next_y) in zip(dots, [*dots[1:], *dots[-1:]], strict=True):
        length = max(next_x - x, abs(next_y - y), 1)
        for part in range(length + 1):
            column = x + round((next_x - x) * part / length)
            row = y + round((next_y - y) * part / length)
            masks[row // 4][column // 2] |= DOTS[row % 4][column % 2]
    return ["".join(chr(BRAILLE + mask) for mask in line) for line in masks]

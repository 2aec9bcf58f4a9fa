"""What image sets are prepared on this machine."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from cnnexp.core.errors import UsageError
from cnnexp.core.text import short_number
from cnnexp.data.tfds.prepared import PreparedSet, list_prepared_sets, resolve_data_dir


def print_prepared(data_dir: str | Path | None) -> None:
    """Print a table of the prepared sets: where each is, its images and its size."""
    console = Console()
    sets = list(list_prepared_sets(data_dir))
    if not sets:
        console.print(f"nothing is prepared in {resolve_data_dir(data_dir)}; type: cnnexp data prepare NAME")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("name", "version", "images", "shape", "classes", "size", "where"):
        table.add_column(column, overflow="fold")
    for prepared in sets:
        table.add_row(*_row(prepared))
    console.print(table)


def _row(prepared: PreparedSet) -> list[str]:
    try:
        sizes = prepared.split_sizes()
        for split in sizes:
            prepared.shards(split)
        shape = prepared.shape()
        sides = "x".join(str(side) if side else "?" for side in shape.image)
        counts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        described = [counts, sides, str(shape.classes)]
    except UsageError as error:
        described = [f"cannot be used: {error}", "", ""]
    where = str(prepared.folder)
    return [prepared.name, prepared.folder.name, *described, f"{short_number(prepared.bytes)}B", where]

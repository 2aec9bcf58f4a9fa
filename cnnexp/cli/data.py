"""`cnnexp data`: prepare image sets, and list those that are prepared on this machine."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnexp.cli.commands import Command, Group
from cnnexp.cli.options import FilePath, Folder, data_dir_option, missing_folder
from cnnexp.core.errors import UsageError

if TYPE_CHECKING:
    from cnnexp.data.tfds.prepared import PreparedSet

command = Group(
    {
        "prepare": ("cnnexp.cli.data:prepare", "Prepare an image set of TensorFlow Datasets, once."),
        "list": ("cnnexp.cli.data:list_sets", "List the prepared sets with their folders and sizes."),
    },
    metavar="ACTION",
    name="data",
    help="Prepare image sets, and list those that are prepared.",
)


@click.command("prepare", cls=Command)
@click.argument("name", metavar="NAME")
@click.option(
    "--from", "source", type=Folder(), metavar="DIR", help="A folder with files that were already downloaded."
)
@data_dir_option(FilePath())
def prepare(name: str, source: Path | None, data_dir: Path | None) -> None:
    """Prepare the image set NAME of TensorFlow Datasets, such as cifar10 or emnist/letters."""
    from cnnexp.core.machine import check_writable
    from cnnexp.data.tfds.prepare import prepare as prepare_set
    from cnnexp.data.tfds.prepared import resolve_data_dir

    typed = str(data_dir) if data_dir else None
    folder = resolve_data_dir(typed)
    check_writable(folder, _origin(folder, typed))
    print(prepare_set(name, source, typed).folder)


@click.command("list", cls=Command)
@data_dir_option(Folder())
def list_sets(data_dir: Path | None) -> None:
    """List the prepared sets with their folders and sizes."""
    from cnnexp.data.tfds.prepared import resolve_data_dir

    typed = str(data_dir) if data_dir else None
    folder = resolve_data_dir(typed)
    if os.environ.get("TFDS_DATA_DIR") and not folder.is_dir():
        raise UsageError(f"{_origin(folder, typed)}: {missing_folder(folder)}")
    print_prepared(typed)


def print_prepared(data_dir: str | Path | None) -> None:
    """Print a table of the prepared sets: where each is, its images and its size."""
    from rich.console import Console
    from rich.table import Table

    from cnnexp.data.tfds.prepared import list_prepared_sets, resolve_data_dir

    console = Console()
    sets = list(list_prepared_sets(data_dir))
    if not sets:
        console.print(
            f"no image set is prepared in {resolve_data_dir(data_dir)}; run: cnnexp data prepare NAME"
        )
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("name", "version", "images", "shape", "classes", "size", "where"):
        table.add_column(column, overflow="fold")
    for prepared in sets:
        table.add_row(*_row(prepared))
    console.print(table)


def _row(prepared: "PreparedSet") -> list[str]:
    from cnnexp.core.text import short_number

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
    size = f"{short_number(prepared.bytes)}B"
    return [prepared.name, prepared.folder.name, *described, size, str(prepared.folder)]


def _origin(folder: Path, typed: str | None) -> str:
    """Name the option or the variable that says where sets are prepared."""
    return f"--data-dir {folder}" if typed else f"TFDS_DATA_DIR={folder}"

#!/usr/bin/env python3
"""Execute the notebooks of docs/notebooks/, each in a fresh kernel, and write their outputs into them.

scripts/docs/notebooks.py                       # all of them, after a cell or what it shows has changed
scripts/docs/notebooks.py tied_layer            # one of them
scripts/docs/notebooks.py --check [NAME ...]    # execute them, check the committed outputs, write nothing
"""

import argparse
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
LIMIT_SECONDS = 180  # of a notebook, its kernel's start not included
MAX_BYTES = 300_000  # of a file
METADATA = {  # the same on every machine
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|Users|root|tmp|private|var|usr|opt|work|mnt|data)/\w")


def read(path: Path) -> NotebookNode:
    """Read a notebook, in the current version of the format."""
    return nbformat.read(path, as_version=4)


def execute(notebook: NotebookNode, limit_seconds: float = LIMIT_SECONDS) -> float:
    """Execute the cells of a notebook in a fresh kernel and an empty folder, and replace their outputs.

    Args:
        notebook: The notebook; its outputs and metadata are changed in place.
        limit_seconds: The time that all cells together may take.

    Returns:
        The seconds that the cells took.

    Raises:
        CellExecutionError: A cell raised an error.
        CellTimeoutError: The cells took longer than the limit.
    """
    with tempfile.TemporaryDirectory() as name:
        started = time.monotonic()

        def remaining_seconds(_: NotebookNode) -> int:
            return max(1, math.ceil(started + limit_seconds - time.monotonic()))

        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout_func=remaining_seconds,
            resources={"metadata": {"path": name}},
            record_timing=False,
            coalesce_streams=True,
            config=Config(KernelManager={"transport_encryption": "auto"}),  # else the kernel prints a warning
        )
        client.execute(env=make_environment(Path(name)))
        seconds = time.monotonic() - started
    notebook.metadata = nbformat.from_dict(METADATA)
    return seconds


def make_environment(folder: Path) -> dict[str, str]:
    """Make the environment of a kernel: commands as in an activated environment, no settings of the user."""
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    settings = {"IPYTHONDIR": str(folder / "ipython"), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    return {**os.environ, "PATH": commands, **settings}


def find_problems(path: Path) -> Iterator[str]:
    """Find what a committed notebook must not have, each as one sentence."""
    if path.stat().st_size > MAX_BYTES:
        yield f"the file has {path.stat().st_size:,} bytes; allowed: {MAX_BYTES:,}"
    notebook = read(path)
    if notebook.metadata != METADATA:
        yield f"its metadata are {dict(notebook.metadata)}; allowed: {METADATA}"
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in codes]
    if counts != list(range(1, len(codes) + 1)):
        yield f"its cells were executed in the order {counts}; allowed: once, from top to bottom"
    for number, cell in enumerate(codes, 1):
        if "execution" in cell.metadata:
            yield f"cell {number} has the time of its execution"
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"cell {number} has an error or a warning as its output"
            if "image/png" in output.get("data", {}) and not cell.metadata.get("alt"):
                yield f"cell {number} draws a picture, and its metadata have no description, `alt`"
        text = cell.source + repr(cell.outputs)
        if machine_path := MACHINE_PATH.search(text):
            yield f"cell {number} has a path of a machine: {machine_path[0]}…"


def main() -> int:
    """Execute the notebooks, print the seconds that each takes, and write or check their outputs."""
    parser = argparse.ArgumentParser(description="Execute the notebooks of docs/notebooks/.")
    parser.add_argument("--check", action="store_true", help="write nothing; check the committed outputs")
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(names)):
        parser.error(f"no notebook {', '.join(unknown)}; allowed: {', '.join(names)}")
    has_failed = False
    for name in arguments.names or names:
        path = FOLDER / f"{name}.ipynb"
        notebook = read(path)
        try:
            seconds = execute(notebook)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            has_failed = True
            continue
        print(f"{name}: {seconds:.0f} seconds")
        if not arguments.check:
            nbformat.write(notebook, path)
        for problem in find_problems(path):
            print(f"{name}: {problem}", file=sys.stderr)
            has_failed = True
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())

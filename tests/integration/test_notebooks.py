"""The notebooks of docs/notebooks/ run in a fresh kernel, and their stored outputs are fit to publish."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cnnexp.core.user_code import execute_file

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SCRIPT = ROOT / "scripts" / "docs" / "notebooks.py"
script = execute_file(SCRIPT)
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a notebook of some code cells, each with one output or none, as if they had been executed."""

    def write_cells(*sources: str, **outputs: dict) -> Path:
        cells = [new_code_cell(source, execution_count=i) for i, source in enumerate(sources, 1)]
        if outputs:
            cells[-1].outputs = [new_output(**outputs["output"])]
        path = tmp_path / "written.ipynb"
        nbformat.write(new_notebook(cells=cells, metadata=script.METADATA), path)
        return path

    return write_cells


@pytest.mark.slow
@pytest.mark.timeout(300)
@by_name
def test_a_notebook_runs_in_a_fresh_kernel_within_three_minutes_and_leaves_nothing(
    path: Path, tmp_path: Path
) -> None:
    assert script.LIMIT_SECONDS == 180
    before = path.read_bytes()
    # Not XLA's flags of the tests, with which programs compile faster and run many times slower.
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment["TMPDIR"] = str(tmp_path)  # of the kernel's folder and of the notebook's own
    done = subprocess.run(
        [sys.executable, SCRIPT, "--check", path.stem], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == []


@by_name
def test_the_stored_outputs_of_a_notebook_are_complete_and_name_no_machine(path: Path) -> None:
    assert list(script.find_problems(path)) == []


def test_every_notebook_is_in_the_navigation_of_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 3
    assert [path for path in NOTEBOOKS if f": docs/notebooks/{path.name}\n" not in text] == []


@pytest.mark.slow
def test_a_cell_that_raises_an_error_fails(write: Write) -> None:
    notebook = nbformat.read(write("1 + 1", "1 / 0"), as_version=4)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        script.execute(notebook)


@pytest.mark.slow
def test_a_command_that_fails_fails_the_cell(write: Write) -> None:
    notebook = nbformat.read(write("%%bash --err progress\ncnnexp run model.tyingg=local"), as_version=4)
    with pytest.raises(CellExecutionError, match="CalledProcessError"):
        script.execute(notebook)


@pytest.mark.slow
def test_cells_that_take_longer_together_than_the_limit_fail(write: Write) -> None:
    sleep = "import time; time.sleep(1.6)"
    notebook = nbformat.read(write(sleep, sleep), as_version=4)
    with pytest.raises(CellTimeoutError):
        script.execute(notebook, limit_seconds=2)


def execute_late(notebook: NotebookNode) -> None:
    notebook.cells[0].execution_count = 7


def forget_execution(notebook: NotebookNode) -> None:
    notebook.cells[0].execution_count = None


def time_execution(notebook: NotebookNode) -> None:
    notebook.cells[0].metadata["execution"] = {"iopub.execute_input": "2020-01-01T00:00:00Z"}


def name_kernel(notebook: NotebookNode) -> None:
    notebook.metadata["kernelspec"]["display_name"] = "mine"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (execute_late, "executed in the order [7]"),
        (forget_execution, "executed in the order [None]"),
        (time_execution, "the time of its execution"),
        (name_kernel, "its metadata are"),
    ],
)
def test_a_notebook_that_was_edited_after_its_execution_is_refused(
    change: Callable[[NotebookNode], None], problem: str, write: Write
) -> None:
    path = write("1 + 1")
    assert list(script.find_problems(path)) == []
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)
    (found,) = script.find_problems(path)
    assert problem in found


PICTURE = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}}


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ({"output_type": "error", "ename": "E", "evalue": "", "traceback": []}, "an error or a warning"),
        ({"output_type": "stream", "name": "stderr", "text": "a warning"}, "an error or a warning"),
        ({"output_type": "stream", "name": "stdout", "text": "/home/me/x.py"}, "path of a machine: /home/m"),
        ({"output_type": "stream", "name": "stdout", "text": "x" * 300_000}, "allowed: 300,000"),
        (PICTURE, "no description"),
    ],
)
def test_outputs_that_must_not_be_published_are_found(output: dict, problem: str, write: Write) -> None:
    (found,) = script.find_problems(write("1 + 1", output=output))
    assert problem in found


def test_formulas_become_mathml_and_code_is_kept_on_the_page_of_a_notebook(write: Write) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    path = write("%%bash\necho $HOME", output={**PICTURE, "metadata": {}})
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].metadata["alt"] = 'a "picture"'
    notebook.cells.insert(0, new_markdown_cell("$A$ costs `$1` and `$2`:\n\n$$y = K$$"))
    nbformat.write(notebook, path)
    page = execute_file(SCRIPT.with_name("notebook_pages.py")).render_notebook(path)
    assert page.count("<math") == 2 and page.startswith("<span><math")
    assert "`$1` and `$2`" in page and "```sh\n%%bash\necho $HOME\n```" in page
    assert '<img alt="a &quot;picture&quot;" src="data:image/png;base64,iVBORw0KGgo=">' in page

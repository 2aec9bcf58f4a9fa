"""Figures drawn by several processes are those of one process."""

import subprocess
import sys
from pathlib import Path

CODE = """
import os, sys
from pathlib import Path
from matplotlib.figure import Figure
import cnnexp.report.output
from cnnexp.plots import rendering
from cnnexp.plots.figures import Drawing

assert "jax" not in sys.modules, "a report needs no JAX, with which no process is forked"

def draw_text(size):
    def draw(table):
        Path(str(os.getpid())).touch()
        figure = Figure(figsize=(2, 1), layout="constrained")
        figure.subplots().set_title("text", fontsize=size)
        return figure
    return Drawing(draw=draw, caption="")

rendering.cores = lambda: 2
drawings = {str(size): draw_text(size) for size in (8, 9, 10)}
figures = rendering.render_all(drawings, None)
assert os.listdir() and str(os.getpid()) not in os.listdir(), "another process draws"
assert list(figures) == list(drawings)
assert figures == {name: rendering.render(drawing, None) for name, drawing in drawings.items()}
"""


def test_figures_of_several_processes_are_those_of_one(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

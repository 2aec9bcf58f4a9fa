"""Figures drawn by several processes are those of one process, and all are what Matplotlib saves."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.style import context
from PIL import Image

from cnnexp.plots.axes import DARK, PAPER
from cnnexp.plots.figures import Drawing
from cnnexp.plots.rendering import render

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
with rendering.start_rendering(drawings, None) as wait_for_figures:
    figures = wait_for_figures()
assert os.listdir() and str(os.getpid()) not in os.listdir(), "another process draws"
assert list(figures) == list(drawings)
assert figures == {name: rendering.render(drawing, None) for name, drawing in drawings.items()}
"""


def test_figures_of_several_processes_are_those_of_one(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _draw_panels(*, titled: bool) -> Figure:
    figure = Figure(figsize=(4, 2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 1])
    left.plot([1, 1_000], [0.5, 100], label="a line")
    left.set(xscale="log", ylabel="a long label of an axis")
    figure.colorbar(right.imshow(np.eye(3)), ax=right, label="scale")
    figure.legend(loc="outside lower center")
    if titled:
        figure.suptitle("a title\nof two lines")
    return figure


@pytest.mark.parametrize("titled", [False, True])
def test_light_and_dark_figures_have_the_pixels_that_matplotlib_saves(titled: bool) -> None:
    rendered = render(Drawing(draw=lambda _: _draw_panels(titled=titled), caption=""), pd.DataFrame())
    for png, look in ((rendered.png, PAPER), (rendered.dark_png, PAPER | DARK)):
        with context(["default", look]):
            _draw_panels(titled=titled).savefig(file := io.BytesIO(), format="png")
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), np.asarray(Image.open(file)))

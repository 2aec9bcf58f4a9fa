"""Figures are the same whatever Matplotlib's settings of the user are."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest

from cnnexp.cli.show import print_networks
from cnnexp.plots.figures import draw_by_images
from cnnexp.plots.rendering import render
from tests.analysis.test_compare import runs_of, swept
from tests.conftest import Configure

STRANGE: dict[Any, Any] = {  # as a matplotlibrc may have it
    "lines.linewidth": 9.0,
    "font.family": "serif",
    "savefig.bbox": "tight",
    "axes.facecolor": "red",
    "legend.fontsize": 20.0,
}


def test_no_setting_of_the_user_changes_a_figure_of_a_report() -> None:
    sizes = [
        runs_of(accuracy, 0.01, model__tying="shared", data__train_size=size)
        for size, accuracy in ((64, 0.5), (256, 0.7))
    ]
    table: pd.DataFrame = swept(*sizes)
    drawing = draw_by_images()
    plain = render(drawing, table)
    with mpl.rc_context(STRANGE):
        assert render(drawing, table) == plain
        assert mpl.rcParams["lines.linewidth"] == 9  # the user's own figures keep it


def test_no_setting_of_the_user_changes_a_picture_of_a_network(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cnnexp.cli.show._describe_images", lambda configs, pictures: ())
    config = configure(results_dir=str(tmp_path))
    pictures = []
    for settings in (None, STRANGE):
        with mpl.rc_context(settings):
            print_networks([config])
        (file,) = (tmp_path / "show").glob("*.png")
        pictures.append(file.read_bytes())
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("backend", "kept"),
    [("module://matplotlib_inline.backend_inline", None), ("of_another_environment", "None"), ("svg", "svg")],
)
def test_any_backend_may_be_named(backend: str, kept: str | None) -> None:
    """One that is installed is kept, for a notebook's own figures."""
    asked = "import cnnexp, matplotlib as m, matplotlib.figure; print(m.get_backend(auto_select=False))"
    environment = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and kept in (None, done.stdout.strip()), done.stderr

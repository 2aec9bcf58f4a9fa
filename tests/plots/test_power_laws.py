"""The figure of power laws shows each tying's errors and its exponent."""

import matplotlib as mpl
import pandas as pd
import pytest

from cnnexp.plots.axes import PAPER
from cnnexp.plots.power_laws import ErrorLaw, plot_error_laws


@pytest.fixture
def runs() -> pd.DataFrame:
    """Three seeds of two tyings, whose errors are powers of the MACs and of the images."""
    rows = [
        {
            "seed": seed,
            "model.tying": tying,
            "macs": macs,
            "data.train_size": images,
            "test/accuracy": 1 - scale * macs**-exponent * images**-0.2,
        }
        for tying, exponent in (("dense", 0.1), ("shared", 0.3))
        for macs in (1000, 4000, 16_000)
        for images in (100, 1000)
        for seed, scale in enumerate((0.9, 1.0, 1.1))
    ]
    return pd.DataFrame(rows)


def test_each_panel_shows_the_errors_and_exponents_of_its_rows(runs: pd.DataFrame) -> None:
    panels = [
        ErrorLaw("MACs", "macs", {"data.train_size": 1000}),
        ErrorLaw("images", "data.train_size", {"macs": 4000}),
    ]
    with mpl.rc_context(PAPER):
        figure = plot_error_laws(runs, panels, ("dense", "local", "shared"))
    first, second = figure.axes
    assert [text.get_text() for text in first.texts] == [
        "dense: 0.10 [0.10, 0.10]",
        "shared: 0.30 [0.30, 0.30]",
    ]
    assert [text.get_text()[-18:] for text in second.texts] == ["0.20 [0.20, 0.20]".rjust(18)] * 2
    errors = first.containers[1].lines[0].get_xydata()
    assert errors[:, 0].tolist() == [1000, 4000, 16_000]
    assert errors[:, 1] == pytest.approx([macs**-0.3 * 1000**-0.2 for macs in errors[:, 0]], rel=0.01)
    assert [text.get_text() for text in figure.legends[0].texts] == ["dense", "shared"]


def test_one_value_of_the_number_has_marks_and_no_exponent(runs: pd.DataFrame) -> None:
    panel = ErrorLaw("MACs", "macs", {"macs": 1000, "data.train_size": 100})
    figure = plot_error_laws(runs, [panel], ("dense",))
    assert len(figure.axes[0].containers) == 1 and not figure.axes[0].texts

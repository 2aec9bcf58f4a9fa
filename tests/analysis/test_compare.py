"""Two sweeps side by side, and a sweep's cells at their chosen learning rates."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from cnnexp.analysis.compare import compare_sweeps
from cnnexp.analysis.run_conditions import select_runs
from cnnexp.analysis.tables import format_value, latex_table
from cnnexp.cli.tables import print_comparison, print_results
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tying import Tying
from cnnexp.plots.axes import STYLE, get_style
from cnnexp.plots.figures import draw_by_count, plot_accuracy_and_gap
from cnnexp.plots.layers import draw_matrix
from cnnexp.plots.rendering import render, shrink_png
from tests.report.test_report import write_run


def runs_of(test: float, spread: float = 0.0, seeds: int = 3, **keys: object) -> pd.DataFrame:
    """Runs of one cell, as a frame has them; keys have `__` for their dot."""
    rows = []
    for seed in range(seeds):
        value = test + spread * (-1) ** seed
        metrics = {"train/accuracy": 1.0, "test/accuracy": value, "gap/accuracy": 1 - value}
        rows.append({"seed": seed} | {key.replace("__", "."): v for key, v in keys.items()} | metrics)
    return pd.DataFrame(rows)


def swept(*cells: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(cells, ignore_index=True)


def test_sweeps_whose_keys_overlap_but_no_cell_are_compared_as_wholes() -> None:
    one = swept(
        runs_of(0.5, model__tying="shared", model__kernel_size=3),
        runs_of(0.6, model__tying="local", model__kernel_size=5),
    )
    other = swept(
        runs_of(0.7, model__tying="local", model__kernel_size=3),
        runs_of(0.8, model__tying="shared", model__kernel_size=5),
    )
    table = compare_sweeps(one, other)
    assert table["metric"].tolist() == ["train/accuracy", "test/accuracy", "gap/accuracy"]
    assert table["change"].tolist() == pytest.approx([0, 0.2, -0.2])


def test_a_column_of_floats_has_the_cells_of_one_of_integers() -> None:
    one = swept(*(runs_of(0.5, train__tied_steps=steps) for steps in (0, 50)))
    other = swept(*(runs_of(0.6, train__tied_steps=steps) for steps in (0, 50, None)))
    assert other["train.tied_steps"].dtype != one["train.tied_steps"].dtype
    table = compare_sweeps(one, other)
    assert table["train.tied_steps"].tolist() == ["0"] * 3 + ["50"] * 3
    assert len(compare_sweeps(other, other)) == 9


def test_changes_of_noise_rarely_move_however_many_are_compared() -> None:
    rng, moved = np.random.default_rng(0), 0
    for _ in range(20):
        sweeps = []
        for _ in range(2):
            sweep = swept(*(runs_of(0.5, seeds=5, model__kernel_size=k) for k in range(1, 8)))
            sweep["test/accuracy"] += rng.normal(0, 0.01, len(sweep))
            sweep["gap/accuracy"] = 1 - sweep["test/accuracy"]
            sweeps.append(sweep)
        table = compare_sweeps(*sweeps)
        moved += table["moved"].any()
    assert moved <= 3
    assert table["change/confidence"].tolist() == pytest.approx([1 - 0.05 / 21] * 21)


def test_untuned_rates_are_cells_and_chosen_ones_are_not() -> None:
    one = swept(*(runs_of(0.5, optim__learning_rate=rate) for rate in (0.1, 0.2)))
    assert compare_sweeps(one, one)["optim.learning_rate"].tolist() == ["0.1"] * 3 + ["0.2"] * 3
    assert len(compare_sweeps(one, one, ["optim.learning_rate"])) == 3


def test_the_printed_line_says_that_levels_are_corrected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for sweep in ("a", "b"):
        for seed in range(3):
            write_run(tmp_path / sweep, "local", 64, seed)
    print_comparison(tmp_path / "a", tmp_path / "b")
    printed = " ".join(capsys.readouterr().out.split())
    assert "0 of 3 numbers moved" in printed
    assert "no cell" not in printed  # both sweeps are of one cell, the same
    assert (
        "the 98.33% interval of the change excludes zero (95%, corrected for the number of comparisons)"
        in printed
    )


@pytest.mark.parametrize("text", ["[3, 5]", "*"])
def test_no_row_of_latex_begins_with_an_argument_of_the_line_before(text: str) -> None:
    table = latex_table(pd.DataFrame({"net": ["plain", text], "accuracy": ["1.0 [0.9, 1.1]", "[2"]}))
    assert f"\\\\\n{{{text[0]}}}{text[1:]} & {{[}}2" in table and "1.0 [0.9, 1.1]" in table


def test_lists_are_found_as_they_are_typed() -> None:
    table = pd.DataFrame({"model.tying": ["['local', 'shared']", "['shared', 'local']", "shared"]})
    assert select_runs(table, ["model.tying=[local,shared],shared"]).index.tolist() == [0, 2]
    assert select_runs(table, ["model.tying!=['local', 'shared']"]).index.tolist() == [1, 2]


def test_tyings_of_layers_read_as_a_list_of_words() -> None:
    assert format_value("['local', 'low_rank(4)']") == "local, low_rank(4)"
    assert format_value("[2, 4]") == "[2, 4]"


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """Two tyings at two learning rates; validation images choose 0.1 for `local`, 0.01 for `shared`."""
    best = {"local": 0.1, "shared": 0.01}
    for tying, chosen in best.items():
        for rate in (0.01, 0.1):
            for seed in range(3):
                better, validation = (0.1, 0.9) if rate == chosen else (-0.3, 0.1)
                write_run(
                    tmp_path / "tuned", tying, 256, seed, better=better, rate=rate, validation=validation
                )
    write_run(tmp_path / "tuned", "local", 7, 0, status="failed")
    write_run(tmp_path / "tuned", "local", 8, 0, status="running")
    return tmp_path / "tuned"


def test_cells_are_shown_at_their_chosen_values(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tuned / "cells.csv"
    print_results(tuned, by=["model.tying"], form="csv", output=output)
    told = capsys.readouterr().err
    assert pd.read_csv(output)["test/accuracy"].tolist() == pytest.approx([0.61, 0.91])
    assert "left out: 2 of 14 runs not finished (1 failed, 1 running)" in told
    assert "at the edge of those tried" in told
    print_results(tuned, by=[], form="csv", output=output)
    assert pd.read_csv(output)["optim.learning_rate"].tolist() == [0.1, 0.01]


@pytest.mark.parametrize(
    ("by", "conditions", "accuracies"),
    [
        (["optim.learning_rate"], [], [0.56, 0.56]),
        (["model.tying"], ["optim.learning_rate=0.01"], [0.21, 0.91]),
        (["model.tying"], ["optim.learning_rate<1"], [0.21, 0.61, 0.91, 0.51]),
        (["model.tying"], ["learning_rate=0.01"], [0.21, 0.91]),
    ],
)
def test_learning_rates_that_are_named_are_not_chosen(
    tuned: Path,
    capsys: pytest.CaptureFixture[str],
    by: list[str],
    conditions: list[str],
    accuracies: list[float],
) -> None:
    print_results(tuned, by=by, conditions=conditions, form="csv", output=tuned / "cells.csv")
    assert pd.read_csv(tuned / "cells.csv")["test/accuracy"].tolist() == pytest.approx(accuracies)
    assert "tuning" not in capsys.readouterr().err


def test_ties_of_one_kind_are_told_apart_and_always_look_the_same() -> None:
    two, four, eight = (get_style(f"low_rank({number})") for number in (2, 4, 8))
    assert two["marker"] == four["marker"] == eight["marker"]
    assert len({style["color"] for style in (two, four, eight)}) == 3
    assert len({style["markersize"] for style in (two, four, eight)}) == 3
    assert get_style("low_rank(4,free)") == four
    first, last = get_style("['local', 'shared']"), get_style("['shared', 'local']")
    assert first["color"] == last["color"] == get_style("local")["color"]
    assert len({first["marker"], last["marker"], get_style("local")["marker"]}) == 3


@pytest.mark.parametrize("values", [(3, 5, 7), (0.5, 1.0, 2.0), (64, 1024, 16384)])
def test_the_axis_of_a_key_has_its_values_as_ticks(values: tuple[float, ...]) -> None:
    table = swept(*(runs_of(0.5, model__tying="local", model__kernel_size=value) for value in values))
    figure = plot_accuracy_and_gap(table, "model.kernel_size")
    figure.draw_without_rendering()
    for axes in figure.axes:
        labels = [tick.label1.get_text() for tick in axes.xaxis.get_major_ticks()]
        assert labels == [f"{value:,g}" for value in values]
        assert not len(axes.xaxis.get_minorticklocs())


def test_small_pictures_keep_the_colours_of_tyings() -> None:
    nets = {tying: {"model__tying": tying, "params/total": 10.0**place} for place, tying in enumerate(STYLE)}
    table = swept(*(runs_of(0.5, 0.01, **keys) for keys in nets.values()))
    png = shrink_png(render(draw_by_count(), table).png)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int).reshape(-1, 3)
    for style in STYLE.values():
        assert np.abs(pixels - 255 * np.array(to_rgb(style["color"]))).max(1).min() < 20


def test_weights_of_a_convolution_differ_in_lightness() -> None:
    picture = Figure().subplots()
    draw_matrix(picture, Geometry(in_shape=(6, 6, 1), features=1, kernel_size=(3, 3)), Tying("shared"))
    colours = picture.images[0].get_cmap()(np.arange(9))[:, :3]
    lightness = np.sort([*(colours @ [0.2126, 0.7152, 0.0722]), 1.0])  # with the white of no connection
    assert len(lightness) == 10 and np.diff(lightness).min() > 0.04

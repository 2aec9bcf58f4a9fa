"""Figures can be read: keys, scales, colours, and nothing on the axis of other data."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from cnnexp.analysis.statistics import Interval
from cnnexp.models.layers import LayerSpec
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tying import Tying
from cnnexp.plots.axes import Published, draw_intervals
from cnnexp.plots.figures import draw_by_key, plot_accuracy_and_gap, plot_accuracy_by_condition
from cnnexp.plots.growth import collect_histories, plot_budgets, plot_learning_curves
from cnnexp.plots.layers import draw_kernel_mosaic, draw_positions, plot_kernels
from cnnexp.plots.panels import Line, Panel, count_best, plot_accuracy_panels, plot_best
from tests.analysis.test_compare import runs_of, swept

STRIDES = {f"stride {stride}": {"model.stride": stride} for stride in (1, 2)}


@pytest.fixture
def table() -> pd.DataFrame:
    """Two tyings with equally many MACs at each of two strides, whose gaps differ much between strides."""
    return swept(
        *(
            runs_of(accuracy, 0.01, model__tying=tying, model__stride=stride, macs=1000.0 / stride)
            for tying, stride, accuracy in (
                ("shared", 1, 0.9),
                ("local", 1, 0.8),
                ("shared", 2, 0.3),
                ("local", 2, 0.2),
            )
        )
    ).assign(**{"data.name": "digits"})


def list_legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def list_marks(axes) -> np.ndarray:
    """The points of all lines with intervals, as rows of x and y."""
    return np.concatenate([np.column_stack(bar.lines[0].get_data()) for bar in axes.containers])


def test_gaps_have_one_scale_that_begins_at_zero_and_shows_every_gap(table: pd.DataFrame) -> None:
    figure = plot_accuracy_and_gap(table, "macs", columns=STRIDES)
    figure.draw_without_rendering()
    accuracy_1, accuracy_2, gap_1, gap_2 = figure.axes
    assert [axes.get_title() for axes in (accuracy_1, accuracy_2)] == list(STRIDES)
    assert gap_1.get_ylim() == gap_2.get_ylim() and gap_1.get_ylim()[0] <= 0
    heights = np.concatenate([list_marks(gap_1), list_marks(gap_2)])[:, 1]
    assert np.ptp(heights) > 0.6 and gap_1.get_ylim()[1] > heights.max()


def test_marks_of_one_position_do_not_hide_each_other(table: pd.DataFrame) -> None:
    assert table.groupby("model.stride")["macs"].nunique().eq(1).all()
    gap = plot_accuracy_and_gap(table, "macs").axes[1]
    assert len(np.unique(list_marks(gap)[:, 0])) == 4
    alone = plot_accuracy_and_gap(table[table["model.tying"] == "local"], "macs").axes[1]
    assert sorted(list_marks(alone)[:, 0]) == [500, 1000]  # nothing is moved that hides nothing


@pytest.mark.parametrize("lines", [True, False])
def test_filled_and_hollow_marks_have_a_key(table: pd.DataFrame, *, lines: bool) -> None:
    rows = {"one": {"model.stride": 1}, "two": {"model.stride": 2}}
    for figure in (
        plot_accuracy_and_gap(table, "macs", lines=lines),
        plot_accuracy_by_condition(table, {}, rows),
        plot_accuracy_panels(
            table, [Panel("stride", [Line("shared", {1.0: {"model.tying": "shared", "model.stride": 1}})])]
        ),
    ):
        assert {"test images", "training images"} <= set(list_legend(figure))
        handles = dict(zip(list_legend(figure), figure.legends[0].legend_handles, strict=True))
        assert handles["training images"].get_markerfacecolor() == "none"
        assert handles["test images"].get_markerfacecolor() != "none"


def test_a_legend_does_not_repeat_rows_that_are_tyings(table: pd.DataFrame) -> None:
    by_tying = {name: {"model.tying": name, "model.stride": 1} for name in ("shared", "local")}
    assert set(list_legend(plot_accuracy_by_condition(table, {}, by_tying))) == {
        "test images",
        "training images",
    }
    by_stride = {name: {"model.stride": int(name)} for name in "12"}
    assert {"shared", "local"} < set(list_legend(plot_accuracy_by_condition(table, {}, by_stride)))


def test_published_values_are_never_on_the_axis_of_other_data(table: pd.DataFrame) -> None:
    rows = {"one": {"model.stride": 1}}
    for data, stars in (("digits", True), ("cifar10", False)):
        by_name = Published("a paper", {"shared": {"one": 0.5}}, data)
        by_number = Published("a paper", {"shared": {1000.0: 0.5}}, data)
        line = Line("shared", {"one": {"model.tying": "shared", "model.stride": 1}})
        for figure in (
            plot_accuracy_by_condition(table, {}, rows, published=by_name),
            plot_accuracy_and_gap(table, "macs", published=by_number),
            plot_accuracy_and_gap(table, "macs", published=by_number, columns=STRIDES),
            plot_accuracy_panels(table, [Panel("stride", [line], published=by_name)]),
        ):
            drawn = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "*"]
            assert bool(drawn) == ("a paper" in list_legend(figure)) == stars
    mixed = pd.concat([table, table.assign(**{"data.name": "cifar10"})])
    figure = plot_accuracy_by_condition(mixed, {}, rows, published=by_name)
    assert "a paper" not in list_legend(figure)


def test_kernel_sizes_have_a_linear_axis(table: pd.DataFrame) -> None:
    figure = draw_by_key("model.stride", "stride").draw(table)
    assert figure.axes[0].get_xscale() == "linear" and figure.axes[0].get_xlabel() == "stride"


def test_kernels_of_all_networks_have_one_scale_and_its_key() -> None:
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(2, 2, 3, 3, 1)).astype(np.float16)
    figure = plot_kernels({"small": {"conv": kernels / 8}, "large": {"conv": kernels}})
    figure.draw_without_rendering()
    small, large, bar = figure.axes
    assert (small.images[0].get_array() == large.images[0].get_array()).all()  # by their own unit
    assert "root mean square 0.097" in small.get_title(loc="left")
    assert "root mean square" in bar.get_xlabel() and bar.get_xlim() == (-3, 3)
    full = draw_kernel_mosaic(np.full((1, 1, 2, 2, 1), 3.0), 3.0)
    half = draw_kernel_mosaic(np.full((1, 1, 2, 2, 1), 1.5), 3.0)
    assert len(np.unique(full.reshape(-1, 3), axis=0)) == 2 and (full != half).any()  # frame and weight


def test_units_of_a_layer_with_one_position_have_a_colour_scale_each() -> None:
    weights = np.random.default_rng(0).normal(size=(1, 1, 6, 6, 1))
    pair = np.concatenate([weights, weights / 8], axis=-1)
    figure = plot_kernels({"dense": {"conv_0": pair}})
    picture = np.asarray(figure.axes[0].images[0].get_array())
    half = (picture.shape[1] - 12) // 2
    assert (picture[:, :half] == picture[:, half + 12 :]).all()
    assert "unit" in figure.axes[-1].get_xlabel()


def test_kernels_of_signals_lie_side_by_side_unless_they_are_longer_than_there_are_positions() -> None:
    short, long = np.ones((8, 1, 3, 1, 4)), np.ones((8, 1, 25, 1, 4))
    height, width, _ = draw_kernel_mosaic(short).shape
    one_height, one_width, _ = draw_kernel_mosaic(short[..., :1]).shape
    assert height == one_height and width > 4 * one_width
    height, width, _ = draw_kernel_mosaic(long).shape
    one_height, one_width, _ = draw_kernel_mosaic(long[..., :1]).shape
    assert height > 4 * one_height and width == one_width


def test_positions_of_low_rank_show_every_kernel() -> None:
    axes = Figure().subplots()
    geometry = Geometry(in_shape=(6, 6, 1), features=1, kernel_size=(3, 3))
    layer = LayerSpec(name="conv_0", geometry=geometry, tying=Tying("low_rank", 4), bias="none")
    draw_positions(axes, layer)
    stripes = np.asarray(axes.images[0].get_array())
    assert stripes.shape == (6, 4 * 6) and (stripes.reshape(6, 6, 4) == [1, 2, 3, 4]).all()
    assert axes.images[0].get_extent() == [-0.5, 5.5, 5.5, -0.5]


def test_limits_that_a_rounding_error_moves_past_the_value_are_drawn() -> None:
    axes = Figure().subplots()
    value = 0.3
    draw_intervals(axes, np.array([0.0]), [Interval(value, np.nextafter(value, 1), np.nextafter(value, 0))])
    assert axes.collections


def test_learning_curves_are_means_over_seeds_at_the_evaluations_of_all_runs() -> None:
    table = swept(runs_of(0.5, model__tying="shared"), runs_of(0.4, model__tying="local"))
    table["run_id"] = [f"run{number}" for number in table.index]
    histories = {
        run_id: [{"step": step, "test/accuracy": 0.1 * step + 0.01 * seed} for step in (0, 1, 2, 5)]
        for run_id, seed in zip(table["run_id"], table["seed"], strict=True)
    }
    histories["run0"] = histories["run0"][:3]  # whose last evaluation is another's
    steps, curves = collect_histories(table[table["model.tying"] == "shared"], histories, "test/accuracy")
    assert steps.tolist() == [0, 1, 2] and curves.shape == (table["seed"].nunique(), 3)
    assert curves.mean(0) == pytest.approx(0.1 * steps + 0.01 * table["seed"].unique().mean())
    panels = {"all": {}, "local": {"model.tying": "local"}, "none": {"model.tying": "dense"}}
    figure = plot_learning_curves(table, panels, histories)
    assert [axes.get_title() for axes in figure.axes] == ["all", "local"]
    both, local = figure.axes
    assert len(both.collections) == 2 and len(local.collections) == 1  # the bands
    assert both.get_ylim() == local.get_ylim() and list_legend(figure) == ["local", "shared"]
    line = both.lines[1]
    assert line.get_ydata() == pytest.approx(curves.mean(0))
    assert both.get_xscale() == "linear"
    often = {run: [*rows, {"step": 400, "test/accuracy": 0.9}] for run, rows in histories.items()}
    assert plot_learning_curves(table, panels, often).axes[0].get_xscale() == "symlog"


def test_a_budget_has_a_line_per_tying_and_whole_numbers_of_values() -> None:
    trace = pd.DataFrame([[0.4, 0.5, 0.6], [0.5, 0.6, 0.7]], index=[0, 1], columns=[1, 2, 3])
    budgets = {"clean": {"shared": trace, "local": trace.iloc[:, :2]}, "noisy": {"local": trace}}
    figure = plot_budgets(budgets)
    clean, noisy = figure.axes
    assert [line.get_xdata().tolist() for line in clean.lines[:2]] == [[1, 2], [1, 2, 3]]  # local, shared
    np.testing.assert_allclose(clean.lines[1].get_ydata(), [0.45, 0.55, 0.65])
    assert all(tick == round(tick) for tick in noisy.get_xticks())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["local", "shared"]


def test_the_best_network_under_each_condition_is_counted_by_seed() -> None:
    """The local teacher's best student is local for 3 of 4 seeds, shared for one; one seed has a tie."""
    accuracies = {"shared": [0.9, 0.9, 0.9, 0.7], "local": [0.8, 0.9, 0.7, 0.6]}
    rows = [
        {"seed": seed, "data.tying": teacher, "model.tying": student, "test/accuracy": values[seed]}
        for teacher, students in {
            "shared": accuracies,
            "local": {"shared": [0.4] * 3 + [0.6], "local": [0.5] * 4},
        }.items()
        for student, values in students.items()
        for seed in range(4)
    ]
    table = pd.DataFrame(rows)
    best = count_best(table, "data.tying", "model.tying", ["shared", "local"])
    assert best.to_numpy().tolist() == [[3.5 / 4, 0.5 / 4], [1 / 4, 3 / 4]]
    incomplete = table.drop(index=0)  # a seed without all students does not count
    assert count_best(incomplete, "data.tying", "model.tying", ["shared", "local"]).loc[
        "shared"
    ].tolist() == [
        2.5 / 3,
        0.5 / 3,
    ]
    figure = plot_best(
        table, "data.tying", "model.tying", ["shared", "local"], {"all": {}}, ("teacher", "student")
    )
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["88%\n(85)", "12%\n(75)", "25%\n(45)", "75%\n(50)"]

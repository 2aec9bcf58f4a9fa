"""How far a sweep is, computed from stored runs whose times and states are known."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cnnexp.analysis.cell_curves import choose_curve_metric, collect_cell_curves, name_cells
from cnnexp.analysis.progress import Progress, drop_pilots, estimate_fraction, measure_progress
from cnnexp.store.changes import Reading, Times
from cnnexp.store.runs import StoredRun
from cnnexp.store.workers import LiveWorkers

NOBODY = LiveWorkers(0, frozenset())


def make_run(run_id: str, status: str = "finished", last: float = 10, **changes: Any) -> StoredRun:
    """Make a run of 10 steps that was evaluated at every second one up to `last`."""
    config: dict[str, Any] = {
        "seed": 0,
        "seeds": "first",
        "experiment": "test",
        "model": {"name": "simple_cnn", "tying": "shared"},
        "train": {"steps": 10, "epochs": None, "metrics": []},
    }
    for key, value in changes.pop("config", {}).items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    values = changes.pop("values", lambda step: step / 100)
    steps = range(0, int(last) + 1, 2)
    history = [{"step": step, "test/accuracy": values(step), **changes} for step in steps]
    return StoredRun(
        run_id=run_id, folder=Path(run_id), config=config, summary={}, history=history, status=status
    )


def measure(
    runs: list[StoredRun],
    times: Mapping[str, tuple[float, float]],
    planned: set[str] | None = None,
    workers: LiveWorkers = NOBODY,
    now: float = 1000.0,
    **options: Any,
) -> Progress:
    reading = Reading(runs, {run_id: Times(*time) for run_id, time in times.items()}, [])
    return measure_progress(runs, planned or set(), reading, workers, now, **options)


def test_states_are_those_of_living_workers_and_of_runs_that_were_asked_for() -> None:
    statuses = ["finished", "diverged", "stopped", "failed", "interrupted", "running", "running"]
    runs = [make_run(f"r{number}", status) for number, status in enumerate(statuses)]
    times = dict.fromkeys((run.run_id for run in runs), (0.0, 100.0))
    progress = measure(runs, times, {"r0", "new"}, LiveWorkers(1, frozenset({"r6", "r0"})))
    assert progress.counts == {
        "finished": 1,
        "running": 1,
        "queued": 1,
        "stopped": 1,
        "diverged": 1,
        "failed": 1,
        "interrupted": 2,
    }
    assert progress.states["r5"] == "interrupted" and progress.states["r6"] == "running"


def test_the_time_left_is_that_of_the_rate_of_the_present_session() -> None:
    runs = [make_run("old"), make_run("a"), make_run("b", "running", last=4)]
    times = {"old": (0.0, 100.0), "a": (5000.0, 5050.0), "b": (5050.0, 5070.0)}
    workers = LiveWorkers(1, frozenset({"b"}))
    progress = measure(runs, times, {"old", "a", "b", "c"}, workers, now=5140.0)
    assert progress.elapsed_seconds == pytest.approx(100 + 140)
    assert progress.seconds_left == pytest.approx((0.6 + 1.0) * 140 / 1.4)  # 1.4 runs in 140 s
    assert not progress.has_ended


def test_the_time_left_is_unknown_before_the_first_evaluation_and_without_workers() -> None:
    run = make_run("a", "running", last=0)
    first = measure([run], {"a": (900.0, 950.0)}, workers=LiveWorkers(1, frozenset({"a"})))
    assert first.seconds_left is None and first.elapsed_seconds == 100.0
    assert measure([make_run("a")], {"a": (0.0, 10.0)}, {"a", "b"}).seconds_left is None


def test_a_sweep_has_ended_if_nothing_is_left_or_its_workers_have_been_gone_for_a_while() -> None:
    done, times = [make_run("a")], {"a": (0.0, 999.0)}
    assert measure(done, times).has_ended
    assert not measure(done, times, workers=LiveWorkers(1, frozenset())).has_ended
    assert not measure(done, times, {"a", "b"}).has_ended  # the next worker may be about to start
    assert measure(done, times, {"a", "b"}, now=1100.0).has_ended
    assert not measure(done, times, {"a", "b"}, now=1100.0, waits_for_workers=True).has_ended
    extended = [make_run("a", config={"tune": 0})]
    extended[0].config["tune"] = {"extend": 2}
    assert not measure(extended, times).has_ended and measure(extended, times, now=1100.0).has_ended
    assert not measure([], {}, {"a"}).has_ended


@pytest.mark.parametrize(
    ("train", "row", "fraction"),
    [
        ({"steps": 10}, {"step": 4}, 0.4),
        ({"steps": None, "epochs": 2.0}, {"step": 4, "epoch": 0.5}, 0.25),
        ({"steps": None, "epochs": None}, {"step": 4}, 0.0),
        ({"steps": 10}, {"step": 40}, 1.0),
        ({"steps": "ten"}, {"step": math.nan}, 0.0),
    ],
)
def test_the_fraction_done_comes_from_the_last_evaluation(
    train: dict[str, Any], row: dict[str, Any], fraction: float
) -> None:
    run = StoredRun(
        run_id="a", folder=Path(), config={"train": train}, summary={}, history=[row], status="running"
    )
    assert estimate_fraction(run) == pytest.approx(fraction)


def test_runs_of_a_pilot_are_shown_only_where_there_are_no_others() -> None:
    pilot, other = make_run("p", config={"seeds": "pilot"}), make_run("a")
    assert drop_pilots([pilot, other], {"p": "pilot", "b": "first"}) == ([other], {"b"})
    assert drop_pilots([pilot], {"p": "pilot", "q": "pilot"}) == ([pilot], {"p", "q"})
    assert drop_pilots([pilot], {"b": "first"}) == ([], {"b"})


def test_cells_are_named_by_the_keys_that_tell_them_apart_whatever_their_state() -> None:
    runs = [
        make_run("a", config={"model": {"tying": "shared"}, "seed": 0}),
        make_run("b", "running", config={"model": {"tying": "local"}, "seed": 0}),
        make_run("c", "failed", config={"model": {"tying": "shared"}, "seed": 1}),
    ]
    assert name_cells(runs) == {"b": "tying=local", "a": "tying=shared", "c": "tying=shared"}
    assert next(iter(name_cells(runs).values())) == "tying=local"  # the order of tables
    assert name_cells(runs[:1]) == {"a": "model=simple_cnn"} and name_cells([]) == {}


def test_a_curve_is_the_mean_of_the_seeds_that_reached_a_step_without_diverged_and_failed_ones() -> None:
    runs = [
        make_run("a", last=4, values=lambda step: 0.1),
        make_run("b", "running", last=2, values=lambda step: 0.3),
        make_run("c", "diverged", last=6, values=lambda step: 0.9),
        make_run("d", "failed", last=6, values=lambda step: 0.9),
        make_run("e", "interrupted", last=0, values=lambda step: math.nan),
    ]
    states = {run.run_id: run.status for run in runs}
    (curve,) = collect_cell_curves(runs, name_cells(runs), states, "test/accuracy")
    found = [(point.step, point.mean, point.low, point.high) for point in curve.points]
    assert found == [(0, pytest.approx(0.2), 0.1, 0.3), (2, pytest.approx(0.2), 0.1, 0.3), (4, 0.1, 0.1, 0.1)]
    assert curve.counts == {"finished": 1, "running": 1, "diverged": 1, "failed": 1, "interrupted": 1}


def test_curves_show_validation_images_unless_a_run_lacks_them() -> None:
    with_validation = make_run("a", **{"validation/accuracy": 0.2})
    assert choose_curve_metric([with_validation]) == "validation/accuracy"
    assert choose_curve_metric([with_validation, make_run("b")]) == "test/accuracy"
    several = {"validation/label_accuracy": 0.2, "test/label_accuracy": 0.3}
    assert choose_curve_metric([make_run("a", **several)]) == "validation/label_accuracy"
    assert choose_curve_metric([]) == "test/accuracy"

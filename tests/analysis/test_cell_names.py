"""Names of cells are short, distinct, and the same in every process that mirrors a part of a sweep."""

from itertools import product
from pathlib import Path

import pytest

from cnnexp.analysis.cell_names import CellNames, name_cells
from cnnexp.config import RunConfig
from cnnexp.store.planned_runs import PLANNED, record_planned_runs
from cnnexp.store.run_writer import RunWriter
from tests.conftest import Configure


@pytest.fixture(autouse=True)
def work_in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def record(*runs: RunConfig) -> None:
    record_planned_runs({run.run_id: run for run in runs})


def test_a_name_has_the_values_that_vary_and_no_others(configure: Configure) -> None:
    grid = product(("shared", "local"), (3, 5), (0.1, 0.01), (0, 2), (0, 1))
    runs = [
        configure(
            model={"tying": tying, "kernel_size": size},
            optim={"learning_rate": rate},
            data={"crop": crop},
            seed=seed,
        )
        for tying, size, rate, crop, seed in grid
    ]
    record(*runs)
    names = name_cells(Path("results/test"))
    assert names[runs[0].run_id] == names[runs[1].run_id] == "shared k3 lr 0.1 crop=0"
    assert names[runs[-1].run_id] == "local k5 lr 0.01 crop=2" and len(set(names.values())) == 16


def test_keys_that_change_together_are_named_once(configure: Configure) -> None:
    record(
        *(configure(data={"crop": n, "shift": n, "block": n + 1}, model={"stride": n + 1}) for n in (0, 1))
    )
    names = set(name_cells(Path("results/test")).values())
    assert len(names) == 2 and not any(" " in name for name in names)


def test_close_values_have_different_names() -> None:
    rates = (0.12345671, 0.12345672)
    names = CellNames([{"optim.learning_rate": rate, "model.tying": "shared"} for rate in rates])
    assert len({names.name({"optim.learning_rate": rate}) for rate in rates}) == 2


def test_the_runs_of_earlier_commands_and_of_the_store_are_counted(configure: Configure) -> None:
    shared, local, large = (
        configure(),
        configure(model={"tying": "local"}),
        configure(model={"kernel_size": 5}),
    )
    folder = Path("results/test")
    record(shared, configure(seed=1))
    assert set(name_cells(folder).values()) == {"simple_cnn shared k3 s1"}
    record(local)  # as a worker does that has this part of the sweep alone
    assert name_cells(folder)[shared.run_id] == "shared"
    RunWriter(large)  # of a version that recorded no plan
    names = name_cells(folder)
    assert [names[run.run_id] for run in (shared, local, large)] == ["shared k3", "local k3", "shared k5"]
    for text in ("", "[]", '{"common": {}, "runs": {"../x": {}, "y": 3}}'):
        for path in (folder / PLANNED).iterdir():
            path.write_text(text)
        assert list(name_cells(folder)) == [large.run_id]


def test_a_run_that_keeps_its_weights_is_in_the_cell_of_the_others(configure: Configure) -> None:
    keeps, drops = configure(train={"keep": "last"}), configure(train={"keep": "none"}, seed=1)
    record(keeps, drops)
    assert len(set(name_cells(Path("results/test")).values())) == 1

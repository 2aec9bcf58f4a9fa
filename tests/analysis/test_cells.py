"""Cells and conditions select runs of a sweep by the values of its keys."""

import itertools

import pandas as pd
import pytest

from cnnexp.analysis.cells import Not, pair_cells, select_cell, select_runs, unchanged
from cnnexp.analysis.dataframe import varying_keys
from cnnexp.core.errors import UsageError


@pytest.fixture
def table() -> pd.DataFrame:
    """Three tyings, two training sizes and three seeds; only `shared` with 256 images is above 0.6."""
    cells = itertools.product(("dense", "local", "shared"), (64, 256), range(3))
    runs = pd.DataFrame(cells, columns=pd.Index(["model.tying", "data.train_size", "seed"]))
    best = (runs["model.tying"] == "shared") & (runs["data.train_size"] == 256)
    return runs.assign(**{"test/accuracy": best.map({True: 0.8, False: 0.5})})


@pytest.mark.parametrize(
    ("conditions", "number"),
    [
        (["model.tying=shared,local"], 12),
        (["model.tying!=shared", "seed<2"], 8),
        (["data.train_size<=64", "seed=0"], 3),
        (["test/accuracy>0.6"], 3),
    ],
)
def test_conditions_choose_runs(table: pd.DataFrame, conditions: list[str], number: int) -> None:
    assert len(select_runs(table, conditions)) == number


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("model.tieing=shared", "did you mean 'model.tying'"),
        ("model.tying=shard", "did you mean 'shared'"),
        ("model.tying<3", "= and !="),
        ("shared", "COLUMN=VALUE"),
    ],
)
def test_wrong_conditions_are_refused(table: pd.DataFrame, condition: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select_runs(table, [condition])


def test_tying_with_commas_is_one_value() -> None:
    table = pd.DataFrame({"model.tying": ["low_rank(4,free)", "shared"], "seed": [0, 0]})
    assert len(select_runs(table, ["model.tying=low_rank(4,free),shared"])) == 2
    assert len(select_runs(table, ["model.tying=low_rank(4,free)"])) == 1


def test_a_key_that_only_some_runs_have_varies() -> None:
    table = pd.DataFrame({"optim.l1": [None, 0.1], "train.steps": [None, None]})
    assert varying_keys(table) == ["optim.l1"]
    assert select_cell(table, {"optim.l1": None}).index.tolist() == [0]
    assert select_cell(table, {"optim.l1": 0.1}).index.tolist() == [1]


def test_a_key_that_the_data_do_not_have_has_no_value(table: pd.DataFrame) -> None:
    assert len(select_cell(table, {"data.apart": True})) == 0
    assert len(select_cell(table, {"data.apart": Not(True)})) == len(table)
    assert len(select_cell(table, {"data.apart": None})) == len(table)
    with pytest.raises(UsageError, match=r"^data\.aprat: no such key in a cell"):
        select_cell(table, {"data.aprat": True})


def test_what_is_known_of_unchanged_tables_is_forgotten_afterwards() -> None:
    table = pd.DataFrame({"seed": [0, 0, 1], "model.tying": ["shared", "local", "shared"], "data.crop": 2.0})
    table["test/accuracy"] = [0.5, 0.25, 1.0]
    other, shared = table.assign(**{"model.tying": "local"}), {"model.tying": "shared", "data.crop": 2}
    rest = {"model.tying": Not("shared")}
    with unchanged(table):
        for _ in range(2):  # the second time, from what is known
            assert pair_cells(table, "test/accuracy", shared).tolist() == [[0.5], [1.0]]
            assert pair_cells(table, "test/accuracy", shared, rest).tolist() == [[0.5, 0.25]]
            assert pair_cells(other, "test/accuracy", shared).tolist() == []
    table["model.tying"] = ["local", "local", "shared"]
    assert pair_cells(table, "test/accuracy", shared).tolist() == [[1.0]]

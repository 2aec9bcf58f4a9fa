"""Cells and conditions select runs of a sweep by the values of its keys."""

import itertools

import pandas as pd
import pytest

from cnnexp.analysis.cells import Not, pair_cells, select_cell, unchanged
from cnnexp.analysis.dataframe import varying_keys
from cnnexp.analysis.run_conditions import select_runs
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


def test_short_names_of_varying_keys_select_the_runs_of_their_columns(table: pd.DataFrame) -> None:
    table = table.assign(**{"model.name": ["mlp", "resnet"] * 9, "data.name": "digits"})
    for short, full in (
        ("tying=shared,local", "model.tying=shared,local"),
        ("train_size<=64", "data.train_size<=64"),
        ("model!=mlp", "model.name!=mlp"),
    ):
        assert select_runs(table, [short]).equals(select_runs(table, [full]))
    # The first condition leaves one tying only, which still has its short name.
    assert len(select_runs(table, ["model.tying=shared", "tying=shared", "train_size=64"])) == 3


def test_a_short_name_of_two_varying_keys_is_refused_with_both(table: pd.DataFrame) -> None:
    table = table.assign(**{"data.tying": ["shared", "dense"] * 9, "seed": 0, "data.seed": range(18)})
    with pytest.raises(UsageError) as error:
        select_runs(table, ["tying=shared"])
    assert str(error.value) == "--where tying: must name one key; write model.tying or data.tying"
    assert len(select_runs(table, ["seed=0"])) == 18, "the name of a column is not taken for a short one"
    # A key that does not vary is in no table, and has no short name.
    assert len(select_runs(table.assign(**{"data.tying": "shared"}), ["tying=shared"])) == 6


def test_an_unknown_short_name_is_refused_with_the_nearest_one(table: pd.DataFrame) -> None:
    with pytest.raises(UsageError, match=r"^--where tyin: no such column; did you mean 'tying'\?"):
        select_runs(table, ["tyin=shared"])
    constant = table.assign(**{"model.kernel_size": 3})
    with pytest.raises(UsageError, match=r"^--where kernel_size: .*did you mean 'model\.kernel_size'\?"):
        select_runs(constant, ["kernel_size=3"])


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


def test_what_no_run_has_measured_has_no_values(table: pd.DataFrame) -> None:
    for metric in ("learned/locality/conv_0", "probe/equivariance_error/conv_0"):
        assert pair_cells(table, metric, {"model.tying": "shared"}).tolist() == []
    with pytest.raises(KeyError):
        pair_cells(table, "test/acuracy", {"model.tying": "shared"})

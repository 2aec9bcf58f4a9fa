"""Finished runs and sweeps in a notebook, and trained networks measured again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnexp
from cnnexp.analysis.claims import Claim, more_than
from cnnexp.analysis.estimates import difference
from cnnexp.analysis.verdicts import judge
from cnnexp.core.errors import UsageError
from cnnexp.store.measurements import PROBES, read_evaluations
from cnnexp.store.runs import WEIGHTS, find_corrupt_files, has_ended, list_run_folders
from cnnexp.store.weights import Weights, write_weights
from cnnexp.sweep import trained
from cnnexp.training.loop import StackTrainer
from tests.conftest import SMALL_SWEEP, call_cnnexp, load_for_worker, load_once, prepare_process

WORDS = [
    "model.tying=shared,local",
    "data.pixel_noise=0.2",
    "data.validation_size=20",
    "train.label_smoothing=0.1",
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two cells of two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        prepare_process(patch)
        folder = tmp_path_factory.mktemp("swept")
        patch.chdir(folder)
        assert call_cnnexp("run", *SMALL_SWEEP, *WORDS, "seed=0,1") == 0
    return folder / "results" / "default"


@pytest.fixture
def sweep(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the sweep to the working folder, where a test changes it."""
    shutil.copytree(swept, tmp_path / "results" / "default")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trained, "load_or_open", load_for_worker)
    monkeypatch.setattr(trained, "load_images", load_once)
    monkeypatch.setattr("cnnexp.load.load_images", load_once)
    return Path("results/default")


def test_a_loaded_network_has_bit_for_bit_the_metrics_of_the_summary(sweep: Path) -> None:
    runs = [cnnexp.load_run(folder) for folder in list_run_folders(sweep)]
    assert len(runs) == 4
    for run in runs:
        trainer = StackTrainer(run.config, load_once(run.config.data), 1)
        (row,) = trainer.evaluate([run.config], [run.weights().arrays])
        metrics = {key: value for key, value in row.items() if "/" in key}
        assert metrics == {key: run.summary[key] for key in metrics} and "test/loss" in metrics
        assert run.weights().step == run.summary["steps"]


def test_a_run_has_its_configuration_history_network_and_images(sweep: Path) -> None:
    run = cnnexp.load_run(str(list_run_folders(sweep)[0]))
    assert run.status == "finished" and run.config.run_id == run.run_id
    assert run.history["step"].tolist() == [0, 3, 6]
    images = run.data()
    for split in ("train", "validation", "test"):
        logits = run.network()(getattr(images, f"{split}_images"))
        hits = np.asarray(logits).argmax(1) == getattr(images, f"{split}_labels")
        assert np.float32(hits.mean()) == pytest.approx(run.summary[f"{split}/accuracy"], abs=1e-6)
    assert len(images.train_images) == 64 and len(images.validation_images) == 20


def test_the_hits_of_a_run_are_those_of_its_network_one_by_one(sweep: Path) -> None:
    runs = [cnnexp.load_run(folder) for folder in list_run_folders(sweep)]
    for run in runs:
        images, hits = run.data(), run.hits()
        logits = np.asarray(run.network()(images.test_images))
        np.testing.assert_array_equal(hits.is_right, logits.argmax(1) == np.asarray(images.test_labels))
        assert np.float32(hits.is_right.mean()) == pytest.approx(run.summary["test/accuracy"], abs=1e-7)
        assert (run.folder / "hits.npz").stat().st_size < 700 + len(hits.is_right) / 8
    assert len({run.hits().fingerprint for run in runs}) == 1
    (runs[0].folder / "hits.npz").unlink()
    assert cnnexp.load_run(runs[0].folder).summary["test/accuracy"] > 0  # as a run of an older version
    with pytest.raises(UsageError, match=r"hits.npz: no hits are stored"):
        runs[0].hits()


def test_a_sweep_is_a_dataframe(sweep: Path) -> None:
    table = cnnexp.load_sweep(sweep)
    assert sorted(table["seed"]) == [0, 0, 1, 1] and "model.tying" in table


def test_what_is_no_run_or_no_sweep_is_refused_in_one_line(sweep: Path, tmp_path: Path) -> None:
    for path, words in (("nowhere", "no such folder"), (str(sweep), "holds no run")):
        with pytest.raises(UsageError, match=words):
            cnnexp.load_run(path)
    with pytest.raises(UsageError, match="no such sweep"):
        cnnexp.load_sweep(tmp_path / "results" / "defalt")
    with pytest.raises(AttributeError, match="no attribute 'load_rum'"):
        cnnexp.load_rum  # noqa: B018


def test_corrupt_or_missing_weights_are_named_with_the_command_and_keep_the_result(
    sweep: Path, swept: Path
) -> None:
    folder = list_run_folders(sweep)[0]
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert find_corrupt_files(folder) == [] and has_ended(folder)
    run = cnnexp.load_run(folder)
    with pytest.raises(UsageError, match=r"corrupt file .*weights\.safetensors") as corrupt:
        run.network()
    intact = cnnexp.load_run(swept / folder.name).weights().arrays
    zeros = {name: np.zeros_like(array) for name, array in intact.items()}
    write_weights(folder / WEIGHTS, Weights(step=6, arrays=zeros), folder.name)  # whole, but not the run's
    with pytest.raises(UsageError, match=r"corrupt file .*weights\.safetensors"):
        run.network()
    (folder / WEIGHTS).unlink()
    with pytest.raises(UsageError, match="no weights are stored") as missing:
        run.network()
    for error in (corrupt, missing):
        text = str(error.value)
        assert f"rm -r {folder} && cnnexp run" in text and text.endswith(" train.keep=last")
        assert "\n" not in text
    assert run.summary["test/accuracy"] >= 0


def test_importing_cnnexp_imports_nothing_heavy() -> None:
    code = (
        "import sys, cnnexp; print([m for m in ('jax', 'pandas', 'numpy', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_eval_adds_rows_under_other_conditions_and_leaves_the_training_alone(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = cnnexp.load_sweep(sweep)
    assert call_cnnexp("eval", "default", "data.pixel_noise=0,0.2,2", "data.corrupt=test") == 0
    assert "12 evaluations stored" in capsys.readouterr().out
    assert cnnexp.load_sweep(sweep).equals(before)
    table = cnnexp.load_sweep(sweep, evaluations=True)
    assert len(table) == 4 + 12
    rows = table[table["evaluation"] == "data.corrupt=test data.pixel_noise=2.0"]
    assert rows["data.pixel_noise"].tolist() == [2.0] * 4 and set(rows["data.corrupt"]) == {"test"}
    trained_rows = table[table["evaluation"] == ""].set_index("run_id")
    same_noise = table[table["evaluation"] == "data.corrupt=test"].set_index("run_id")
    for (
        run_id
    ) in same_noise.index:  # noise of the training is drawn alike, and only that of training images is off
        assert same_noise["test/loss"][run_id] == trained_rows["test/loss"][run_id]
        assert same_noise["train/loss"][run_id] != trained_rows["train/loss"][run_id]
    assert call_cnnexp("eval", "default", "data.pixel_noise=0.2") == 0  # as it was trained
    assert len(cnnexp.load_sweep(sweep, evaluations=True)) == 16


def test_eval_measures_other_images_as_the_network_was_trained_to_see_them(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same test images beside darker training images give the same metrics, and are named."""
    images = load_once(cnnexp.load_run(list_run_folders(sweep)[0]).config.data)
    arrays = {"test_images": images.test_images, "test_labels": images.test_labels}
    first = {
        "train_images": np.asarray(images.train_images)[:9] // 4,
        "train_labels": images.train_labels[:9],
    }
    np.savez("others.npz", **arrays, **first)  # pyright: ignore[reportArgumentType]
    assert call_cnnexp("eval", "default", "data=npz", "data.path=others.npz") == 0
    table = cnnexp.load_sweep(sweep, evaluations=True)
    rows = table[table["evaluation"] != ""].set_index("run_id")
    assert len(rows) == 4 and set(rows["data.name"]) == {"npz"} and rows["data.canvas"].isna().all()
    assert rows["evaluation"].str.fullmatch(r"data.checksum=x\w+ data.name=npz data.path=others.npz").all()
    trained_rows = table[table["evaluation"] == ""].set_index("run_id")
    assert (rows["test/loss"] == trained_rows["test/loss"][rows.index]).all()
    assert rows["train/loss"].isna().all() and rows["gap/accuracy"].isna().all()  # not what they trained on
    assert "name=npz" in capsys.readouterr().out

    seen = {"test_images": images.train_images[:5], "test_labels": images.train_labels[:5]}
    np.savez("others.npz", **seen, **first)  # pyright: ignore[reportArgumentType]
    assert call_cnnexp("eval", "default", "data=npz", "data.path=others.npz") == 0
    assert "5 of 5 test images are also training images of the sweep" in capsys.readouterr().err
    assert len(cnnexp.load_sweep(sweep, evaluations=True)) == 4 + 4 + 4


def test_eval_takes_a_corruption_of_the_user_with_its_options(sweep: Path) -> None:
    code = "def dim(image, strength, level=1.0):\n    return image * (1 - strength * level)\n"
    Path("dim.py").write_text(code, encoding="utf-8")
    words = [
        "data.corruption=dim.py:dim",
        "data.corruption_strength=0.5",
        "data.corruption_options.level=0,1.5",
    ]
    assert call_cnnexp("eval", "default", *words) == 0
    table = cnnexp.load_sweep(sweep, evaluations=True)
    losses = table.groupby(table["data.corruption_options.level"].fillna(-1.0))["test/loss"].mean()
    assert losses[0] == pytest.approx(losses[-1], abs=1e-5) and abs(losses[1.5] - losses[0]) > 1e-3


def test_evaluations_can_be_printed_by_cell(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_cnnexp("eval", "default", "data.shift=1") == 0
    capsys.readouterr()
    assert call_cnnexp("results", "default", "--evaluations", "--by", "model.tying", "--format", "csv") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and "evaluation" in lines[0] and any("data.shift=1" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "data.KEY=VALUE: missing"),
        (["model.tying=local"], "model.tying=local: would need another training"),
        (["optim.learning_rate=1"], "optim.learning_rate=1: would need another training"),
        (["data.train_size=4"], "data.train_size=4: would need another training"),
        (["data.canvas=12"], "data.canvas=12: must be 16x16x1 images of bytes in 10 classes"),
        (["data=mnist1d"], "data=mnist1d: must be 16x16x1"),
        (["data=npz"], "data.path: a value is missing"),
        (["data.pixel_nois=1"], "did you mean 'pixel_noise'?"),
        (["data.pixel_noise=-1"], "data.pixel_noise=-1: must be at least 0 (got -1)"),
        (["data.pixel_noise"], "data.pixel_noise: must be KEY=VALUE"),
        (["data.pixel_noise=range(0)"], "must have at least one value"),
    ],
)
def test_eval_refuses_what_it_cannot_mean_in_one_line_and_writes_nothing(
    sweep: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_cnnexp("eval", "default", *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert all(not read_evaluations(folder) for folder in list_run_folders(sweep))


def test_probe_adds_columns_that_differ_between_tyings(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (list_run_folders(sweep)[0] / WEIGHTS).unlink()
    assert call_cnnexp("probe", "default") == 0
    printed = capsys.readouterr()
    assert "3 runs probed" in printed.out and "left out: 1 run without weights" in printed.err
    table = cnnexp.load_sweep(sweep)
    columns = [str(column) for column in table if str(column).startswith("probe/")]
    assert {"probe/shift_consistency", "probe/receptive_field/conv_0"} <= set(columns)
    assert table["probe/shift_consistency"].isna().sum() == 1
    by_tying = table.groupby("model.tying")[columns].mean()
    assert by_tying["probe/kernel_distance/conv_0/far"]["local"] > 1
    assert by_tying["probe/kernel_distance/conv_0/far"]["shared"] < 1e-5
    error = by_tying["probe/equivariance_error/conv_0"]
    assert 0 < error["shared"] < error["local"]
    assert 2 <= by_tying["probe/receptive_field/conv_0"]["shared"] <= 5
    column = "probe/equivariance_error/conv_0"
    lead = difference({"model.tying": "local"}, {"model.tying": "shared"}, column)
    claim = Claim(
        sentence="A local network is less equivariant.",
        source="a test",
        estimate=lead,
        quantity=column,
        expected=more_than(0.0),
        unit="",
    )
    (verdict,) = judge([claim], table)
    assert verdict.seeds >= 1 and verdict.bounds[0] > 0


def test_foreign_probes_become_no_columns(sweep: Path) -> None:
    (list_run_folders(sweep)[0] / PROBES).write_text(json.dumps({"measures": {"model.tying": 1}, "crc32": 0}))
    assert not [column for column in cnnexp.load_sweep(sweep) if str(column).startswith("probe/")]


def test_a_sweep_without_weights_is_refused_with_the_command(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in list_run_folders(sweep):
        (folder / WEIGHTS).unlink()
    for words in (["probe", "default"], ["eval", "default", "data.shift=1"]):
        assert call_cnnexp(*words) == 2
        error = capsys.readouterr().err
        assert "no weights are stored" in error and error.count("\n") == 1


@pytest.mark.slow
def test_keeping_none_and_the_limit_store_no_weights(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train.keep=none", "name=none") == 0
    assert run("sweep.max_weights_gb=0", "name=limited") == 0
    assert "1 run does not store weights" in capsys.readouterr().err
    assert run("train.keep=last", "name=kept") == 0
    names = {name: list(Path("results", name).glob(f"*/{WEIGHTS}")) for name in ("none", "limited", "kept")}
    assert [len(files) for files in names.values()] == [0, 0, 1]
    ids = {folder.name for name in names for folder in list_run_folders(Path("results", name))}
    assert len(ids) == 1


CUSTOM = """
import jax
from flax import nnx

from cnnexp import TiedConv
from cnnexp.nn.geometry import Geometry


class Net(nnx.Module):
    def __init__(self, shape, classes, rngs):
        geometry = Geometry(in_shape=shape, features=2, kernel_size=(3, 3))
        self.blocks = nnx.List([TiedConv.from_geometry(geometry, tying="local", rngs=rngs)])
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(2, classes, rngs=rngs)

    def __call__(self, x):
        x = self.drop(jax.nn.relu(self.norm(self.blocks[0](x))))
        return self.head(x.mean((1, 2)))


def make(shape, classes, *, rngs):
    return Net(shape, classes, rngs)
"""


@pytest.mark.slow
def test_a_network_of_the_user_is_loaded_evaluated_and_probed(run: Any) -> None:
    Path("my_net.py").write_text(CUSTOM, encoding="utf-8")
    base = [word for word in SMALL_SWEEP if not word.startswith("model.")]
    assert run("model=custom", "model.file=my_net.py", base=base) == 0
    (folder,) = list_run_folders(Path("results/default"))
    loaded = cnnexp.load_run(folder)
    assert {"blocks.0.bank", "norm.mean", "head.kernel"} <= set(loaded.weights().arrays)
    trainer = StackTrainer(loaded.config, load_once(loaded.config.data), 1)
    (row,) = trainer.evaluate([loaded.config], [loaded.weights().arrays])
    assert row["test/loss"] == loaded.summary["test/loss"]
    assert call_cnnexp("eval", "default", "data.pixel_noise=1") == 0
    assert call_cnnexp("probe", "default") == 0
    table = cnnexp.load_sweep("results/default", evaluations=True)
    assert table["test/loss"].nunique() == 2
    assert table["probe/kernel_distance/blocks_0/far"][0] > 1
    assert table["probe/equivariance_error/blocks_0"][0] > 0.5  # a local layer
    assert 2 <= table["probe/receptive_field/blocks_0"][0] <= 3  # 3x3 kernels
    assert 0 <= table["probe/shift_consistency"][0] <= 1

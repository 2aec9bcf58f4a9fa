"""`cnnexp show`: counts without allocating, and the pictures."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from cnnexp.analysis.dataframe import read_finished_runs
from cnnexp.core.errors import UsageError
from cnnexp.core.terminal import DISK_ERROR
from cnnexp.nn.geometry import Connectivity, Geometry
from cnnexp.nn.tying import Tying, count_layer
from cnnexp.plots.layers import number_weights
from tests.conftest import call_cnnexp
from tests.layer_cases import TYINGS


def show(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    assert call_cnnexp("show", *arguments) == 0
    return capsys.readouterr().out


def test_show_describes_every_network_of_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["model=elsayed2020", "data=cifar10", "model.tying=shared,local,low_rank(4,free)", "seed=0,1"]
    text = show(sweep, tmp_path, monkeypatch, capsys)
    assert text.count("76,106 parameters") == 1
    assert "55,377,290 parameters" in text
    assert "low_rank(4,free) 3x3" in text
    assert "913kB" in text  # three numbers of four bytes for each parameter under AdamW
    pictures = {path.name for path in (tmp_path / "show").iterdir()}
    assert pictures == {f"simple_cnn-{tying}.png" for tying in ("shared", "local", "low_rank-4-free")}


def test_show_counts_a_network_with_and_without_its_normalisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["model=elsayed2020", "data=cifar10", "model.norm=none,batch"]
    text = show(sweep, tmp_path, monkeypatch, capsys)
    assert "simple_cnn on cifar10, images of 32x32x3: 76,106 parameters" in text
    assert "simple_cnn with batch normalisation on cifar10, images of 32x32x3: 76,490 parameters" in text


def test_show_prints_the_target_and_the_result_of_matching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = show(
        ["model.tying=local", "model.match=macs", "data.scatter=false"], tmp_path, monkeypatch, capsys
    )
    assert "macs matched to shared: target " in text
    assert "ratio reached 1.0" in text


@pytest.mark.parametrize("connectivity", ["local", "random"])
@pytest.mark.parametrize("tying", TYINGS)
def test_the_picture_of_a_layer_has_its_connections_and_weights(
    tying: str, connectivity: Connectivity
) -> None:
    geometry = Geometry(in_shape=(6, 6, 1), features=1, kernel_size=(3, 2), connectivity=connectivity)
    numbers, counts = number_weights(geometry, Tying.parse(tying)), count_layer(geometry, tying, "none")
    assert np.count_nonzero(numbers) == counts.connections
    if tying in ("shared", "tiled(2)", "blocked(2)"):
        assert len(np.unique(numbers[numbers > 0])) == counts.weights


def test_show_draws_training_test_and_corrupted_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["data.images=100", "data.test_images=50"]
    text = show([*small, "data.pixel_noise=0,0.3", "data.corrupt=test"], tmp_path, monkeypatch, capsys)
    assert "digits: 100 training and 50 test images of 16x16x1, 10 classes of " in text
    picture = tmp_path / "show" / "data-digits.png"
    three_rows = matplotlib.image.imread(picture).shape[0]  # train, test, and noisy test
    assert str(picture.relative_to(tmp_path)) in text
    show([*small, "data.pixel_noise=0"], tmp_path, monkeypatch, capsys)
    assert matplotlib.image.imread(picture).shape[0] < three_rows


def test_show_describes_networks_on_data_sets_that_are_not_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for data, image in (
        ("emnist/letters", "28x28x1"),
        ("imagenette/160px-v2", "64x64x3"),
        ("cifar100", "32x32x3"),
    ):
        text = show([f"data={data}"], tmp_path, monkeypatch, capsys)
        assert f"simple_cnn on {data}, images of {image}" in text
        assert f"no picture of the images: data.name={data}: not prepared" in text


def test_every_network_and_every_data_set_has_its_own_picture_outside_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for drawn in ("layers.plot_network", "images.plot_data"):  # a small one is enough
        monkeypatch.setattr(f"cnnexp.plots.{drawn}", lambda *_: Figure(figsize=(1, 1)))
    small = ["data.scatter=false", "data.canvas=10,12", "model.features=[2],[3]"]
    text = show(small, tmp_path, monkeypatch, capsys)
    networks = {"simple_cnn-shared.png", "simple_cnn-shared-2.png"}
    pictures = {f"show/{name}" for name in {*networks, "data-digits.png", "data-digits-2.png"}}
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")} == pictures
    assert all(text.count(f"{picture}\n") == 1 for picture in pictures)
    assert not (tmp_path / "results").exists()
    (tmp_path / "results" / "show").mkdir(parents=True)  # what an earlier version left
    with pytest.raises(UsageError, match=r"^show: no such sweep; no sweep in .*results/ yet"):
        read_finished_runs(tmp_path / "results" / "show")
    with pytest.raises(UsageError, match=r"^other: no such sweep; no sweep in .*results/ yet"):
        read_finished_runs(tmp_path / "results" / "other")


def test_show_in_a_folder_that_cannot_be_written_prints_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "show").write_text("a file where the folder would be")
    monkeypatch.chdir(tmp_path)
    assert call_cnnexp("show") == DISK_ERROR
    error = capsys.readouterr().err
    assert error.startswith("cnnexp: show") and "move it away" in error
    assert error.count("\n") == 1

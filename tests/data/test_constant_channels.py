"""A channel with one value in all training images, as alpha often has, becomes 0 and is reported."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnexp.cli import main as cli
from cnnexp.config.data import DataSection
from cnnexp.data.corruptions import Corruptions, CorruptionStrengths
from cnnexp.data.images import make_images
from cnnexp.data.loading import describe_dataset, load_or_open, read_and_check
from cnnexp.data.pipelines import ImageFiles
from cnnexp.plots.images import plot_data
from tests.conftest import Configure
from tests.fakes.tfds_digits import prepare_images, tfds_data

RNG = np.random.default_rng(0)
REPORT = "channel 3 (of 0 to 3) is 255 in all training images: the network receives 0 for it"


def draw_rgba(count: int) -> np.ndarray:
    images = RNG.integers(0, 256, (count, 8, 8, 4)).astype(np.uint8)
    images[..., 3] = 255
    return images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    images = [(image, number % 4) for number, image in enumerate(draw_rgba(100))]
    prepare_images(folder, {"train": images}, shape=(8, 8, 4))
    return folder


@pytest.fixture(autouse=True)
def separate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["bytes", "numbers"])
def test_a_constant_channel_becomes_zero_and_the_others_are_normalised_as_without_it(kind: str) -> None:
    train, test, labels = draw_rgba(50), draw_rgba(20), np.zeros(50, int)
    if kind == "numbers":
        train, test = (
            np.where(np.arange(4) == 3, 0.1, split / 255).astype(np.float32) for split in (train, test)
        )
    test[:10, ..., 3] = 0  # the channel may vary in test images
    normalisation = make_images(train, labels, test, labels[:20]).normalisation
    colours = make_images(train[..., :3], labels, test[..., :3], labels[:20]).normalisation
    assert normalisation.std[3] == 0 and normalisation.mean[3] == train[0, 0, 0, 3]
    for split in (train, test):
        pixels = jnp.asarray(split, jnp.float32)
        normalised = normalisation.normalise(pixels)
        expected = (pixels[..., :3] - colours.mean) / colours.std
        assert (normalised[..., 3] == 0).all()
        assert (normalised[..., :3] == expected).all()  # to the last bit


@pytest.mark.parametrize("kind", ["bytes", "numbers"])
def test_no_corruption_changes_a_constant_channel(kind: str, configure: Configure) -> None:
    changes = {
        "image_noise": 0.5,
        "pixel_noise": 0.3,
        "salt_and_pepper": 0.2,
        "shift": 2,
        "crop": 1,
        "flip": True,
    }
    data: DataSection = configure(data=changes).data
    images = draw_rgba(40) if kind == "bytes" else (draw_rgba(40) / 255).astype(np.float32)
    labels = np.zeros(40, int)
    normalisation = make_images(images, labels, images, labels).normalisation
    corruptions = Corruptions(data, jax.random.key(0), CorruptionStrengths.from_config(data), normalisation)
    for split, step in (("train", jnp.int32(3)), ("test", None)):
        corrupted = np.asarray(corruptions.images(images, np.arange(40), split=split, step=step))
        assert (corrupted[..., 3] == 0).all()
        assert np.isfinite(corrupted).all()
        assert 0.7 < corrupted[..., :3].std() < 2


def test_checks_report_the_channel_and_streams_have_the_statistics_of_memory(folder: Path) -> None:
    splits = {"train_split": "train[:80%]", "test_split": "train[80%:]"}
    data = tfds_data(folder, "made", **splits, stream="always")
    assert describe_dataset(data).endswith(f"; {REPORT}")
    assert read_and_check(data) == [f"made: {REPORT}"]
    files, memory = load_or_open(data), load_or_open(tfds_data(folder, "made", **splits))
    assert isinstance(files, ImageFiles)
    for a, b in zip(files.normalisation, memory.normalisation, strict=True):
        assert (a == b).all()


def test_a_run_on_images_with_a_constant_channel_finishes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command, as typed in a shell: no quotes reach it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    dataset = ["data=tfds", "data.name=made", f"data.data_dir={folder}", "data.batch_size=16"]
    splits = ["data.train_split=train[:70%]+train[95%:]", "data.test_split=train[90%:95%]"]  # 5 test images
    arguments = [*dataset, *splits, "model=mlp", "model.hidden=[]", "train.steps=4"]
    monkeypatch.setattr(sys, "argv", ["cnnexp", "run", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert f"cnnexp: warning: made: {REPORT}" in capsys.readouterr().err.splitlines()
    (summary,) = map(read_json, (tmp_path / "results").rglob("summary.json"))
    assert summary["status"] == "finished"
    assert np.isfinite([summary["train/loss"], summary["test/loss"]]).all()
    assert summary["test/accuracy"] * 5 == pytest.approx(round(summary["test/accuracy"] * 5), abs=1e-5)


def read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["bytes", "numbers"])
def test_plotted_images_show_the_colour_channels(kind: str, configure: Configure) -> None:
    """Without a warning of NumPy, which is an error here, for the channel that has no width."""
    images = draw_rgba(20) if kind == "bytes" else (draw_rgba(20) / 255).astype(np.float32)
    labels = np.arange(20) % 4
    figure = plot_data([configure()], make_images(images, labels, images, labels))
    (picture,) = figure.axes[0].images
    assert np.shape(picture.get_array()) == (8, 8, 3)
    assert np.ptp(np.asarray(picture.get_array())) > 0.5

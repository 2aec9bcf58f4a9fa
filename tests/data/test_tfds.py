"""Prepared TFDS sets: read, checked, refused where corrupt, and streamed with the results of memory."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from cnnexp.cli import main as cli
from cnnexp.config import RunConfig, parse
from cnnexp.core.errors import UsageError
from cnnexp.data.images import Images
from cnnexp.data.loading import describe_dataset, load_or_open
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.shapes import check_prepared, infer_shape
from cnnexp.data.tfds.prepared import find_prepared_set, list_prepared_sets
from cnnexp.training.loop import LoopState, StackTrainer
from tests.conftest import Configure
from tests.fakes.tfds_digits import NAME, TEST, TRAIN, digits, prepare_digits, tfds_data

LINEAR = {"name": "mlp", "hidden": []}  # a network that compiles fast


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_digits(tmp_path_factory.mktemp("tfds")).parents[1]


@pytest.fixture(autouse=True)
def separate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def configure_set(folder: Path, configure: Configure, *, seed: int = 0, **changes: Any) -> RunConfig:
    data = tfds_data(folder, **{"name": NAME, **changes}).model_dump()
    return parse(configure(seed=seed).model_dump() | {"model": LINEAR, "data": data})


def test_loaded_images_and_labels_are_those_that_were_prepared(prepared: Path, configure: Configure) -> None:
    data = configure_set(prepared, configure).data
    images = load_or_open(data)
    assert isinstance(images, Images)
    pixels, labels = digits()
    train = pixels[:TRAIN]
    for read, first, count in (
        ((images.train_images, images.train_labels), 0, TRAIN),
        ((images.test_images, images.test_labels), TRAIN, TEST),
    ):
        written = pixels[first : first + count], labels[first : first + count]
        assert sort_pairs(*read) == sort_pairs(*written)
    assert images.normalisation.mean == pytest.approx(train.mean(), rel=1e-5)
    assert images.normalisation.std == pytest.approx(train.std(), rel=1e-5)
    assert infer_shape(data).train_images == TRAIN and infer_shape(data).image == (8, 8, 1)
    again = load_or_open(data)  # from the cache
    assert all((a == b).all() for a, b in zip(images[:4], again[:4], strict=True))


def sort_pairs(images: Any, labels: Any) -> list[tuple[bytes, int]]:
    return sorted(zip(map(bytes, images), map(int, labels), strict=True))


def test_test_images_that_are_also_in_training_are_counted(prepared: Path, configure: Configure) -> None:
    pixels, _ = digits()
    train = {bytes(image) for image in pixels[:TRAIN]}
    duplicates = sum(bytes(image) in train for image in pixels[TRAIN : TRAIN + TEST])
    line = describe_dataset(configure_set(prepared, configure).data)
    assert line.startswith(f"{NAME}: 1,200 training and 300 test images of 8x8x1, 10 classes of ")
    assert line.endswith(f"; {duplicates} test images are also in the training split")


def test_images_of_several_sizes_are_resized_to_data_size(tmp_path: Path, configure: Configure) -> None:
    folder = prepare_digits(tmp_path, varied=True).parents[1]
    with pytest.raises(UsageError, match=r"data\.size: the images of tfds_digits have several sizes"):
        infer_shape(configure_set(folder, configure).data)
    images = load_or_open(configure_set(folder, configure, size=8).data)
    assert isinstance(images, Images)
    pixels, _ = digits()
    assert sorted(map(bytes, images.train_images)) == sorted(map(bytes, pixels[:TRAIN]))


def train(config: RunConfig, images: Any, runs: list[RunConfig], saved: Any = None) -> list[LoopState]:
    return list(StackTrainer(config, images, len(runs)).train(runs, saved))


def test_training_on_a_stream_gives_the_results_of_training_in_memory(
    prepared: Path, configure: Configure
) -> None:
    def train_from(stream: str, kind: type) -> list[LoopState]:
        changes = {"stream": stream, "validation_size": 50, "crop": 1, "pixel_noise": 0.1}
        runs = [
            configure_set(prepared, configure, seed=seed, train_size=size, **changes)
            for seed, size in ((0, 200), (1, 1000), (2, 1000))
        ]
        images = load_or_open(runs[0].data)
        assert isinstance(images, kind)
        return train(runs[0], images, runs)

    in_memory, streamed = train_from("never", Images), train_from("always", ImageFiles)
    assert in_memory[-1].rows != in_memory[0].rows
    evaluations = ([state for state in states if state.rows] for states in (in_memory, streamed))
    for memory, stream in zip(*evaluations, strict=True):
        assert memory.step == stream.step
        for a, b in zip(memory.rows or [], stream.rows or [], strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def test_a_resumed_stream_continues_with_the_next_batch(prepared: Path, configure: Configure) -> None:
    run = configure_set(prepared, configure, stream="always")
    files, saved = load_or_open(run.data), None
    trainer = StackTrainer(run, files)
    for state in trainer.train([run]):
        if state.step == 2:
            saved = jax.tree.map(lambda leaf: leaf.copy(), state.state)
        last = state
    resumed = list(trainer.train([run], saved))
    assert resumed[0].step > 2
    assert resumed[-1].rows == last.rows


def test_batches_hold_the_requested_images_in_order(prepared: Path, configure: Configure) -> None:
    files = load_or_open(configure_set(prepared, configure, stream="always").data)
    memory = load_or_open(configure_set(prepared, configure, stream="never").data)
    assert isinstance(files, ImageFiles) and isinstance(memory, Images)
    requested = np.random.default_rng(0).integers(0, TRAIN, (9, 2, 16))
    for start in (0, 4):
        batches = list(files.batches("train", lambda number: requested[number], start, 9))
        assert len(batches) == 9 - start
        for (indices, pixels), expected in zip(batches, requested[start:], strict=True):
            assert (indices == expected).all()
            assert (pixels == memory.train_images[expected]).all()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "missing"])
def test_a_corrupt_file_is_named_and_refused(
    prepared: Path, tmp_path: Path, configure: Configure, damage: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    file = sorted((folder / NAME / "1.0.0").glob("*train*"))[-1]
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        middle = content.index(b"PNG") + 40
        flipped = content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1 :]
        file.write_bytes(
            {"flipped": flipped, "truncated": content[: len(content) // 2], "empty": b""}[damage]
        )
    for stream in ("never", "always"):
        with pytest.raises(UsageError) as refusal:
            load_or_open(configure_set(folder, configure, stream=stream).data)
        assert str(file) in str(refusal.value) and f"cnnexp data prepare {NAME}" in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_labels_outside_the_classes_are_refused(prepared: Path, tmp_path: Path, configure: Configure) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    features = folder / NAME / "1.0.0" / "features.json"
    features.write_text(features.read_text().replace('"numClasses": "10"', '"numClasses": "9"'))
    with pytest.raises(UsageError, match=r"labels must be from 0 to 8 \(got 9 for image \d+\)"):
        load_or_open(configure_set(folder, configure).data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "tfds_digit"}, "did you mean 'tfds_digits'"),
        ({"name": "nothing_like_it"}, "run: cnnexp data prepare nothing_like_it"),
        ({"test_split": "tets"}, "no split 'tets'; did you mean 'test'?"),
    ],
)
def test_sets_and_splits_that_are_not_prepared_are_refused(
    prepared: Path, configure: Configure, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        check_prepared(configure_set(prepared, configure, **changes).data)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_set_prepared_as_tfrecord_is_refused(prepared: Path, tmp_path: Path, configure: Configure) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    info = folder / NAME / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(UsageError, match="prepared as tfrecord, which needs TensorFlow"):
        check_prepared(configure_set(folder, configure).data)


def test_a_corrupt_cache_is_replaced(prepared: Path, tmp_path: Path, configure: Configure) -> None:
    data = configure_set(prepared, configure).data
    images = load_or_open(data)
    (cache,) = (tmp_path / "cache").rglob("*.npz")
    cache.write_bytes(cache.read_bytes()[:-100])
    reloaded = load_or_open(data)
    assert isinstance(images, Images) and isinstance(reloaded, Images)
    assert (images.train_images == reloaded.train_images).all()


def run_command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["cnnexp", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out + captured.err


def test_data_list_prints_prepared_sets_with_their_sizes(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = run_command(["data", "list", "--data-dir", str(prepared)], monkeypatch, capsys)
    assert code == 0
    assert [prepared_set.name for prepared_set in list_prepared_sets(str(prepared))] == [NAME]
    assert find_prepared_set(NAME, str(prepared)).split_sizes() == {"test": TEST, "train": TRAIN}
    for part in (NAME, "1.0.0", "train 1,200", "8x8x1"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar"], "data set cifar: did you mean 'cifar10'"),
        (["emnist/leters"], "did you mean 'emnist/letters'"),
        (["cifar10", "--from", "nowhere"], "--from nowhere: no such folder"),
        (["cifar10", "--from", "."], "--from .: cifar-10-binary.tar.gz is missing"),
        (["imagenet2012", "--from", "."], "--from .: ILSVRC2012_img_val.tar is missing"),
        (["imagenet2012"], "its files must be downloaded by hand"),
    ],
)
def test_a_set_that_cannot_be_prepared_is_refused_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = run_command(
        ["data", "prepare", *arguments, "--data-dir", str(tmp_path)], monkeypatch, capsys
    )
    assert code == 2
    assert message in text.splitlines()[-1]


def test_a_file_with_another_checksum_than_the_published_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"something else")
    arguments = ["data", "prepare", "cifar10", "--from", str(tmp_path), "--data-dir", str(tmp_path / "tfds")]
    code, text = run_command(arguments, monkeypatch, capsys)
    assert code == 2
    assert "cifar-10-binary.tar.gz is not the published file" in text.splitlines()[-1]
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))

"""Prepared sets that are corrupt or unusual: refused in one line, or read as TensorFlow would read them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cnnexp.cli.data import print_prepared
from cnnexp.config import parse
from cnnexp.core.errors import UsageError
from cnnexp.data.images import Images
from cnnexp.data.loading import describe_dataset, load_images, load_or_open, read_and_check
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.shapes import check_prepared, infer_shape
from cnnexp.training.loop import StackTrainer
from tests.conftest import Configure
from tests.fakes.tfds_digits import prepare_images, tfds_data

RNG = np.random.default_rng(0)
Json = Any


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    images = [
        (image, number % 4) for number, image in enumerate(RNG.integers(0, 256, (30, 8, 8, 1), np.uint8))
    ]
    prepare_images(folder, {"train": images[:20], "test": images[20:]})
    return folder


@pytest.fixture(autouse=True)
def separate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encode_png(image: np.ndarray) -> bytes:
    """Encode an image; its channels are red, green, blue and alpha."""
    order = [2, 1, 0, 3][: image.shape[-1]] if image.shape[-1] > 1 else [0]
    return cv2.imencode(".png", image[..., order])[1].tobytes()


def edit_json(change: Callable[[Json], object]) -> Callable[[bytes], bytes]:
    """Return a function that applies a change to the parsed JSON of a file."""

    def apply(content: bytes) -> bytes:
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return apply


def train_split(info: Json) -> Json:
    (train,) = (entry for entry in info["splits"] if entry["name"] == "train")
    return train


def image(features: Json) -> Json:
    return features["featuresDict"]["features"]["image"]["image"]


def label(features: Json) -> Json:
    return features["featuresDict"]["features"]["label"]["classLabel"]


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


CORRUPT = [
    *(
        (file, change, f"{file}: not a description as TFDS writes it (")
        for file in ("dataset_info.json", "features.json")
        for change in (
            truncate,
            lambda _: b"",
            lambda _: b"[]",
            lambda _: b"null",
            lambda _: b"\xff\xfe",
            lambda _: b"7",
        )
    ),
    ("dataset_info.json", lambda _: b"{}", "(name: Field required)"),
    ("dataset_info.json", edit_json(lambda info: info.pop("splits")), "(splits: Field required)"),
    (
        "dataset_info.json",
        edit_json(lambda info: info.update(splits=[])),
        "(splits: List should have at least 1",
    ),
    ("dataset_info.json", edit_json(lambda info: info.update(splits={})), "(splits: "),
    ("dataset_info.json", edit_json(lambda info: train_split(info).pop("name")), "Field required)"),
    (
        "dataset_info.json",
        edit_json(lambda info: train_split(info).update(shardLengths=["x"])),
        "shardLengths.0: ",
    ),
    (
        "dataset_info.json",
        edit_json(lambda info: train_split(info).update(shardLengths=[-5])),
        "shardLengths.0: ",
    ),
    (
        "dataset_info.json",
        edit_json(lambda info: train_split(info).update(shardLengths=[])),
        "selects no images",
    ),
    (
        "dataset_info.json",
        edit_json(lambda info: train_split(info).update(shardLengths=[0])),
        "selects no images",
    ),
    (
        "dataset_info.json",
        edit_json(lambda info: train_split(info).update(shardLengths=[7, 13])),
        "the file is missing",
    ),
    (
        "dataset_info.json",
        edit_json(lambda info: train_split(info).update(shardLengths=[21])),
        "20 records, expected 21",
    ),
    ("dataset_info.json", edit_json(lambda info: info.pop("fileFormat")), "prepared as tfrecord"),
    ("features.json", lambda _: b"{}", "not a set of images with one label each (images: [], labels: [])"),
    ("features.json", edit_json(lambda features: features.update(featuresDict=[])), "(featuresDict: "),
    (
        "features.json",
        edit_json(lambda features: image(features)["shape"].update(dimensions=["8", "8"])),
        "dimensions",
    ),
    (
        "features.json",
        edit_json(lambda features: image(features)["shape"].update(dimensions=["8", "8", "2"])),
        "its images must have 1, 3 or 4 channels (got 2)",
    ),
    (
        "features.json",
        edit_json(lambda features: image(features).update(dtype="float32")),
        "its images must be uint8 or uint16 (got float32)",
    ),
    (
        "features.json",
        edit_json(lambda features: label(features).pop("numClasses")),
        "must have at least 2 classes (got 0)",
    ),
    (
        "features.json",
        edit_json(lambda features: label(features).update(numClasses="1")),
        "must have at least 2 classes (got 1)",
    ),
    (
        "features.json",
        edit_json(lambda features: label(features).update(numClasses="3")),
        "labels must be from 0 to 2 (got 3 for image ",
    ),
]


@pytest.mark.parametrize(("file", "change", "message"), CORRUPT)
def test_a_corrupt_set_is_refused_in_one_line(
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    change: Callable[[bytes], bytes],
    message: str,
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    written = folder / "made" / "1.0.0" / file
    written.write_bytes(change(written.read_bytes()))
    data = tfds_data(folder, "made")
    for stream in ("never", "always"):
        with pytest.raises(UsageError) as refusal:
            read_and_check(data.model_copy(update={"stream": stream}))
        assert message in str(refusal.value)
        assert "\n" not in str(refusal.value)
    print_prepared(str(folder))  # reads no image
    assert "made" in capsys.readouterr().out


def test_a_missing_description_is_refused(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    features = folder / "made" / "1.0.0" / "features.json"
    features.unlink()
    with pytest.raises(UsageError, match=r"features\.json: cannot be read \(No such file or directory\)"):
        infer_shape(tfds_data(folder, "made"))


COLOUR = RNG.integers(0, 256, (8, 8, 4)).astype(np.uint8)
RGB, GREY = COLOUR[..., :3], COLOUR[..., :1]
LUMA = np.array([0.299, 0.587, 0.114])
DEEP = RNG.integers(0, 2**16, (8, 8, 4)).astype(np.uint16)


def opaque(image: np.ndarray) -> np.ndarray:
    return np.concatenate([np.broadcast_to(image, (8, 8, 3)), np.full((8, 8, 1), 255, np.uint8)], -1)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (GREY, np.repeat(GREY, 3, -1)),
        (COLOUR, RGB),
        (DEEP[..., :3], DEEP[..., :3] // 256),
        (RGB, RGB @ LUMA[:, None]),
        (DEEP[..., :1], DEEP[..., :1] // 256),
        (COLOUR, COLOUR),
        (RGB, opaque(RGB)),
        (GREY, opaque(GREY)),
        (DEEP, DEEP // 256),
    ],
)
def test_png_files_are_converted_to_the_channels_and_bits_of_the_set(
    stored: np.ndarray, expected: np.ndarray, tmp_path: Path
) -> None:
    """Grey in a colour set, 16 bits, with or without alpha: as TensorFlow decodes them."""
    images = [(encode_png(stored), number % 2) for number in range(4)]
    prepare_images(tmp_path, {"train": images[:2], "test": images[2:]}, shape=expected.shape, classes=2)
    loaded = load_or_open(tfds_data(tmp_path, "made"))
    assert isinstance(loaded, Images)
    assert np.abs(np.asarray(loaded.train_images[0], float) - expected).max() <= 1


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_16_bits_keep_their_levels_in_memory_and_on_disk(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(30_000, 30_200, (40, 8, 8, channels)).astype(np.uint16)
    labelled = [(image, number % 4) for number, image in enumerate(pixels)]
    splits = {"train": labelled[:32], "test": labelled[32:]}
    prepare_images(tmp_path, splits, shape=(8, 8, channels), dtype=np.uint16)
    data = tfds_data(tmp_path, "made", stream="never")
    images, files = load_images(data), load_or_open(data.model_copy(update={"stream": "always"}))
    assert isinstance(files, ImageFiles)
    levels = np.round(np.asarray(images.train_images) * 65535).astype(np.uint16)
    assert sorted(map(bytes, levels)) == sorted(map(bytes, pixels[:32]))
    assert (files.records["train"].read(range(32))[0] == images.train_images).all()
    mean, std = images.normalisation
    assert mean == pytest.approx(pixels[:32].mean((0, 1, 2)) / 65535, rel=1e-6)
    assert std == pytest.approx(pixels[:32].std((0, 1, 2)) / 65535, rel=1e-4)
    assert infer_shape(data).bytes == images.train_images.nbytes + images.test_images.nbytes


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3)])
@pytest.mark.parametrize("sides", [(4, 16), (8, 1), (1, 1), (16, 16)])
def test_an_image_of_another_size_than_the_set_is_refused(
    shape: tuple[int, int, int], sides: tuple[int, int], tmp_path: Path
) -> None:
    """Also where NumPy would repeat it, or fold it, into the shape of the set."""
    images = [
        (encode_png(np.zeros((*size, shape[2]), np.uint8)), 0) for size in ((8, 8), (8, 8), sides, (8, 8))
    ]
    prepare_images(tmp_path, {"train": images[:3], "test": images[3:]}, shape=shape)
    with pytest.raises(UsageError, match=rf"\({sides[0]}x{sides[1]} pixels in a set of 8x8\)"):
        load_or_open(tfds_data(tmp_path, "made"))


def test_a_record_that_is_not_an_image_is_refused(tmp_path: Path) -> None:
    good = encode_png(np.zeros((8, 8, 1), np.uint8))
    prepare_images(tmp_path, {"train": [(good, 0), (b"GIF89a...", 1)], "test": [(good, 0)]})
    with pytest.raises(UsageError, match=r"record \d is not an image \(neither PNG nor JPEG\)"):
        load_or_open(tfds_data(tmp_path, "made"))


def test_classes_without_images_are_reported_and_training_works(tmp_path: Path, configure: Configure) -> None:
    """As in EMNIST letters, whose class 0 is empty; of class 2 there are fewer images than of others."""
    labels = [1] * 30 + [3] * 30 + [2] * 3 + [4]
    images = [
        (image, label)
        for image, label in zip(RNG.integers(0, 256, (64, 8, 8, 1), np.uint8), labels, strict=True)
    ]
    prepare_images(tmp_path, {"train": images[:-1], "test": [images[0], images[1], images[-1]]}, classes=6)
    data = tfds_data(tmp_path, "made", train_size=48)
    assert "3 classes of 3 to 30 training images" in describe_dataset(data)
    assert describe_dataset(data).endswith("; no training images of 3 classes (0, 4, 5)")
    assert read_and_check(data) == [
        "made: 2 of 3 test images are also in the training split: test accuracy also measures memorisation",
        "made: 1 of 3 test images belong to class 4, never seen in training",
    ]
    run = parse(
        configure().model_dump() | {"model": {"name": "mlp", "hidden": []}, "data": data.model_dump()}
    )
    *_, last = StackTrainer(run, load_or_open(data), 1).train([run])
    assert last.rows is not None and np.isfinite(last.rows[0]["test/loss"])


def test_a_valid_set_has_no_warnings(prepared: Path) -> None:
    data = tfds_data(prepared, "made")
    check_prepared(data)
    assert read_and_check(data) == []
    assert describe_dataset(data) == (
        "made: 20 training and 10 test images of 8x8x1, 4 classes of 5 training images; "
        "0 test images are also in the training split"
    )

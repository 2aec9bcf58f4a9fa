"""Images of the user: NumPy archives, folders of images, and arrays that a function returns."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from cnnexp.config import parse
from cnnexp.config.data import DataSection
from cnnexp.config.datasets import ArrayData
from cnnexp.core.errors import UsageError
from cnnexp.data.array_set import compute_checksum, describe_shape
from cnnexp.data.array_set import make_image_set as read_records
from cnnexp.data.arrays import complete_splits, open_arrays
from cnnexp.data.images import Images
from cnnexp.data.loading import add_checksums, describe_dataset, load_images, read_and_check
from cnnexp.data.shapes import infer_shape
from tests.conftest import SMALL, Configure

COMMON = {key: value for key, value in SMALL["data"].items() if key in DataSection.model_fields}
rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (40, 6, 5, 3)).astype(np.uint8)
LABELS = np.arange(40) % 4
TRAINING = [
    "data.train_size=20",
    "data.batch_size=10",
    "model.features=[2]",
    "train.steps=2",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(configure: Configure, name: str, **keys: Any) -> Any:
    values = configure().model_dump()
    return add_checksums([parse({**values, "data": {**COMMON, "name": name, **keys}})])[0]


def make_image_set(arrays: Any, origin: str, test_fraction: float | None = None, seed: int = 0) -> Images:
    return read_records(complete_splits(open_arrays(arrays, origin), origin, test_fraction, seed))


def write_code(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")


def write_picture(path: str, pixels: np.ndarray) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    order = [2, 1, 0, 3][: pixels.shape[-1]] if pixels.ndim == 3 else ...
    assert cv2.imwrite(path, pixels[..., order] if pixels.ndim == 3 else pixels)


def read_folder(configure: Configure, **keys: Any) -> Images:
    return load_images(make_run(configure, "folder", path="set", **keys).data)


def test_arrays_of_an_archive_are_the_images_and_their_shape_is_known(configure: Configure) -> None:
    train = {"train_images": PIXELS, "train_labels": LABELS}
    validation = {"val_images": PIXELS[:8], "val_labels": LABELS[:8]}
    np.savez("a.npz", **train, **validation, x_test=PIXELS[:9], y_test=LABELS[:9, None])
    data = make_run(configure, "npz", path="a.npz").data
    images, shape = load_images(data), infer_shape(data)
    assert (images.train_images == PIXELS).all() and (images.test_labels == LABELS[:9]).all()
    assert (images.validation_images == PIXELS[:8]).all()
    assert (shape.image, shape.classes, shape.itemsize) == ((6, 5, 3), 4, 1)
    assert (shape.train_images, shape.test_images, shape.validation_images) == (40, 9, 8)
    assert images.normalisation.mean == pytest.approx(PIXELS.mean((0, 1, 2)), rel=1e-6)
    assert "9 test images are also in the training split" in describe_dataset(data, images)
    assert read_and_check(data) == [
        "npz: 9 of 9 test images are also in the training split: test accuracy also measures memorisation"
    ]
    with pytest.raises(UsageError, match=r"data\.test_fraction=0\.5: must be null for data\.path=a\.npz"):
        make_run(configure, "npz", path="a.npz", test_fraction=0.5)


def test_a_test_split_is_drawn_with_the_frequencies_of_the_classes() -> None:
    images = make_image_set({"images": PIXELS, "labels": LABELS}, "x", test_fraction=0.3)
    assert np.bincount(images.test_labels).tolist() == [3] * 4
    both = np.concatenate([images.train_images, images.test_images])
    assert sorted(map(bytes, both)) == sorted(map(bytes, PIXELS))
    again = make_image_set({"images": PIXELS, "labels": LABELS}, "x", test_fraction=0.3)
    other = make_image_set({"images": PIXELS, "labels": LABELS}, "x", test_fraction=0.3, seed=1)
    assert compute_checksum(images) == compute_checksum(again) != compute_checksum(other)


def test_types_of_pixels_keep_their_range() -> None:
    deep = (np.arange(40 * 4, dtype=np.uint16) * 400).reshape(40, 2, 2)
    images = make_image_set({"images": deep, "labels": LABELS}, "x")
    assert images.train_images.dtype == np.float32 and images.train_images.shape[1:] == (2, 2, 1)
    values = np.concatenate([images.train_images.ravel(), images.test_images.ravel()])
    assert len(np.unique(values)) == 160 and values.max() == pytest.approx(159 * 400 / 65535)
    bits = make_image_set({"images": deep > 30000, "labels": LABELS}, "x")
    assert set(np.unique(bits.train_images)) == {0, 255} and bits.train_images.dtype == np.uint8
    real = make_image_set({"images": deep.astype(float), "labels": LABELS}, "x")
    assert real.train_images.dtype == np.float32 and real.train_images.max() > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": PIXELS.astype(int)}, "train_images: must be uint8, uint16, bool or float"),
        ({"images": PIXELS[0, 0]}, r"train_images: must have the shape .*\(got \(5, 3\)\)"),
        ({"images": np.full((40, 2, 2), np.nan)}, "train_images: must be finite"),
        ({"images": None}, "has no array 'train_images'"),
        ({"labels": LABELS[:30]}, "train_labels must be 40, one per image"),
        ({"labels": LABELS - 1}, r"train_labels: must be from 0 .*\(got -1\)"),
        ({"labels": LABELS / 2}, "train_labels: must be whole numbers"),
        ({"labels": LABELS * 0}, "must have at least 2 classes"),
        ({"labels": np.stack([LABELS, LABELS], 1)}, r"must be from 0 to 1 \(got 3\)"),
        ({"pictures": PIXELS}, "the array 'pictures' has no meaning"),
        ({"train_images": PIXELS}, "'train_images' and another array both are train_images"),
        ({"test_images": PIXELS}, "has no array 'test_labels'"),
        (
            {"test_images": PIXELS[..., :1], "test_labels": LABELS},
            "test_images must be as train_images, uint8 6x5x3 .*uint8 6x5x1",
        ),
    ],
)
def test_arrays_that_cannot_be_trained_on_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_image_set({"images": PIXELS, "labels": LABELS} | changes, "x")


def test_an_image_may_have_several_labels() -> None:
    several = np.stack([LABELS > 1, LABELS % 2 == 0, LABELS == 0], 1)
    shape = describe_shape(
        complete_splits(open_arrays({"images": PIXELS, "labels": several}, "x"), "x", None, 0)
    )
    assert shape.multi_label and shape.classes == 3


def test_changed_images_are_another_run_and_moved_ones_are_not(configure: Configure) -> None:
    np.savez("a.npz", images=PIXELS, labels=LABELS)
    first = make_run(configure, "npz", path="a.npz")
    shutil.copy("a.npz", "b.npz")
    assert make_run(configure, "npz", path="b.npz").run_id == first.run_id
    changed = PIXELS.copy()
    changed[3, 2, 1, 0] ^= 1
    np.savez("a.npz", images=changed, labels=LABELS)
    os.utime("a.npz", (1, 1))  # a clock may not have ticked since
    assert make_run(configure, "npz", path="a.npz").run_id != first.run_id
    with pytest.raises(UsageError, match=r"data\.checksum=x.* data\.path=a\.npz holds other images"):
        load_images(first.data)
    assert load_images(first.data.model_copy(update={"path": "b.npz"})).train_images.shape == (32, 6, 5, 3)


def test_images_are_read_once(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    write_code(
        "counted.py",
        "import numpy as np\ncalls = []\n\ndef load(n=40):\n    calls.append(n)\n"
        "    return {'images': np.zeros((n, 4, 4), np.uint8), 'labels': np.arange(n) % 2}\n",
    )
    runs = [make_run(configure, "custom", target="counted:load", options={"n": n}) for n in (40, 50, 40)]
    for run in (*runs, runs[-1]):
        assert infer_shape(run.data).train_images in (32, 40)
    assert sys.modules["counted"].calls == [40, 50]
    load_images(runs[1].data), load_images(runs[1].data)
    assert sys.modules["counted"].calls == [40, 50]


def test_a_folder_per_class_is_read_in_the_order_of_names(configure: Configure) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for label in (2, 10):
            for number in range(count):
                write_picture(f"set/{split}/{label}/{number}.png", np.full((4, 5), label + number, np.uint8))
    Path("set/train/2/.DS_Store").touch()
    images = read_folder(configure)
    assert images.train_images.shape == (6, 4, 5, 1) and images.train_images.dtype == np.uint8
    assert images.train_images[:, 0, 0, 0].tolist() == [2, 3, 4, 10, 11, 12]
    assert images.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and images.test_labels.tolist() == [0, 0, 1, 1]
    colours = read_folder(configure, channels=3)
    assert (colours.train_images == images.train_images).all() and colours.train_images.shape[3] == 3
    os.remove("set/test/2/0.png")
    assert len(read_folder(configure).test_images) == 3  # noticed without a new process


def test_pixels_of_every_kind_of_file(configure: Configure) -> None:
    colour = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    clear = np.concatenate([colour, np.array([0, 255] * 8, np.uint8).reshape(4, 4, 1)], 2)
    for number, pixels in enumerate((colour, clear, colour[..., 0])):
        write_picture(f"set/a/{number}.png", pixels)
        write_picture(f"set/b/{number}.png", 255 - pixels)
    whole = read_folder(configure, test_fraction=0.2)
    pixels = np.concatenate([whole.train_images, whole.test_images])
    kept = {bytes(image) for image in pixels}
    on_white = np.where(clear[..., 3:] == 255, colour, 255).astype(np.uint8)
    assert {bytes(colour), bytes(on_white), bytes(np.repeat(colour[..., :1], 3, 2))} <= kept
    deep = (np.arange(16, dtype=np.uint16) * 4000).reshape(4, 4)
    write_picture("set/a/3.png", deep)
    grey = read_folder(configure, channels=1, test_fraction=0.2)
    pixels = np.concatenate([grey.train_images, grey.test_images])
    assert pixels.dtype == np.float32 and pixels.max() <= 1
    assert any(np.allclose(image[..., 0] * 65535, deep, atol=0.01) for image in pixels)


def test_transparent_grey_and_palette_files_have_four_channels_where_alpha_is_kept(
    configure: Configure,
) -> None:
    clear = rng.integers(0, 256, (4, 4, 4)).astype(np.uint8)
    palette = Image.fromarray(clear[..., :3]).quantize(16)
    for name in ("a", "b"):
        write_picture(f"set/{name}/1.PNG", clear)
        write_picture(f"set/{name}/2.png", clear[..., 0])
        palette.save(f"set/{name}/3.png")
        write_picture(f"set/{name}/4.JPEG", np.full((4, 4), 100, np.uint8))
        Path(f"set/{name}/.hidden.txt").touch()
    whole = read_folder(configure, channels=4, test_fraction=0.5)
    kept = {bytes(image) for image in np.concatenate([whole.train_images, whole.test_images])}
    opaque = np.full((4, 4, 1), 255, np.uint8)
    grey = np.concatenate([np.repeat(clear[..., :1], 3, 2), opaque], 2)
    coloured = np.concatenate([np.asarray(palette.convert("RGB")), opaque], 2)
    assert {bytes(clear), bytes(grey), bytes(coloured)} <= kept and len(kept) == 4
    assert read_folder(configure, test_fraction=0.5).train_images.shape == (4, 4, 4, 3)
    Path("set/c").mkdir()
    with pytest.raises(UsageError, match=r"set/c: the folder of a class must have at least 1 image"):
        read_folder(configure, test_fraction=0.5)


def test_images_of_several_sizes_need_one_and_corrupt_files_are_named(configure: Configure) -> None:
    write_picture("set/a/1.png", np.full((4, 4), 9, np.uint8))
    write_picture("set/b/1.jpg", np.full((6, 8), 200, np.uint8))
    with pytest.raises(UsageError, match=r"data\.size: .*1\.png has 4x4 pixels and .*1\.jpg has 6x8"):
        read_folder(configure)
    resized = read_folder(configure, size=4, test_fraction=0.5)
    assert resized.train_images.shape == (1, 4, 4, 1)
    assert {resized.train_images[0, 0, 0, 0], resized.test_images[0, 0, 0, 0]} == {9, 200}
    data = Path("set/b/1.jpg").read_bytes()
    for text, reason in ((data[: len(data) // 2], "corrupt image"), (b"text", "must be a PNG or JPEG file")):
        Path("set/b/1.jpg").write_bytes(text)
        with pytest.raises(UsageError, match=f"set/b/1.jpg: {reason}"):
            read_folder(configure, size=4, test_fraction=0.5)
    Path("set/b/2.gif").write_bytes(b"")
    with pytest.raises(UsageError, match=r"set/b/2\.gif: must be an image"):
        read_folder(configure, size=4, test_fraction=0.5)


def test_errors_in_a_function_of_the_user_name_the_line(configure: Configure) -> None:
    write_code("mine.py", "import helper\n\ndef load():\n    return helper.fail()\n")
    write_code("helper.py", "def fail():\n    raise KeyError('no such cell')\n")
    with pytest.raises(
        UsageError, match=r"^data\.file=mine\.py: helper\.py, line 2: KeyError: 'no such cell'$"
    ):
        make_run(configure, "custom", file="mine.py")
    write_code("syntax.py", "def load(:\n")
    with pytest.raises(UsageError, match=r"syntax\.py cannot be imported \(line 1: SyntaxError"):
        make_run(configure, "custom", file="syntax.py")


@pytest.mark.slow
def test_a_run_on_images_of_the_user_is_trained_once_and_its_configuration_is_stored(
    run: Any, folder: Path, configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    write_code(
        "mine.py",
        "import numpy as np\n\ndef load(side=6):\n    rng = np.random.default_rng(0)\n"
        "    images = rng.random((50, side, side), np.float32)\n"
        "    return {'images': images, 'labels': (images[:, 0, 0] > 0.5).astype(int)}\n",
    )
    words = ["data=custom", "data.file=mine.py", "data.options.side=8", "data.pixel_noise=0,0.1"]
    assert run(*words, base=TRAINING) == 0
    stored = [yaml.safe_load(file.read_text()) for file in folder.glob("results/default/*/config.yaml")]
    assert len(stored) == 2 and len({values["data"]["checksum"] for values in stored}) == 1
    for values in stored:
        config = parse(values)
        assert isinstance(config.data, ArrayData)
        assert (folder / "results" / "default" / config.run_id).is_dir()
    capsys.readouterr()
    assert run(*words, base=TRAINING) == 0
    assert len(list(folder.glob("results/default/*/config.yaml"))) == 2

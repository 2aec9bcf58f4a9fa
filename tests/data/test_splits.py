"""Splits in the syntax of TFDS select the images that TFDS selects; no image is in training and test."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from cnnexp.config import parse
from cnnexp.config.datasets import TFDSImages
from cnnexp.core.errors import UsageError
from cnnexp.data.images import Images
from cnnexp.data.loading import describe_drawn_tests, load_or_open
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.shapes import check_prepared, infer_shape
from cnnexp.data.tfds.prepared import PreparedSet
from cnnexp.data.tfds.records import Records
from cnnexp.sweep.overrides import quote_tyings
from tests.conftest import Configure
from tests.fakes.tfds_digits import prepare_images, tfds_data

TRAIN, TEST = 123, 31  # in several files, of sizes that percentages do not divide
SPECS = [
    "train[80%:]",
    "train[:80%]",
    "train[33%:67%]",
    "train[-12.5%:]",
    "train[:50]",
    "train[100:]",
    "train[-100:-1]",
    "train[1shard]",
    "train[:-1shard]",
    "train+test",
    "test + train[5:7]",
    "train[:50%]+test[:10%]",
    "all",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets, `made` and `train_only`; the pixels of each image are its number."""
    folder = tmp_path_factory.mktemp("sets")

    def images(first: int, count: int) -> list[tuple[np.ndarray, int]]:
        return [(np.full((8, 8, 1), first + number, np.uint8), number % 4) for number in range(count)]

    prepare_images(folder, {"train": images(0, TRAIN), "test": images(TRAIN, TEST)}, shards=3)
    prepare_images(folder, {"train": images(0, 50)}, name="train_only")
    return folder


@pytest.fixture(autouse=True)
def separate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def first_pixels(images: np.ndarray) -> list[int]:
    return images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("split", SPECS)
def test_a_split_selects_the_images_that_tfds_selects(folder: Path, split: str) -> None:
    prepared = PreparedSet(name="made", folder=folder / "made" / "1.0.0")
    source = tfds.builder_from_directory(prepared.folder).as_data_source(split=split)
    records = Records(prepared, split, (8, 8, 1), resize=False)
    images, labels = records.read(range(len(records)))
    assert labels.tolist() == [int(example["label"]) for example in source]
    assert first_pixels(images) == [int(example["image"][0, 0, 0]) for example in source]
    assert len(images) == sum(part.stop - part.start for part in prepared.parts(split)) > 0
    indices = [len(records) - 1, 0, len(records) // 2]
    assert (records.read(indices)[0] == images[indices]).all()


@pytest.mark.parametrize("stream", ["never", "always"])
def test_a_held_out_part_of_the_training_split_is_the_test_split(folder: Path, stream: str) -> None:
    data = tfds_data(folder, "train_only", train_split="train[:80%]", test_split="train[80%:]", stream=stream)
    shape, loaded = infer_shape(data), load_or_open(data)
    assert (shape.train_images, shape.test_images) == (40, 10)
    if isinstance(loaded, Images):
        pixels = [np.asarray(loaded.train_images), np.asarray(loaded.test_images)]
    else:
        assert isinstance(loaded, ImageFiles) and stream == "always"
        pixels = [
            loaded.records[split].read(range(len(loaded.records[split])))[0] for split in ("train", "test")
        ]
    train, test = map(first_pixels, pixels)
    assert (len(train), len(test)) == (40, 10)
    assert sorted(train + test) == list(range(50))
    assert loaded.normalisation.mean == pytest.approx(np.mean(train))


REFUSED = [
    (
        "train",
        "train",
        "data.test_split=train: overlaps data.train_split=train in train[0:123]; hold a part out",
    ),
    ("train[:60%]", "train[50%:]", "overlaps data.train_split=train[:60%] in train[62:74]"),
    ("all", "test", "overlaps data.train_split=all in test[0:31]"),
    ("train[:10]+train[20:]", "train[5:15]", "in train[5:10]"),
    ("train[:10]+train[5:]", "test", "data.train_split=train[:10]+train[5:]: selects train[5:10] twice"),
    ("train", "tets", "data.test_split=tets: made has no split 'tets'; did you mean 'test'? allowed: "),
    (
        "train+extra",
        "test",
        "data.train_split=train+extra: made has no split 'extra'; did you mean 'train'? ",
    ),
    ("train", "test[:0]", "data.test_split=test[:0]: selects no images; made has "),
    ("train", "test[20:10]", "selects no images"),
    ("train", "test[32:]", "data.test_split=test[32:]: reaches beyond the last image; made has "),
    ("train", "test[:-40]", "reaches beyond the last image"),
    *(
        ("train", wrong, f"data.test_split={wrong}: must be a split in the syntax of TFDS: NAME, NAME[:80%]")
        for wrong in (
            "test[50%]",
            "test[5]",
            "test[:101%]",
            "test[a:]",
            "test[",
            "test[::2]",
            "test[1.5:]",
            "all[:9]",
            "test+",
        )
    ),
]


@pytest.mark.parametrize(("train", "test", "message"), REFUSED)
def test_invalid_and_overlapping_splits_are_refused(
    folder: Path, train: str, test: str, message: str
) -> None:
    data = tfds_data(folder, "made", train_split=train, test_split=test)
    for check in (check_prepared, infer_shape):
        with pytest.raises(UsageError, match=f"^[^\n]*{re.escape(message)}[^\n]*$"):
            check(data)


def test_the_error_of_a_missing_test_split_says_how_to_hold_a_part_out(folder: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        check_prepared(tfds_data(folder, "train_only", test_split="holdout"))
    assert str(refusal.value) == (
        "data.test_split=holdout: train_only has no split 'holdout'; allowed: train; or hold a part out: "
        "data.train_split='train[:80%]' data.test_split='train[80%:]'"
    )


def load_pixels(data: TFDSImages) -> tuple[list[int], list[int]]:
    """Return the number of each training and each test image, after a check of their labels."""
    loaded = load_or_open(data)
    if isinstance(loaded, ImageFiles):
        read = [loaded.records[name].read(range(len(loaded.records[name])))[0] for name in ("train", "test")]
    else:
        read = [np.asarray(loaded.train_images), np.asarray(loaded.test_images)]
    train, test = map(first_pixels, read)
    assert np.asarray(loaded.train_labels).tolist() == [number % 4 for number in train]
    assert np.asarray(loaded.test_labels).tolist() == [number % 4 for number in test]
    return train, test


@pytest.mark.parametrize("stream", ["never", "always"])
def test_the_test_split_of_a_set_with_one_split_is_drawn_stratified_and_nested(
    folder: Path, stream: str
) -> None:
    drawn = {
        (fraction, seed): load_pixels(
            tfds_data(folder, "train_only", test_fraction=fraction, seed=seed, stream=stream)
        )
        for fraction, seed in ((None, 0), (0.2, 0), (0.4, 0), (None, 1))
    }
    for train, test in drawn.values():
        assert sorted(train + test) == list(range(50))
        counts = np.bincount([number % 4 for number in test])
        assert counts.max() - counts.min() <= 1  # classes of 12 or 13 images
    assert drawn[None, 0] == drawn[0.2, 0] != drawn[None, 1] and len(drawn[None, 0][1]) == 10
    assert set(drawn[None, 0][1]) < set(drawn[0.4, 0][1]) and len(drawn[0.4, 0][1]) == 20
    part = tfds_data(folder, "train_only", train_split="train[:30]", stream=stream)
    assert [len(numbers) for numbers in load_pixels(part)] == [24, 6]
    shape = infer_shape(part)
    assert (shape.train_images, shape.test_images) == (24, 6)
    assert describe_drawn_tests([part, part, tfds_data(folder, "made")]) == [
        "train_only has no test split: 6 of 30 images are drawn as the test split, with the class "
        "frequencies of all (data.test_fraction=0.2 data.seed=0)"
    ]


def test_the_keys_of_a_drawn_test_split_are_refused_where_there_is_one(folder: Path) -> None:
    for changes, message in (
        (
            {"test_fraction": 0.3},
            "data.test_fraction=0.3: must be null for made, which has its own test split",
        ),
        ({"seed": 1}, "data.seed=1: must be 0 for made, which has its own test split"),
    ):
        with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
            check_prepared(tfds_data(folder, "made", **changes))
    with pytest.raises(UsageError, match=r"data\.test_fraction=0\.001: must leave training and test images"):
        infer_shape(tfds_data(folder, "train_only", test_fraction=0.001))


def test_keys_of_a_drawn_test_split_are_part_of_the_identity_only_where_they_are_set(
    folder: Path, configure: Configure
) -> None:
    def identity(**changes: Any) -> set[str]:
        data = tfds_data(folder, **changes).model_dump()
        return set(parse(configure().model_dump() | {"data": data}).identity()["data"])

    assert identity(seed=1) - identity() == {"seed"}
    assert identity(test_fraction=0.3) - identity() == {"test_fraction"}


@given(
    st.lists(st.sampled_from([*SPECS, "train", "test"]), min_size=1, max_size=3),
    st.sampled_from(["train", "test"]),
)
def test_splits_need_no_quotes_on_the_command_line(specs: list[str], key: str) -> None:
    parser = OverridesParser.create()

    def values(override: str) -> list[Any]:
        (parsed,) = parser.parse_overrides(quote_tyings([override]))
        if not parsed.is_sweep_override():
            return [parsed.value()]
        return [getattr(value, "text", value) for value in parsed.value().list]  # pyright: ignore

    typed = f"data.{key}_split={','.join(specs)}"
    assert values(typed) == specs
    (quoted,) = quote_tyings([typed])
    assert quote_tyings([quoted]) == [quoted]

"""Small image sets prepared by TFDS itself: scikit-learn's digits, in several files; any given images."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from cnnexp.config.data import DataSection
from cnnexp.config.datasets import TFDSImages
from cnnexp.data.tfds.prepare import without_tensorflow
from tests.conftest import SMALL

TRAIN, TEST, NAME = 1_200, 300, "tfds_digits"

with tfds.core.registered.skip_registration():

    class TfdsDigits(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        varied = False

        def _info(self) -> Any:
            shape = (None, None, 1) if self.varied else (8, 8, 1)
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=shape),
                        "label": tfds.features.ClassLabel(num_classes=10),
                    }
                ),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples(0, TRAIN), "test": self._generate_examples(TRAIN, TEST)}

        def _generate_examples(self, first: int, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
            pixels, labels = digits()
            for number in range(first, first + count):
                image = pixels[number]
                if self.varied and number % 2:
                    image = np.pad(image, ((0, 0), (2, 2), (0, 0)))
                yield number, {"image": image, "label": int(labels[number])}


def digits() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = load_digits(return_X_y=True)
    grey = np.round(255 * np.asarray(pixels).reshape(-1, 8, 8, 1) / 16).astype(np.uint8)
    return grey, np.asarray(labels)


def prepare_digits(folder: Path, *, varied: bool = False) -> Path:
    """Prepare the set; returns the folder of its files."""
    with tfds.core.registered.skip_registration():
        builder_class = type(NAME, (TfdsDigits,), {"name": NAME, "varied": varied})
    builder = builder_class(data_dir=folder, file_format="array_record")
    with without_tensorflow():
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return Path(builder.data_path)


def prepare_images(
    folder: Path,
    splits: Mapping[str, Sequence[tuple[np.ndarray | bytes, int]]],
    *,
    shape: tuple[int, int, int] = (8, 8, 1),
    classes: int = 4,
    shards: int | None = None,
    name: str = "made",
    dtype: Any = np.uint8,
) -> Path:
    """Prepare a set of images, as arrays or as the bytes of PNG files, and labels; returns its folder."""

    def info(self: Any) -> Any:
        features = {
            "image": tfds.features.Image(shape=shape, dtype=dtype, encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=classes),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def examples(self: Any, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (image, label) in enumerate(splits[split]):
            yield number, {"image": io.BytesIO(image) if isinstance(image, bytes) else image, "label": label}

    members = {
        "VERSION": tfds.core.Version("1.0.0"),
        "name": name,
        "_info": info,
        "_generate_examples": examples,
        "_split_generators": lambda self, _: {split: self._generate_examples(split) for split in splits},
    }
    with tfds.core.registered.skip_registration():
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), members)(
            data_dir=folder, file_format="array_record"
        )
    with without_tensorflow():
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    return Path(builder.data_path)


def tfds_data(folder: Path, name: str = NAME, **changes: Any) -> TFDSImages:
    """The data section of a prepared set, of small batches."""
    common = {key: value for key, value in SMALL["data"].items() if key in DataSection.model_fields}
    own = {"name": name, "data_dir": str(folder), "train_split": "train", "test_split": "test", "size": None}
    return TFDSImages.model_validate({**common, "train_size": None, "batch_size": 32, **own, **changes})

"""A small image set prepared by TFDS itself: scikit-learn's digits, in several files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from cnnexp.data.without_tensorflow import without_tensorflow

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

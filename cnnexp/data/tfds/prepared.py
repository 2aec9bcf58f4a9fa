"""Prepared sets of TensorFlow Datasets on disk: their descriptions and files, read without TFDS."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from pydantic.alias_generators import to_camel

from cnnexp.core.errors import UsageError, nearest_name
from cnnexp.data.images import DataShape
from cnnexp.data.tfds.splits import Part, check_disjoint, resolve_split

FORMAT = "array_record"  # has random access, and is read without TensorFlow
Schema = TypeVar("Schema", bound=BaseModel)


class _ProtoJSON(BaseModel):
    """A part of a JSON file that TFDS writes from a protocol buffer, without values that are 0 or empty."""

    model_config = ConfigDict(alias_generator=to_camel)


class _Split(_ProtoJSON):
    name: str
    shard_lengths: list[NonNegativeInt] = []


class _Info(_ProtoJSON):
    name: str
    file_format: str = "tfrecord"
    splits: Annotated[list[_Split], Field(min_length=1)]


class _Shape(_ProtoJSON):
    dimensions: tuple[int, int, int] = (0, 0, 3)


class _Image(_ProtoJSON):
    shape: _Shape = _Shape()
    dtype: str = "uint8"


class _ClassLabel(_ProtoJSON):
    num_classes: int = 0


class _Feature(_ProtoJSON):
    image: _Image | None = None
    class_label: _ClassLabel | None = None


class _Features(_ProtoJSON):
    features: dict[str, _Feature] = {}


class _FeaturesFile(_ProtoJSON):
    features_dict: _Features = _Features()


@dataclass(frozen=True, kw_only=True)
class PreparedSet:
    """A prepared version of a set.

    Attributes:
        name: The name that TFDS has for the set, with its configuration.
        folder: The folder of its files.
    """

    name: str
    folder: Path

    @cached_property
    def info(self) -> "_Info":
        """The contents of `dataset_info.json`."""
        return self._read_json("dataset_info.json", _Info)

    @cached_property
    def features(self) -> "dict[str, _Feature]":
        """The features of an example by their names."""
        return self._read_json("features.json", _FeaturesFile).features_dict.features

    @property
    def bytes(self) -> int:
        """The size of all files of the set."""
        return sum(file.stat().st_size for file in self.folder.iterdir() if file.is_file())

    @property
    def shard_lengths(self) -> dict[str, list[int]]:
        """The number of images in each file of each split."""
        return {split.name: split.shard_lengths for split in self.info.splits}

    def split_sizes(self) -> dict[str, int]:
        """Return the number of images of each split."""
        return {split: sum(lengths) for split, lengths in self.shard_lengths.items()}

    def parts(self, split: str, key: str = "split") -> list[Part]:
        """Resolve a split into the ranges of images that it selects.

        Args:
            split: The split in the syntax of TFDS, such as `train[:80%]`.
            key: The configuration key that holds the split, for errors.

        Raises:
            UsageError: As for `resolve_split`; or a file is missing, or has another format.
        """
        parts = resolve_split(split, self.shard_lengths, self.name, key)
        for part in parts:
            self.shards(part.split)
        return parts

    def train_and_test_parts(self, train_split: str, test_split: str) -> tuple[list[Part], list[Part]]:
        """Resolve the training and the test split, which must have no image in common.

        Raises:
            UsageError: As for `parts`; or the splits overlap.
        """
        train = self.parts(train_split, "data.train_split")
        test = self.parts(test_split, "data.test_split")
        check_disjoint(train, test, train_split, test_split)
        return train, test

    def shards(self, split: str) -> dict[Path, int]:
        """Return the files of a whole split with the number of records in each.

        Raises:
            UsageError: A file is missing, or has another format.
        """
        file_format = self.info.file_format
        if file_format != FORMAT:
            raise UsageError(
                f"{self.folder}: prepared as {file_format}, which needs TensorFlow to read; prepare it "
                f"again, in another folder: cnnexp data prepare {self.name} --data-dir DIR"
            )
        lengths = self.shard_lengths[split]
        stem, count = f"{self.info.name}-{split}.{file_format}", len(lengths)
        files = {
            self.folder / f"{stem}-{number:05d}-of-{count:05d}": length
            for number, length in enumerate(lengths)
        }
        for file in files:
            if not file.exists():
                raise self.corrupt_error(file, "the file is missing")
        return files

    def keys(self) -> tuple[str, str]:
        """Return the names of the image and the label in an example.

        Raises:
            UsageError: An example does not have exactly one image and one label.
        """
        images = [name for name, feature in self.features.items() if feature.image]
        labels = [name for name, feature in self.features.items() if feature.class_label]
        targets = ["label"] if "label" in labels else labels
        if len(images) != 1 or len(targets) != 1:
            raise UsageError(
                f"data.name={self.name}: not a set of images with one label each "
                f"(images: {images}, labels: {labels})"
            )
        return images[0], targets[0]

    def shape(self, train: Sequence[Part] = (), test: Sequence[Part] = ()) -> DataShape:
        """Return the shape of the set; sides that vary between images are 0.

        Args:
            train: The parts of the training split.
            test: The parts of the test split.

        Raises:
            UsageError: No network can be trained on its images or labels.
        """
        image_key, label_key = self.keys()
        image, label = self.features[image_key].image, self.features[label_key].class_label
        assert image is not None and label is not None
        if image.dtype not in ("uint8", "uint16"):
            raise UsageError(f"data.name={self.name}: its images must be uint8 or uint16 (got {image.dtype})")
        height, width, channels = (max(0, side) for side in image.shape.dimensions)
        if channels not in (0, 1, 3, 4):
            raise UsageError(
                f"data.name={self.name}: its images must have 1, 3 or 4 channels (got {channels})"
            )
        if label.num_classes < 2:
            raise UsageError(
                f"data.name={self.name}: its labels must have at least 2 classes (got {label.num_classes})"
            )
        return DataShape(
            image=(height, width, channels or 3),
            classes=label.num_classes,
            train_images=sum(part.stop - part.start for part in train),
            test_images=sum(part.stop - part.start for part in test),
            varied=0 in (height, width),
            itemsize=4 if image.dtype == "uint16" else 1,
        )

    @property
    def has_16_bits(self) -> bool:
        """Return whether the images have 16 bits per pixel and channel."""
        image = self.features[self.keys()[0]].image
        return image is not None and image.dtype == "uint16"

    def _read_json(self, file_name: str, schema: type[Schema]) -> Schema:
        """Read and check a JSON file in the folder of the set.

        Args:
            file_name: The name of the file.
            schema: The Pydantic class of its contents.

        Returns:
            The contents, as an instance of the class.

        Raises:
            UsageError: The file cannot be read, or its contents are invalid.
        """
        file = self.folder / file_name
        try:
            return schema.model_validate_json(file.read_bytes())
        except OSError as error:
            raise self.corrupt_error(file, f"cannot be read ({error.strerror})") from None
        except ValidationError as error:
            first_error = error.errors()[0]
            where = ".".join(map(str, first_error["loc"]))
            reason = f"{where}: {first_error['msg']}" if where else first_error["msg"]
            raise self.corrupt_error(file, f"not a description as TFDS writes it ({reason})") from None

    def corrupt_error(self, file: Path, reason: str) -> UsageError:
        """Return the error that names a corrupt file, the reason, and what to type."""
        return UsageError(f"{file}: {reason}; remove {self.folder} and run: cnnexp data prepare {self.name}")


def resolve_data_dir(data_dir: str | Path | None) -> Path:
    """Return the folder of prepared sets: the argument, `$TFDS_DATA_DIR`, or the default of TFDS."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def list_prepared_sets(data_dir: str | Path | None) -> Iterator[PreparedSet]:
    """Yield all prepared sets in a folder, by name and version."""
    folder = resolve_data_dir(data_dir)
    for file in sorted(folder.glob("**/dataset_info.json")):
        if re.fullmatch(r"\d+\.\d+\.\d+", file.parent.name):
            yield PreparedSet(name=file.parent.parent.relative_to(folder).as_posix(), folder=file.parent)


def find_prepared_set(name: str, data_dir: str | Path | None) -> PreparedSet:
    """Find the newest prepared version of a set.

    Raises:
        UsageError: The set is not prepared; the message says what to type.
    """
    newest = _find_newest(resolve_data_dir(data_dir), name)
    if newest is not None:
        return newest
    names = {prepared.name for prepared in list_prepared_sets(data_dir)} | set(KNOWN_SETS)
    nearest = nearest_name(name, sorted(names))
    if nearest and name not in names:
        raise UsageError(f"data.name={name}: not prepared; did you mean {nearest!r}?")
    raise UsageError(
        f"data.name={name}: not prepared in {resolve_data_dir(data_dir)}; run: cnnexp data prepare {name} "
        "(with --from DIR where its files are already downloaded)"
    )


def is_prepared(name: str, data_dir: str | Path | None) -> bool:
    """Return whether any version of a set is prepared."""
    return _find_newest(resolve_data_dir(data_dir), name) is not None


@lru_cache(maxsize=64)
def _find_newest(folder: Path, name: str) -> PreparedSet | None:
    versions = [file.parent for file in (folder / name).glob("*/dataset_info.json")]
    versions = [version for version in versions if re.fullmatch(r"\d+\.\d+\.\d+", version.name)]
    newest = max(versions, key=lambda version: [int(part) for part in version.name.split(".")], default=None)
    return None if newest is None else PreparedSet(name=name, folder=newest)


def _square_set(
    side: int, channels: int, classes: int, train: int, test: int, *, varied: bool = False
) -> DataShape:
    image = (side, side, channels)
    return DataShape(image=image, classes=classes, train_images=train, test_images=test, varied=varied)


KNOWN_SETS = {
    "mnist": _square_set(28, 1, 10, 60_000, 10_000),
    "fashion_mnist": _square_set(28, 1, 10, 60_000, 10_000),
    "kmnist": _square_set(28, 1, 10, 60_000, 10_000),
    "emnist/letters": _square_set(28, 1, 37, 88_800, 14_800),
    "cifar10": _square_set(32, 3, 10, 50_000, 10_000),
    "cifar100": _square_set(32, 3, 100, 50_000, 10_000),
    "svhn_cropped": _square_set(32, 3, 10, 73_257, 26_032),
    "imagenette/160px-v2": _square_set(160, 3, 10, 9_469, 3_925, varied=True),
    "imagenet2012": _square_set(224, 3, 1_000, 1_281_167, 50_000, varied=True),
}

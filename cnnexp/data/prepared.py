"""Prepared sets of TensorFlow Datasets as they lie on disk: what their own files say, without TFDS."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from cnnexp.data.shapes import KNOWN, DataShape
from cnnexp.errors import UsageError, nearest_name, suggestion

FORMAT = "array_record"  # of random access, and readable without TensorFlow


@dataclass(frozen=True, kw_only=True)
class PreparedSet:
    """One prepared version: `name` is TFDS's (with its configuration), `folder` holds its files."""

    name: str
    folder: Path

    @cached_property
    def info(self) -> dict[str, Any]:
        """What `dataset_info.json` holds."""
        return _json(self.folder / "dataset_info.json")

    @cached_property
    def features(self) -> dict[str, Any]:
        """The features of an example by their names."""
        return _json(self.folder / "features.json").get("featuresDict", {}).get("features", {})

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(file.stat().st_size for file in self.folder.iterdir() if file.is_file())

    def split_sizes(self) -> dict[str, int]:
        """Number of images of each split."""
        return {split["name"]: sum(_lengths(split)) for split in self.info["splits"]}

    def shards(self, split: str) -> dict[Path, int]:
        """The files of a split and the number of records in each.

        Raises:
            UsageError: there is no such split; a file is not there; or they are in another format.
        """
        splits = {entry["name"]: entry for entry in self.info["splits"]}
        if split not in splits:
            raise UsageError(f"{self.name} has no split {split!r}; {suggestion(split, list(splits))}")
        kind = self.info.get("fileFormat", "tfrecord")
        if kind != FORMAT:
            raise UsageError(
                f"{self.folder}: prepared as {kind}, which needs TensorFlow to read; prepare it again, in "
                f"another folder: cnnexp data prepare {self.name} --data-dir DIR"
            )
        lengths = _lengths(splits[split])
        stem, count = f"{self.info['name']}-{split}.{kind}", len(lengths)
        files = {
            self.folder / f"{stem}-{number:05d}-of-{count:05d}": length
            for number, length in enumerate(lengths)
        }
        for file in files:
            if not file.exists():
                raise self.damaged(file, "the file is not there")
        return files

    def keys(self) -> tuple[str, str]:
        """The names of an example's image and label.

        Raises:
            UsageError: there is not one image of bytes and one label.
        """
        images = [name for name, feature in self.features.items() if "image" in feature]
        labels = [name for name, feature in self.features.items() if "classLabel" in feature]
        chosen = ["label"] if "label" in labels else labels
        if len(images) != 1 or len(chosen) != 1:
            raise UsageError(
                f"data.name={self.name}: not a set of images with one label each "
                f"(images: {images}, labels: {labels})"
            )
        dtype = self.features[images[0]]["image"].get("dtype", "uint8")
        if dtype != "uint8":
            raise UsageError(f"data.name={self.name}: its images are {dtype}; allowed: uint8")
        return images[0], chosen[0]

    def shape(self, train_split: str, test_split: str) -> DataShape:
        """Shape of the images, number of classes and of images; sides that vary are 0."""
        image_key, label_key = self.keys()
        feature = self.features[image_key]["image"]
        sides = [max(0, int(side)) for side in feature.get("shape", {}).get("dimensions", [])] or [0, 0, 3]
        counts = {split: sum(self.shards(split).values()) for split in (train_split, test_split)}
        return DataShape(
            image=(sides[0], sides[1], sides[2] or 3),
            classes=int(self.features[label_key]["classLabel"]["numClasses"]),
            train_images=counts[train_split],
            test_images=counts[test_split],
            varied=0 in sides[:2],
        )

    def damaged(self, file: Path, why: str) -> UsageError:
        """The error for a file that cannot be read."""
        return UsageError(f"{file}: {why}; remove {self.folder} and type: cnnexp data prepare {self.name}")


def data_dir_of(data_dir: str | None) -> Path:
    """The folder of prepared sets: as given, `$TFDS_DATA_DIR`, or TFDS's default."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared_sets(data_dir: str | None) -> Iterator[PreparedSet]:
    """All prepared sets in a folder, by name and version."""
    folder = data_dir_of(data_dir)
    for file in sorted(folder.glob("**/dataset_info.json")):
        if re.fullmatch(r"\d+\.\d+\.\d+", file.parent.name):
            yield PreparedSet(name=file.parent.parent.relative_to(folder).as_posix(), folder=file.parent)


def prepared_set(name: str, data_dir: str | None) -> PreparedSet:
    """The newest prepared version of a set.

    Raises:
        UsageError: there is none; the message says what to type.
    """
    found = _newest(data_dir_of(data_dir), name)
    if found is not None:
        return found
    there = {prepared.name for prepared in prepared_sets(data_dir)} | set(KNOWN)
    meant = nearest_name(name, sorted(there))
    if meant and name not in there:
        raise UsageError(f"data.name={name}: not prepared; did you mean {meant!r}?")
    raise UsageError(
        f"data.name={name}: not prepared in {data_dir_of(data_dir)}; type: cnnexp data prepare {name} "
        "(with --from DIR where its files are already downloaded)"
    )


def is_prepared(name: str, data_dir: str | None) -> bool:
    """Whether there is any version of a set."""
    return _newest(data_dir_of(data_dir), name) is not None


@lru_cache(maxsize=64)
def _newest(folder: Path, name: str) -> PreparedSet | None:
    versions = [file.parent for file in (folder / name).glob("*/dataset_info.json")]
    versions = [version for version in versions if re.fullmatch(r"\d+\.\d+\.\d+", version.name)]
    newest = max(versions, key=lambda version: [int(part) for part in version.name.split(".")], default=None)
    return None if newest is None else PreparedSet(name=name, folder=newest)


def _lengths(split: dict[str, Any]) -> list[int]:
    return [int(length) for length in split.get("shardLengths", [])]


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file}: cannot be read ({error}); remove {file.parent} and prepare it again"
        ) from None

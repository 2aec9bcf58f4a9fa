"""Random access to the images of a prepared set, decoded without TensorFlow."""

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int

from cnnexp.core.errors import UsageError, describe_exception
from cnnexp.core.terminal import progress_bar
from cnnexp.data.decoding import crop_middle
from cnnexp.data.tfds.prepared import PreparedSet

AS_STORED = cv2.IMREAD_IGNORE_ORIENTATION  # like TFDS, which does not rotate images by their EXIF tag
READ_MODES = {
    1: cv2.IMREAD_GRAYSCALE | AS_STORED,
    3: cv2.IMREAD_COLOR | AS_STORED,
    4: cv2.IMREAD_UNCHANGED,  # the only mode that keeps alpha
}
TO_FOUR_CHANNELS = {1: cv2.COLOR_GRAY2BGRA, 3: cv2.COLOR_BGR2BGRA}
READ_AHEAD = 1024  # records whose labels are read at once
MAX_REASON_CHARACTERS = 120  # of an error of OpenCV in a message


class Records:
    """A split of a prepared set in random access, safe to read from several threads.

    Args:
        prepared: The set.
        split: The split in the syntax of TFDS, such as `train[:80%]`.
        shape: Height, width and channels of every image, after resizing.
        resize: Whether to scale images to the shorter side of the shape and to crop their middle.

    Raises:
        UsageError: A file is corrupt; the message names it.
    """

    def __init__(self, prepared: PreparedSet, split: str, shape: tuple[int, int, int], *, resize: bool):
        self.shape = shape
        self._prepared, self._resize = prepared, resize
        self._has_16_bits = prepared.has_16_bits
        self._image_key, self._label_key = prepared.keys()
        self._shards: dict[Path, int] = {}
        starts: dict[str, int] = {}  # where each whole split starts among the records of all shards
        parts = prepared.parts(split)
        for part in parts:
            if part.split not in starts:
                starts[part.split] = sum(self._shards.values())
                self._shards |= prepared.shards(part.split)
        numbers = [starts[part.split] + np.arange(part.start, part.stop) for part in parts]
        self._record_numbers = np.concatenate(numbers)  # of the images among the records of all shards
        self._source = self._open(list(self._shards))

    def __len__(self) -> int:
        return len(self._record_numbers)

    @property
    def dtype(self) -> type[np.generic]:
        """The type of a pixel: bytes, or real numbers from 0 to 1 in a set of 16-bit images."""
        return np.float32 if self._has_16_bits else np.uint8

    def select(self, indices: Int[np.ndarray, " m"]) -> "Records":
        """Return the records of some of the images, by their indices in the split."""
        selected = copy(self)
        selected._record_numbers = self._record_numbers[indices]
        return selected

    def read_labels(self) -> Int[np.ndarray, " n"]:
        """Read the labels of all images without decoding these.

        Raises:
            UsageError: A record cannot be read; the message names its file.
        """
        labels = np.empty(len(self), np.int32)
        with progress_bar("reading labels", len(self)) as advance:
            for start in range(0, len(self), READ_AHEAD):
                records = self.raw(range(start, min(start + READ_AHEAD, len(self))))
                for row, record in enumerate(records, start):
                    try:
                        labels[row] = self._read_label(self._example.FromString(record).features.feature)
                    except Exception as error:
                        raise self._decoding_error(int(self._record_numbers[row]), error) from None
                advance(len(records))
        return labels

    def raw(self, indices: Sequence[int]) -> list[bytes]:
        """Read records without decoding them.

        Raises:
            UsageError: A record cannot be read; the message names its file.
        """
        try:
            return self._source.__getitems__(self._record_numbers[list(indices)].tolist())
        except Exception as error:
            raise self._reading_error(error) from None

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, Int[np.ndarray, " n"]]:
        """Read and decode images and their labels.

        Args:
            indices: Indices of the images in the split.

        Raises:
            UsageError: A record cannot be read or decoded; the message names its file.
        """
        images, labels = np.empty((len(indices), *self.shape), self.dtype), np.empty(len(indices), np.int32)
        parse, image_key = self._example.FromString, self._image_key
        for row, record in enumerate(self.raw(indices)):
            try:
                features = parse(record).features.feature
                labels[row] = self._read_label(features)
                images[row] = self._decode(features[image_key].bytes_list.value[0])
            except Exception as error:
                raise self._decoding_error(int(self._record_numbers[indices[row]]), error) from None
        return images, labels

    def _read_label(self, features: Any) -> int:
        return features[self._label_key].int64_list.value[0]

    def _decode(self, encoded: bytes) -> np.ndarray:
        """Decode a PNG or JPEG file to the shape and type of the set."""
        height, width, channels = self.shape
        mode = READ_MODES[channels]
        if self._has_16_bits and channels != 4:  # the mode of 4 channels keeps all bits
            mode |= cv2.IMREAD_ANYDEPTH
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), mode)
        if image is None:
            raise ValueError("neither PNG nor JPEG")
        image = self._convert_bits(image)
        if channels == 4:
            image = _add_alpha(image)
        if self._resize:
            image = crop_middle(image, height, width)
        if image.shape[:2] != (height, width):
            raise ValueError(f"{image.shape[0]}x{image.shape[1]} pixels in a set of {height}x{width}")
        if channels == 1:
            return image[..., None]
        return image[..., [2, 1, 0, 3][:channels]]  # OpenCV has blue first

    def _convert_bits(self, image: np.ndarray) -> np.ndarray:
        """Convert a stored image to the bits of the set, as TensorFlow does; 16 bits become numbers to 1."""
        if not self._has_16_bits:
            return (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image
        return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)

    @cached_property
    def _example(self) -> Any:
        from tensorflow_datasets.proto import tf_example_pb2

        return tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  (made at import)

    def _open(self, files: list[Any]) -> Any:
        """Open the files as one sequence of records, and check their number."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        try:
            source = ArrayRecordDataSource([str(file) for file in files])
            records = len(source)
        except Exception as error:
            raise self._reading_error(error) from None
        if records != (expected := sum(self._shards.values())):
            raise self._reading_error(ValueError(f"{records} records, expected {expected}"))
        return source

    def _reading_error(self, error: Exception) -> UsageError:
        """Read all files to find the corrupt one, and return the error that names it."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        for file, length in self._shards.items():
            try:
                source = ArrayRecordDataSource([str(file)])
                if len(source) != length:
                    return self._prepared.corrupt_error(file, f"{len(source)} records, expected {length}")
                for start in range(0, length, 2048):
                    source.__getitems__(list(range(start, min(length, start + 2048))))
            except Exception as cause:
                return self._prepared.corrupt_error(
                    file, f"corrupt ({describe_exception(cause)[:MAX_REASON_CHARACTERS]})"
                )
        return self._prepared.corrupt_error(
            self._prepared.folder, describe_exception(error)[:MAX_REASON_CHARACTERS]
        )

    def _decoding_error(self, index: int, error: Exception) -> UsageError:
        """Return the error that names the file of a record, by its number among the records of all shards."""
        for file, length in self._shards.items():
            if index < length:
                return self._prepared.corrupt_error(
                    file,
                    f"record {index} is not an image ({describe_exception(error)[:MAX_REASON_CHARACTERS]})",
                )
            index -= length
        raise IndexError(index)


def _add_alpha(image: np.ndarray) -> np.ndarray:
    """Convert an image to 4 channels as TensorFlow does: opaque where it has no alpha."""
    channels = image.shape[2] if image.ndim == 3 else 1
    return image if channels == 4 else cv2.cvtColor(image, TO_FOUR_CHANNELS[channels])

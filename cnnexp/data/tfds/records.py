"""The images of a prepared set, in any order: records decoded without TensorFlow."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from cnnexp.core.errors import UsageError
from cnnexp.data.tfds.prepared import PreparedSet

AS_STORED = cv2.IMREAD_IGNORE_ORIENTATION  # as TFDS reads: not turned by what a camera noted
COLOURS = {
    1: cv2.IMREAD_GRAYSCALE | AS_STORED,
    3: cv2.IMREAD_COLOR | AS_STORED,
    4: cv2.IMREAD_UNCHANGED,  # the only one that keeps alpha
}
TO_FOUR_CHANNELS = {1: cv2.COLOR_GRAY2BGRA, 3: cv2.COLOR_BGR2BGRA}


class Records:
    """A split of a prepared set in random access, safe to read from several threads.

    Args:
        prepared: the set.
        split: which images, as TFDS writes it: `train`, `train[:80%]`.
        shape: the shape `(h, w, c)` that every image has, or is brought to where `resize`.
        resize: whether to scale the shorter side and cut the middle out.

    Raises:
        UsageError: a file is damaged; the message names it.
    """

    def __init__(self, prepared: PreparedSet, split: str, shape: tuple[int, int, int], *, resize: bool):
        self.shape = shape  # of every image: (h, w, c)
        self._prepared, self._resize = prepared, resize
        self._image_key, self._label_key = prepared.keys()
        self._shards: dict[Path, int] = {}
        starts: dict[str, int] = {}  # of whole splits, among the records of all shards
        parts = prepared.parts(split)
        for part in parts:
            if part.split not in starts:
                starts[part.split] = sum(self._shards.values())
                self._shards |= prepared.shards(part.split)
        places = [starts[part.split] + np.arange(part.start, part.stop) for part in parts]
        self._places = np.concatenate(places)  # of each image, among the records of all shards
        self._source = self._opened(list(self._shards))

    def __len__(self) -> int:
        return len(self._places)

    def raw(self, indices: Sequence[int]) -> list[bytes]:
        """Records as they are on disk.

        Raises:
            UsageError: one cannot be read; the message names its file.
        """
        try:
            return self._source.__getitems__(self._places[list(indices)].tolist())
        except Exception as error:
            raise self._culprit(error) from None

    def read(self, indices: Sequence[int]) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels.

        Raises:
            UsageError: a record cannot be read or decoded; the message names its file.
        """
        images, labels = np.empty((len(indices), *self.shape), np.uint8), np.empty(len(indices), np.int32)
        parse, image_key, label_key = self._example.FromString, self._image_key, self._label_key
        for place, record in enumerate(self.raw(indices)):
            try:
                features = parse(record).features.feature
                labels[place] = features[label_key].int64_list.value[0]
                images[place] = self._decoded(features[image_key].bytes_list.value[0])
            except Exception as error:
                raise self._undecodable(int(self._places[indices[place]]), error) from None
        return images, labels

    def _decoded(self, encoded: bytes) -> UInt8[np.ndarray, "h w c"]:
        height, width, channels = self.shape
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), COLOURS[channels])
        if image is None:
            raise ValueError("neither PNG nor JPEG")
        if channels == 4:
            image = _with_alpha(image)
        if self._resize:
            image = _cut_middle(image, height, width)
        if image.shape[:2] != (height, width):
            raise ValueError(f"{image.shape[0]}x{image.shape[1]} pixels in a set of {height}x{width}")
        if channels == 1:
            return image[..., None]
        return image[..., [2, 1, 0, 3][:channels]]  # OpenCV has blue first

    @cached_property
    def _example(self) -> Any:
        from tensorflow_datasets.proto import tf_example_pb2

        return tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  (made at import)

    def _opened(self, files: list[Any]) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        try:
            source = ArrayRecordDataSource([str(file) for file in files])
            found = len(source)
        except Exception as error:
            raise self._culprit(error) from None
        if found != (written := sum(self._shards.values())):
            raise self._culprit(ValueError(f"{found} records in all, {written} were written"))
        return source

    def _culprit(self, error: Exception) -> UsageError:
        """Which file it is that cannot be read."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        for file, length in self._shards.items():
            try:
                source = ArrayRecordDataSource([str(file)])
                if len(source) != length:
                    return self._prepared.damaged(file, f"{len(source)} records, {length} were written")
                for start in range(0, length, 2048):
                    source.__getitems__(list(range(start, min(length, start + 2048))))
            except Exception as cause:
                return self._prepared.damaged(file, f"damaged or truncated ({_first_line(cause)})")
        return self._prepared.damaged(self._prepared.folder, _first_line(error))

    def _undecodable(self, index: int, error: Exception) -> UsageError:
        for file, length in self._shards.items():
            if index < length:
                return self._prepared.damaged(file, f"record {index} is no image ({_first_line(error)})")
            index -= length
        raise IndexError(index)


def _with_alpha(image: np.ndarray) -> np.ndarray:
    """An image as it is stored, brought to 4 channels of 8 bits as TensorFlow does: opaque without alpha."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    stored = image.shape[2] if image.ndim == 3 else 1
    return image if stored == 4 else cv2.cvtColor(image, TO_FOUR_CHANNELS[stored])


def _cut_middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    scale = max(height / image.shape[0], width / image.shape[1])
    sides = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
    if sides != (image.shape[1], image.shape[0]):
        image = cv2.resize(image, sides, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (sides[1] - height) // 2, (sides[0] - width) // 2
    return image[top : top + height, left : left + width]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]

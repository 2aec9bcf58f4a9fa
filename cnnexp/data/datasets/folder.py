"""PNG and JPEG files in one folder per class."""

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from cnnexp.config.datasets import ImageFolder
from cnnexp.core.errors import UsageError, shorten_value
from cnnexp.core.machine import cores
from cnnexp.core.terminal import progress_bar
from cnnexp.data.array_set import ArraySet
from cnnexp.data.arrays import scale_16_bits
from cnnexp.data.decoding import Header, convert_channels, crop_middle, decode_picture, read_header
from cnnexp.data.registry import register_dataset

SPLIT_FOLDERS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}
ENDINGS = (".png", ".jpg", ".jpeg")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # of Windows; those of other systems are hidden
READ_AHEAD = 1024  # files


class LabelledFile(NamedTuple):
    """An image file, the split that it belongs to, and the number of its class."""

    file: Path
    split: str
    label: int


@dataclass(frozen=True, eq=False, kw_only=True)
class FileRecords:
    """Image files in random access, which are decoded when they are read.

    Attributes:
        files: The files.
        labels: The numbers of their classes.
        shape: Height, width and channels of every image, after resizing.
        has_16_bits: Whether pixels are real numbers from 0 to 1, as any file of the set has 16 bits.
        resize: Whether to scale images to the shorter side of the shape and to crop their middle.
    """

    files: Sequence[Path]
    labels: Int[np.ndarray, " n"]
    shape: tuple[int, int, int]
    has_16_bits: bool
    resize: bool

    @property
    def dtype(self) -> type[np.generic]:
        """The type of a pixel."""
        return np.float32 if self.has_16_bits else np.uint8

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, Int[np.ndarray, " n"]]:
        """Decode images by their indices, and return them with their labels.

        Raises:
            UsageError: A file is corrupt or has changed; the message names it.
        """
        images = np.empty((len(indices), *self.shape), self.dtype)
        for row, index in enumerate(indices):
            images[row] = self._decode(self.files[index])
        return images, self.labels[np.asarray(indices, np.int64)]

    def read_all(self) -> np.ndarray:
        """Decode all images, by several threads."""
        images = np.empty((len(self), *self.shape), self.dtype)
        starts = range(0, len(self), READ_AHEAD)
        with progress_bar("reading images", len(self)) as advance, ThreadPoolExecutor(cores()) as pool:
            for start in starts:
                files = self.files[start : start + READ_AHEAD]
                for row, image in enumerate(pool.map(self._decode, files), start):
                    images[row] = image
                advance(len(files))
        return images

    def select(self, indices: Int[np.ndarray, " m"]) -> "FileRecords":
        """Return the records of some of the images."""
        return replace(self, files=[self.files[index] for index in indices], labels=self.labels[indices])

    def _decode(self, file: Path) -> np.ndarray:
        """Decode a file to the shape and type of the set."""
        height, width, channels = self.shape
        pixels = decode_picture(file, keep_alpha=channels == 4)
        if self.resize:
            pixels = crop_middle(pixels, height, width)
        if pixels.shape[:2] != (height, width):
            raise UsageError(f"{file}: must have {_size_text(self.shape[:2])} pixels, as when it was listed")
        return _to_type(convert_channels(pixels, channels), has_16_bits=self.has_16_bits)


@register_dataset(ImageFolder)
class FolderSet(ArraySet[ImageFolder]):
    """The image files of a folder; the classes are the names of its folders in their order."""

    @property
    def origin(self) -> str:
        """The key that names the folder."""
        return f"data.path={shorten_value(self.data.path)}"

    def make_stamp(self) -> Hashable:
        """Return the names, the sizes and the times of the last change of all files."""
        files = [entry.file for entry in list_files(Path(self.data.path), self.origin)]
        states = [
            (str(file), status.st_size, status.st_mtime_ns) for file in files if (status := file.stat())
        ]
        return str(Path(self.data.path).resolve()), tuple(states)

    def open_records(self) -> Mapping[str, FileRecords]:
        """List all files, and find the common size, type and number of channels by their headers.

        Raises:
            UsageError: A file is no image, or the sizes differ and `data.size` is not set.
        """
        entries = list_files(Path(self.data.path), self.origin)
        with ThreadPoolExecutor(cores()) as pool:
            headers = list(pool.map(lambda entry: read_header(entry.file), entries))
        channels, size = self.data.channels, self.data.size
        if channels == "auto":
            channels = 1 if all(header.is_grey for header in headers) else 3
        height, width = self._find_size(entries, headers) if size is None else (size, size)
        return {
            split: FileRecords(
                files=[entry.file for entry in entries if entry.split == split],
                labels=np.array([entry.label for entry in entries if entry.split == split], np.int32),
                shape=(height, width, channels),
                has_16_bits=any(header.has_16_bits for header in headers),
                resize=size is not None,
            )
            for split in dict.fromkeys(entry.split for entry in entries)
        }

    def _find_size(self, entries: Sequence[LabelledFile], headers: Sequence[Header]) -> tuple[int, int]:
        """Return the size of all images."""
        first = headers[0].size
        for header, entry in zip(headers, entries, strict=True):
            if header.size != first:
                raise UsageError(
                    f"data.size: {entries[0].file} has {_size_text(first)} pixels and {entry.file} has "
                    f"{_size_text(header.size)}; set it to the side of the resized images"
                )
        return first


def list_files(root: Path, origin: str) -> list[LabelledFile]:
    """List the image files of a folder by split, class and name.

    Args:
        root: The folder, which holds the folders of the classes, or folders `train` and `test` with these. A
            folder `validation` or `val` may hold a validation split.
        origin: The key that names the folder, with its value, for errors.

    Raises:
        UsageError: There is no such folder, it is arranged in another way, or a file is not an image.
    """
    if not root.is_dir():
        raise UsageError(f"{origin}: {'must be a folder' if root.exists() else 'no such folder'}")
    folders = {split: root / name for name, split in SPLIT_FOLDERS.items() if (root / name).is_dir()}
    if not ("train" in folders and _list_folders(folders["train"])):
        folders = {"train": root}
    else:
        _refuse_other_folders(root, folders, origin)
    names = {folder.name for split in folders.values() for folder in _list_folders(split)}
    if len(names) < 2:
        raise UsageError(f"{origin}: must have a folder for each of at least 2 classes (got {len(names)})")
    classes = sorted(names, key=lambda name: (int(name) if name.isdecimal() else 0, name))
    return [
        LabelledFile(file, split, label)
        for split, folder in folders.items()
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for file in _list_images(folder / name)
    ]


def _refuse_other_folders(root: Path, folders: Mapping[str, Path], origin: str) -> None:
    """Refuse folders other than `train` and `test`, whose images would silently be left out."""
    others = [folder.name for folder in _list_folders(root) if folder not in folders.values()]
    if others:
        raise UsageError(
            f"{origin}: has the folder {others[0]!r} beside train; allowed: {', '.join(SPLIT_FOLDERS)}"
        )


def _list_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_images(folder: Path) -> list[Path]:
    """List the images in the folder of a class, sorted by name."""
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [file for file in files if file.name.lower() not in SYSTEM_FILES]
    for file in files:
        if file.is_dir() or file.suffix.lower() not in ENDINGS:
            raise UsageError(
                f"{file}: must be an image, one of *{', *'.join(ENDINGS)}, in the folder of a class"
            )
    if not files:
        raise UsageError(f"{folder}: the folder of a class must have at least 1 image (got 0)")
    return files


def _to_type(pixels: np.ndarray, *, has_16_bits: bool) -> np.ndarray:
    """Return bytes, or real numbers from 0 to 1 in a set in which any file has 16 bits."""
    if not has_16_bits:
        return pixels
    return scale_16_bits(pixels) if pixels.dtype == np.uint16 else pixels.astype(np.float32) / np.float32(255)


def _size_text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))

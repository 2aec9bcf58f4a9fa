"""PNG and JPEG files in one folder per class."""

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnnexp.config.datasets import ImageFolder
from cnnexp.core.errors import UsageError, shorten_value
from cnnexp.core.machine import cores, machine_memory_text, total_memory
from cnnexp.core.terminal import progress_bar
from cnnexp.core.text import short_number
from cnnexp.data.array_set import ArraySet
from cnnexp.data.arrays import scale_16_bits
from cnnexp.data.decoding import Picture, crop_middle, decode_picture
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

    def read_arrays(self) -> Mapping[str, np.ndarray]:
        """Decode all files, and convert them to the same size, type and number of channels.

        Raises:
            UsageError: A file is corrupt, the sizes differ and `data.size` is not set, or the images do not
                fit into memory.
        """
        files = list_files(Path(self.data.path), self.origin)
        self._check_first(files)
        pictures = self._decode(files)
        channels = self.data.channels
        if channels == "auto":
            channels = 1 if all(picture.is_grey for picture in pictures) else 3
        has_16_bits = any(picture.has_16_bits for picture in pictures)
        arrays: dict[str, np.ndarray] = {}
        for split in dict.fromkeys(entry.split for entry in files):
            rows = [row for row, entry in enumerate(files) if entry.split == split]
            arrays[f"{split}_images"] = np.stack(
                [_to_type(pictures[row].convert(channels), has_16_bits=has_16_bits) for row in rows]
            )
            arrays[f"{split}_labels"] = np.array([files[row].label for row in rows])
        return arrays

    def _check_first(self, files: Sequence[LabelledFile]) -> None:
        """Refuse images that do not fit into memory, by the size of the first one."""
        picture = self._resize(decode_picture(files[0].file))
        if (needed := len(files) * picture.pixels.nbytes) > total_memory():
            raise UsageError(
                f"{self.origin}: {len(files):,} images need about {short_number(needed)}B of memory; "
                f"{machine_memory_text()}"
            )

    def _decode(self, files: Sequence[LabelledFile]) -> list[Picture]:
        """Decode files by several threads, and check that all images have the same size."""
        pictures: list[Picture] = []
        with progress_bar("reading images", len(files)) as advance, ThreadPoolExecutor(cores()) as pool:
            for start in range(0, len(files), READ_AHEAD):
                paths = [entry.file for entry in files[start : start + READ_AHEAD]]
                pictures += pool.map(lambda path: self._resize(decode_picture(path)), paths)
                advance(len(paths))
        first = pictures[0].pixels.shape[:2]
        for picture, entry in zip(pictures, files, strict=True):
            if (size := picture.pixels.shape[:2]) != first:
                raise UsageError(
                    f"data.size: {files[0].file} has {_size_text(first)} pixels and {entry.file} has "
                    f"{_size_text(size)}; set it to the side of the resized images"
                )
        return pictures

    def _resize(self, picture: Picture) -> Picture:
        size = self.data.size
        return picture if size is None else Picture(crop_middle(picture.pixels, size, size))


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
    """Refuse folders beside `train` and `test`, whose images would silently be left out."""
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

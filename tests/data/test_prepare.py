"""The builders of TFDS prepare small archives of the published layouts without importing TensorFlow."""

import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from tensorflow_datasets.core import tfds_path
from tensorflow_datasets.core.download.download_manager import DownloadManager

from cnnexp.data.tfds.prepare import prepare
from cnnexp.data.tfds.records import Records

RNG = np.random.default_rng(0)
# Smooth images, which JPEG preserves.
IMAGES = np.stack([cv2.resize(RNG.integers(0, 256, (4, 4, 3), np.uint8), (32, 32)) for _ in range(5)])
LABELS = np.array([3, 0, 9, 1, 4], np.uint8)


def write_tar(file: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(file, mode) as archive:  # pyright: ignore[reportCallIssue,reportArgumentType]
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def publish_cifar10(folder: Path) -> None:
    records = b"".join(
        bytes([label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(IMAGES, LABELS, strict=True)
    )
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    members = {f"cifar-10-batches-bin/{name}.bin": records for name in names}
    classes = "\n".join(f"class{number}" for number in range(10)).encode()
    write_tar(
        folder / "cifar-10-binary.tar.gz",
        members | {"cifar-10-batches-bin/batches.meta.txt": classes},
        "w:gz",
    )


def publish_cifar100(folder: Path) -> None:
    records = b"".join(
        bytes([7, label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(IMAGES, LABELS, strict=True)
    )
    members = {f"cifar-100-binary/{name}.bin": records for name in ("train", "test")}
    for kind, count in (("coarse", 20), ("fine", 100)):
        names = "\n".join(f"{kind}{number}" for number in range(count)).encode()
        members[f"cifar-100-binary/{kind}_label_names.txt"] = names
    write_tar(folder / "cifar-100-binary.tar.gz", members, "w:gz")


def publish_svhn_cropped(folder: Path) -> None:
    labels = np.where(LABELS == 0, 10, LABELS)[:, None]
    for split in ("train", "test", "extra"):
        scipy.io.savemat(folder / f"{split}_32x32.mat", {"X": np.moveaxis(IMAGES, 0, -1), "y": labels})


def encode(image: np.ndarray, kind: str = ".jpg") -> bytes:
    return cv2.imencode(kind, image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()


def publish_imagenette(folder: Path) -> None:
    names = Path(tfds_path("image_classification/imagenette_labels.txt")).read_text(encoding="utf-8").split()
    members = {
        f"imagenette2-160/{split}/{names[label]}/{names[label]}_{number}.JPEG": encode(image)
        for split in ("train", "val")
        for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True))
    }
    write_tar(folder / "imagenette2-160.tgz", members, "w:gz")


def publish_imagenet2012(folder: Path) -> None:
    names = Path(tfds_path("datasets/imagenet2012/labels.txt")).read_text(encoding="utf-8").split()
    files = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 6)]
    write_tar(folder / "ILSVRC2012_img_val.tar", dict(zip(files, map(encode, IMAGES), strict=True)))
    synsets = {}
    for image, label in zip(IMAGES, LABELS, strict=True):
        png = label == 3  # one of the published training images is a PNG, which TFDS converts
        file = "n02105855_2933.JPEG" if png else f"{names[label]}_1.JPEG"
        write_tar(folder / "one.tar", {file: encode(image, ".png" if png else ".jpg")})
        synsets[f"{names[label]}.tar"] = (folder / "one.tar").read_bytes()
    write_tar(folder / "ILSVRC2012_img_train.tar", synsets)


@pytest.mark.parametrize(
    ("name", "publish", "train"),
    [
        ("cifar10", publish_cifar10, 25),
        ("cifar100", publish_cifar100, 5),
        ("svhn_cropped", publish_svhn_cropped, 5),
        ("imagenette/160px-v2", publish_imagenette, 5),
        ("imagenet2012", publish_imagenet2012, 5),
    ],
)
def test_archives_of_the_published_layout_are_prepared(
    name: str, publish: Callable[[Path], None], train: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The archives of this test have other checksums than the published ones.
    monkeypatch.setattr(DownloadManager, "_register_or_validate_checksums", lambda *_, **__: None)
    source = tmp_path / "from"
    source.mkdir()
    publish(source)
    prepared = prepare(name, source, str(tmp_path / "tfds"))
    test_split = "validation" if name.startswith("imagenet") else "test"
    assert prepared.split_sizes()["train"] == train
    assert "tensorflow" not in sys.modules
    for split in ("train", test_split):
        records = Records(prepared, split, (32, 32, 3), resize=False)
        images, labels = records.read(range(len(records)))
        for image, label in zip(images, labels, strict=True):
            distance = np.abs(IMAGES.astype(float) - image).mean((1, 2, 3))
            assert distance.min() < (
                1e-9 if "imagenet" not in name else 12
            )  # JPEG loses some of random pixels
            if (name, split) != (
                "imagenet2012",
                "validation",
            ):  # whose labels are TFDS's list of the true ones
                assert label == LABELS[distance.argmin()]


def test_a_builder_that_needs_tensorflow_says_what_to_install(tmp_path: Path) -> None:
    """Where TensorFlow is missing; with a builder that decodes images itself."""
    code = f"""
import sys, pathlib
from importlib.util import find_spec
from unittest.mock import patch
from cnnexp.data.tfds import prepare
from cnnexp.core.errors import UsageError
import tensorflow_datasets as tfds
def raise_missing(*_, **__):
    raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
with patch.object(tfds.core.DatasetBuilder, "download_and_prepare", raise_missing):
    try:
        prepare.prepare("cifar10", None, {str(tmp_path)!r})
    except UsageError as error:
        print(error)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "preparing cifar10 needs tensorflow; run: pip install 'cnnexp[tfds]'"

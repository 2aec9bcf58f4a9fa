"""Preparing sets of TensorFlow Datasets with their builders, where possible without TensorFlow."""

import importlib
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from glob import glob
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import cv2
import numpy as np

from cnnexp.core.errors import UsageError, describe_exception, suggestion
from cnnexp.data.tfds.prepared import FORMAT, PreparedSet, resolve_data_dir

CONNECT_SECONDS = 3.0  # after which a server counts as unreachable; TFDS tries for minutes


def prepare(name: str, source: Path | None, data_dir: str | Path | None) -> PreparedSet:
    """Prepare a set with its TFDS builder, which checks the checksums of its files.

    Args:
        name: The name of the builder, with its configuration where it has several.
        source: A folder with the published files; None downloads them.
        data_dir: The folder of prepared sets; see `resolve_data_dir`.

    Raises:
        UsageError: The set does not exist, a file is missing or is not the published one, a server is
            unreachable, or the builder needs TensorFlow, which is not installed.
    """
    if source is not None and not source.is_dir():
        raise UsageError(f"--from {source}: no such folder")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.extractor import ExtractError
    from tensorflow_datasets.core.download.util import DownloadError

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    builder = _make_builder(name, source, data_dir)
    config = tfds.download.DownloadConfig(manual_dir=source) if source else None
    with without_tensorflow(), _refuse_unreachable_downloads(name, source):
        try:
            builder.download_and_prepare(download_config=config)
        except ImportError as error:
            extra = "'cnnexp[tfds]'" if error.name == "tensorflow" else error.name
            raise UsageError(f"preparing {name} needs {error.name}; run: pip install {extra}") from None
        except NonMatchingChecksumError as error:
            raise UsageError(f"{name}: {_describe_wrong_file(error)}") from None
        except (DownloadError, ExtractError) as error:
            raise UsageError(f"{name}: {describe_exception(error)}") from None
        except FileNotFoundError as error:  # of a set whose files are downloaded by hand
            raise UsageError(f"--from {source}: {Path(error.filename).name} is missing") from None
    return PreparedSet(name=name, folder=Path(builder.data_path))


def _make_builder(name: str, source: Path | None, data_dir: str | Path | None) -> Any:
    """Make the TFDS builder of a set; see `prepare` for the arguments and errors."""
    import tensorflow_datasets as tfds

    set_name, _, config = name.partition("/")
    names = tfds.list_builders(with_community_datasets=False)
    if set_name not in names:
        raise UsageError(f"data set {name}: {suggestion(set_name, names)}")
    configs = [entry.name for entry in tfds.builder_cls(set_name).BUILDER_CONFIGS]
    if configs and config not in configs:
        raise UsageError(f"data set {name}: {suggestion(name, [f'{set_name}/{entry}' for entry in configs])}")
    builder = tfds.builder(name, data_dir=resolve_data_dir(data_dir), file_format=FORMAT)
    if source is None and builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise UsageError(
            f"{name}: its files must be downloaded by hand; run: cnnexp data prepare {name} --from DIR "
            f"({' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())})"
        )
    return builder


@contextmanager
def _refuse_unreachable_downloads(name: str, source: Path | None) -> Iterator[None]:
    """Refuse at once a download from an unreachable server, and a file that is missing in `source`."""
    from tensorflow_datasets.core.download import downloader

    original_download = downloader._Downloader.download

    def download_if_reachable(self: Any, url: Any, *args: Any, **kwargs: Any) -> Any:
        address = url if isinstance(url, str) else getattr(url, "url", str(url))
        file = Path(urlsplit(address).path).name
        if source is not None:
            raise UsageError(f"--from {source}: {file} is missing")
        parts = urlsplit(address)
        try:
            with socket.create_connection((parts.hostname or "", parts.port or 443), CONNECT_SECONDS):
                pass
        except OSError:
            raise UsageError(
                f"{name}: {parts.hostname} cannot be reached; if you have {file} from elsewhere, run: "
                f"cnnexp data prepare {name} --from DIR"
            ) from None
        return original_download(self, url, *args, **kwargs)

    downloader._Downloader.download = download_if_reachable
    try:
        yield
    finally:
        downloader._Downloader.download = original_download


def _describe_wrong_file(error: Exception) -> str:
    match = re.search(r"downloaded to (.*), has wrong checksum", str(error))
    file = match[1] if match else "a file"
    return f"{file} is not the published file (checksum mismatch)"


@contextmanager
def without_tensorflow() -> Iterator[None]:
    """Let TFDS prepare image sets without TensorFlow, by stand-ins for the few functions that it needs.

    The stand-ins are used even where TensorFlow is installed: its graphs encode images several times slower.
    """
    from tensorflow_datasets.core import utils
    from tensorflow_datasets.core.features import image_feature
    from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow

    files = SimpleNamespace(GFile=open, exists=os.path.exists, listdir=os.listdir, glob=glob)
    stand_ins = {"io": _StandIn("io", gfile=files), "compat": _StandIn("compat", as_text=_as_text)}
    with ExitStack() as patches:
        patches.enter_context(patch.dict(tensorflow._submodules, stand_ins))
        encoder = image_feature._ImageEncoder
        patches.enter_context(patch.object(encoder, "_encode_image", _encode_image))
        patches.enter_context(patch.object(utils, "jpeg_cmyk_to_rgb", _to_jpeg))
        patches.enter_context(patch.object(utils, "png_to_jpeg", _to_jpeg))
        yield


class _StandIn(SimpleNamespace):
    """A module of TensorFlow in which some functions are replaced; the others are imported when used."""

    def __init__(self, module: str, **replacements: Any):
        super().__init__(**replacements)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(importlib.import_module("tensorflow"), self._module), name)


def _as_text(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text


def _encode_image(self: Any, image: np.ndarray) -> bytes:
    """Encode an array as the image encoder of TFDS does."""
    from tensorflow_datasets.core.features import image_feature

    image_feature._validate_np_array(image, shape=self.shape, dtype=self.np_dtype)
    colours = image if image.shape[-1] == 1 else image[..., [2, 1, 0, 3][: image.shape[-1]]]
    return cv2.imencode(f".{self.encoding_format}", colours)[1].tobytes()


def _to_jpeg(encoded: bytes, quality: int = 100) -> bytes:
    """Convert the images of ImageNet that are PNG, or JPEG in CMYK, as TFDS does."""
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()

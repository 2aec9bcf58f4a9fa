"""What TFDS's image builders need TensorFlow for: opening files, and writing and converting images."""

import importlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from glob import glob
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np


@contextmanager
def without_tensorflow() -> Iterator[None]:
    """Let TFDS prepare image sets without TensorFlow; what is not stood in for is still TensorFlow's.

    Where TensorFlow is installed it is not used either: its graphs encode images several times slower.
    """
    from tensorflow_datasets.core import utils
    from tensorflow_datasets.core.features import image_feature
    from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow

    files = SimpleNamespace(GFile=open, exists=os.path.exists, listdir=os.listdir, glob=glob)
    here = {"io": _StandIn("io", gfile=files), "compat": _StandIn("compat", as_text=_as_text)}
    with ExitStack() as patches:
        patches.enter_context(patch.dict(tensorflow._submodules, here))
        encoder = image_feature._ImageEncoder
        patches.enter_context(patch.object(encoder, "_encode_image", _encode_image))
        patches.enter_context(patch.object(utils, "jpeg_cmyk_to_rgb", _to_jpeg))
        patches.enter_context(patch.object(utils, "png_to_jpeg", _to_jpeg))
        yield


class _StandIn(SimpleNamespace):
    """A module of TensorFlow of which some functions are here, the others where they were."""

    def __init__(self, module: str, **here: Any):
        super().__init__(**here)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(importlib.import_module("tensorflow"), self._module), name)


def _as_text(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text


def _encode_image(self: Any, image: np.ndarray) -> bytes:
    """What TFDS's image encoder does to an array."""
    from tensorflow_datasets.core.features import image_feature

    image_feature._validate_np_array(image, shape=self.shape, dtype=self.np_dtype)
    colours = image if image.shape[-1] == 1 else image[..., [2, 1, 0, 3][: image.shape[-1]]]
    return cv2.imencode(f".{self.encoding_format}", colours)[1].tobytes()


def _to_jpeg(encoded: bytes, quality: int = 100) -> bytes:
    """What TFDS does to the images of ImageNet that are PNG, or JPEG in CMYK."""
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()

"""Decoding PNG and JPEG files of the user, and resizing images."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cnnexp.core.errors import UsageError

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
PNG_COLOUR_TYPE = 25  # index of the byte
GREY_WITH_ALPHA = 4  # colour type
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
END_BYTES = 1024  # programs append a few bytes to the end of an image


class Picture(NamedTuple):
    """A decoded file: pixels `(h, w)`, or `(h, w, 3)` in the order red, green, blue; 8 or 16 bits each."""

    pixels: np.ndarray

    @property
    def is_grey(self) -> bool:
        """Whether the file is grey."""
        return self.pixels.ndim == 2

    @property
    def has_16_bits(self) -> bool:
        """Whether the file has 16 bits per pixel and channel."""
        return self.pixels.dtype == np.uint16

    def convert(self, channels: int) -> np.ndarray:
        """Return the pixels `(h, w, channels)`; grey is the luminance of colours (ITU-R BT.601)."""
        if channels == 1:
            grey = self.pixels if self.is_grey else cv2.cvtColor(self.pixels, cv2.COLOR_RGB2GRAY)
            return grey[..., None]
        return np.repeat(self.pixels[..., None], 3, axis=2) if self.is_grey else self.pixels


def decode_picture(file: Path) -> Picture:
    """Decode a PNG or JPEG file as it is stored; transparent pixels are laid on white.

    The orientation in the EXIF data of a photograph is ignored, as in TFDS.

    Raises:
        UsageError: The file is not PNG or JPEG, or is corrupt.
    """
    try:
        encoded = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from None
    is_png, is_jpeg = encoded.startswith(PNG_START), encoded.startswith(JPEG_START)
    if not (is_png or is_jpeg):
        raise UsageError(f"{file}: must be a PNG or JPEG file")
    is_whole = (PNG_END if is_png else JPEG_END) in encoded[-END_BYTES:]
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED) if is_whole else None
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
        raise UsageError(f"{file}: corrupt image")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = _lay_on_white(pixels)
        if encoded[PNG_COLOUR_TYPE] == GREY_WITH_ALPHA:
            pixels = pixels[..., 0]
    return Picture(pixels if pixels.ndim == 2 else pixels[..., ::-1])  # OpenCV has blue first


def _lay_on_white(pixels: np.ndarray) -> np.ndarray:
    """Return images of three channels, blended with white by their fourth channel."""
    white = np.iinfo(pixels.dtype).max
    opacity = pixels[..., 3:] / white
    return np.round(pixels[..., :3] * opacity + white * (1 - opacity)).astype(pixels.dtype)


def crop_middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale an image to the smallest size that covers height and width, and crop its middle."""
    scale = max(height / image.shape[0], width / image.shape[1])
    sides = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
    if sides != (image.shape[1], image.shape[0]):
        image = cv2.resize(image, sides, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (sides[1] - height) // 2, (sides[0] - width) // 2
    return image[top : top + height, left : left + width]

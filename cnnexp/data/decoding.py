"""Decoding PNG and JPEG files of the user, and resizing images."""

import struct
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cnnexp.core.errors import UsageError

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
PNG_COLOUR_TYPE = 25  # index of the byte
GREY_TYPES = (0, 4)  # colour types: without and with alpha
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
HEADER_BYTES = 2**16  # a JPEG file may have a preview before its frame header
END_BYTES = 1024  # programs append a few bytes to the end of an image


class Header(NamedTuple):
    """The properties of an image that the first bytes of its file contain.

    Attributes:
        size: Height and width in pixels.
        is_grey: Whether the image is grey, with or without transparency.
        has_16_bits: Whether each pixel and channel has 16 bits.
    """

    size: tuple[int, int]
    is_grey: bool
    has_16_bits: bool


def read_header(file: Path) -> Header:
    """Read the header of a PNG or JPEG file without decoding it.

    Raises:
        UsageError: The file is not PNG or JPEG, or its header is corrupt.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(HEADER_BYTES)
            if start.startswith(JPEG_START):
                header = _read_jpeg_header(start) or _read_jpeg_header(start + opened.read())
            else:
                header = _read_png_header(start) if start.startswith(PNG_START) else None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from None
    if header is not None and 0 not in header.size:
        return header
    is_image = start.startswith((PNG_START, JPEG_START))
    raise UsageError(f"{file}: {'corrupt image' if is_image else 'must be a PNG or JPEG file'}")


def _read_png_header(start: bytes) -> Header | None:
    if len(start) <= PNG_COLOUR_TYPE:
        return None
    width, height, bits, colour_type = struct.unpack(">IIBB", start[16 : PNG_COLOUR_TYPE + 1])
    return Header((height, width), colour_type in GREY_TYPES, bits == 16)


def _read_jpeg_header(start: bytes) -> Header | None:
    """Read the frame header of JPEG (ITU-T T.81, B.2.2); None if it lies beyond these bytes."""
    position = 2
    while position + 10 <= len(start):
        marker, length = start[position + 1], int.from_bytes(start[position + 2 : position + 4], "big")
        if start[position] != 0xFF:
            return None
        if marker == 0xFF:  # a byte that fills up
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _, height, width, components = struct.unpack(">BHHB", start[position + 4 : position + 10])
            return Header((height, width), components == 1, has_16_bits=False)
        else:
            position += 2 + length
    return None


def decode_picture(file: Path, *, keep_alpha: bool = False) -> np.ndarray:
    """Decode a PNG or JPEG file as it is stored.

    The orientation in the EXIF data of a photograph is ignored, as in TFDS.

    Args:
        file: The file.
        keep_alpha: Whether transparent images keep their alpha channel; otherwise they are laid on white.

    Returns:
        The pixels `(h, w)` of a grey image, `(h, w, 3)` in the order red, green, blue, or `(h, w, 4)` with
        alpha; 8 or 16 bits each.

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
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 4:
        if keep_alpha:
            return pixels[..., [2, 1, 0, 3]]  # OpenCV has blue first
        pixels = _lay_on_white(pixels)
    is_grey = is_png and encoded[PNG_COLOUR_TYPE] in GREY_TYPES
    return pixels[..., 0] if is_grey else pixels[..., ::-1]


def convert_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Convert decoded pixels to `(h, w, channels)`.

    Grey is the luminance of colours (ITU-R BT.601); a fourth channel, alpha, is opaque where a file has none.
    """
    if channels == 1:
        grey = pixels if pixels.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
        return grey[..., None]
    colours = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    if channels == colours.shape[2]:
        return colours
    opaque = np.full((*colours.shape[:2], 1), np.iinfo(colours.dtype).max, colours.dtype)
    return np.concatenate([colours, opaque], axis=2)


def _lay_on_white(pixels: np.ndarray) -> np.ndarray:
    """Blend images with white by their fourth channel, and return the other three."""
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

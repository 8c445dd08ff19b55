"""Decoders of color pictures and of greyscale PNGs that hold depth; each damage is one sentence.

What the values of depth mean: trainables/data/depth_coding.py.
"""

from __future__ import annotations

import io
import warnings
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from kornia_rs.io import decode_image_png_u8, decode_image_png_u16
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from trainables.data.frames import BadFrame, Rgb
from trainables.data.photos import MAX_SCANS, orientation
from trainables.data.stand_in import stand_in

MAX_PIXELS: Final = 1 << 25  # a header that promises more is taken for a decompression bomb
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_CHANNELS: Final = {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "F": 1, "LA": 2, "P": 1, "RGBA": 4, "CMYK": 4}
_ROTATED: Final = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")  # parts of a PNG that may state a rotation
_INTERLACED: Final = 28  # offset in a PNG
_TRAILER: Final = 64  # bytes within which a JPEG's end marker is looked for


@dataclass(frozen=True)
class Header:
    """What an image file says about itself: pixels, channels, bits per channel, EXIF orientation (1 to 8)."""

    width: int
    height: int
    channels: int
    bits: int
    kind: Literal["PNG", "JPEG"]
    orientation: int


def read_header(content: bytes, name: str) -> Header:
    """The header of a PNG or JPEG file. Raises BadFrame."""
    if content.startswith(_PNG) and len(content) >= 26:
        width, height = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(content[25], 0)
        bits = 0 if content[25] == 3 else content[24]  # a palette has none
        header = Header(width, height, channels, bits, "PNG", _png_orientation(content))
    elif content.startswith(_JPEG):
        if content.count(b"\xff\xda") > MAX_SCANS:
            raise BadFrame(f"{name} is a JPEG of more than {MAX_SCANS} scans, which takes too long; save it again")
        try:
            unwarned = warnings.catch_warnings(action="ignore") if b"Exif\0\0" in content else nullcontext()
            with unwarned, Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
                turned = orientation(image) if image.info.keys() & {"exif", "xmp"} else 1
                header = Header(*image.size, _CHANNELS.get(image.mode, 3), 8, "JPEG", turned)
        except Exception as error:  # Pillow promises no list of what its decoders raise for a damaged file
            raise BadFrame(f"{name} is not a complete JPEG ({_first_line(error)}); replace it") from None
    else:
        what = stand_in(content) or ("is empty" if not content else "is truncated, or neither a PNG nor a JPEG")
        raise BadFrame(f"{name} {what}; replace it")
    if header.width * header.height > MAX_PIXELS or not header.width * header.height:
        raise BadFrame(f"{name} claims {header.width}x{header.height} pixels; refused, replace it")
    return header


def check_rgb(header: Header, name: str) -> None:
    """Raise BadFrame unless an image is upright 8-bit RGB."""
    if header.channels != 3 or header.bits != 8:
        form = f"{header.channels} channel(s) of {header.bits or 'palette'} bits"
        raise BadFrame(f"{name} has {form} where colour must be 8-bit RGB; convert it")
    if header.orientation != 1:
        raise BadFrame(
            f"{name} is stored rotated (EXIF orientation {header.orientation}), its depth not; turn it upright"
        )


def check_depth(header: Header, name: str) -> None:
    """Raise BadFrame unless an image is an 8- or 16-bit greyscale PNG."""
    if header.kind != "PNG" or header.channels != 1 or header.bits not in (8, 16):
        form = f"{header.kind} of {header.channels} channel(s) of {header.bits or 'palette'} bits"
        raise BadFrame(f"{name} is a {form} where depth must be a greyscale PNG of 8 or 16 bits; convert it")


def check_complete(header: Header, content: bytes, name: str) -> None:
    """Raise BadFrame where a whole file ends too early, or a PNG's checksums are wrong; cheaper than decoding."""
    if header.kind == "PNG":
        rows = (header.width * header.channels * header.bits + 7) // 8 + 1  # a filter's number leads each
        try:
            packed = zlib.decompressobj().decompress(b"".join(_check_chunks(content, name)), rows * header.height)
        except zlib.error as error:
            raise BadFrame(f"{name} is damaged ({error}); replace it") from None
        if len(packed) < rows * header.height and not content[_INTERLACED]:
            raise BadFrame(f"{name} is truncated (rows are missing); replace it")
    elif b"\xff\xd9" not in content[-_TRAILER:]:
        _decode_jpeg(content, name)  # some cameras write more behind the end marker: only decoding shows it


def decode_rgb(content: bytes, name: str) -> Rgb:
    """Colour (H, W, 3) uint8 of a whole PNG or JPEG file. Raises BadFrame."""
    header = read_header(content, name)
    check_rgb(header, name)
    if header.kind == "PNG":
        return _decode_png(header, content, name)
    return _decode_jpeg(content, name)


def decode_grey(content: bytes, name: str) -> npt.NDArray[Any]:
    """Values (H, W) uint8 or uint16 of a whole greyscale PNG file. Raises BadFrame."""
    header = read_header(content, name)
    check_depth(header, name)
    return _decode_png(header, content, name)


def _png_orientation(content: bytes) -> int:
    """Pillow's reading, for the few files that may state one."""
    if not any(mark in content for mark in _ROTATED):
        return 1
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return orientation(image)
    except Exception:  # a damaged file, which the checks that follow describe
        return 1


def _decode_jpeg(content: bytes, name: str) -> Rgb:
    try:  # twice as fast as Pillow, and equal to it
        planes = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        raise BadFrame(f"{name} is truncated or damaged ({_first_line(error)[-60:]}); replace it") from None
    rgb: Rgb = np.ascontiguousarray(planes.permute(1, 2, 0).numpy())
    return rgb


def _decode_png(header: Header, content: bytes, name: str) -> npt.NDArray[Any]:
    """Pixels (H, W) or (H, W, 3), by kornia-rs: twice as fast as Pillow and as torchvision 0.29, whose decoder ends the
    process at a damaged row (libpng's longjmp). It checks the file's checksums (CRC-32), not zlib's own below them.
    """
    _check_chunks(content, name)
    decode = decode_image_png_u16 if header.bits == 16 else decode_image_png_u8
    mode = "rgb" if header.channels == 3 else "mono"
    try:
        pixels: npt.NDArray[Any] = decode(content, (header.height, header.width), mode)
    except Exception as error:  # it raises that class itself
        raise BadFrame(f"{name} is truncated or damaged ({_first_line(error)}); replace it") from None
    return pixels if header.channels == 3 else pixels[..., 0]


def _check_chunks(content: bytes, name: str) -> list[memoryview]:
    """A PNG's packed pixels. Raises BadFrame for what decoders read past: a wrong checksum, a missing end."""
    position, view = len(_PNG), memoryview(content)
    pixels: list[memoryview] = []
    while position + 12 <= len(view):
        length = int.from_bytes(view[position : position + 4])
        body = view[position + 4 : position + 8 + length]
        checksum = view[position + 8 + length : position + 12 + length]
        if len(checksum) < 4:
            break
        if zlib.crc32(body) != int.from_bytes(checksum):
            raise BadFrame(f"{name} is damaged (checksum of its {bytes(body[:4])!r} part is wrong); replace it")
        if bytes(body[:4]) == b"IEND":
            return pixels
        if bytes(body[:4]) == b"IDAT":
            pixels.append(body[4:])
        position += 12 + length
    raise BadFrame(f"{name} is truncated (no end marker); replace it")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

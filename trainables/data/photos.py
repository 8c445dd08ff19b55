"""Decoder of any picture, a user's photo or a request's: upright 8-bit RGB, within bounds of time and memory.

The format is told by the content, whatever the name says, and is one of FORMATS: Pillow knows others that start
programs (PostScript). trainables/data/pictures.py decodes the frames of a data set, which must be of one kind.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from trainables.data.stand_in import stand_in
from trainables.runtime.errors import UserError
from trainables.settings.yamlfile import nearest

FORMATS: Final = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")  # Pillow's names
NAMED: Final = "PNG, JPEG, WebP, TIFF, BMP or GIF"
MAX_PIXELS: Final = 80_000_000  # beyond it a picture is refused: a small file can unpack to more memory than there is
MAX_BYTES: Final = 1 << 28
MAX_SCANS: Final = 100  # of a progressive JPEG, which needs about ten: each takes a pass over all pixels
# How a picture of an EXIF orientation is turned upright; 1, and what the standard does not name, is upright.
TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PATTERN: Final = frozenset("*?[")
MARKS: Final = {
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"GIF8": "GIF",
}


def read_picture(path: Path) -> NDArray[np.uint8]:
    """An upright RGB picture, uint8 (H, W, 3): EXIF rotation applied, transparency laid on white, 16 bits scaled to 8.

    Raises UserError for a file that is missing, damaged, no picture, or too large.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: {_missing(path)}")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: the file is larger than {MAX_BYTES >> 20} MiB; give a smaller picture")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the picture cannot be read ({error.strerror}); check the file") from error
    return decode_picture(content, str(path))


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"this is a folder; name the pictures in it, for example {path}/*.jpg"
    if PATTERN & set(path.name):
        return "no file has this name; a pattern is replaced by the shell, without quotes, where files match it"
    known = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"no such file{nearest(path.name, known)}; check the name"


def decode_picture(content: bytes, name: str) -> NDArray[np.uint8]:
    """The same of a whole file's content; `name` stands in messages."""
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MAX_SCANS:
        raise UserError(f"{name}: a JPEG of more than {MAX_SCANS} scans takes too long; save it again")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=FORMATS) as file:
            width, height = file.size
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"{name}: {width} x {height} pixels are more than {MAX_PIXELS:,}; give a smaller picture"
                )
            file.load()
            turn = TURNS.get(orientation(file))
            return _to_rgb(file if turn is None else file.transpose(turn), name)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{name}: {_unread(content)}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: it has more than {MAX_PIXELS:,} pixels; give a smaller picture") from error
    except MemoryError as error:
        raise UserError(f"{name}: the picture does not fit in memory; give a smaller picture") from error
    except Exception as error:  # Pillow promises no list of what its decoders raise for a damaged file
        detail = str(error) or type(error).__name__
        raise UserError(f"{name}: the picture cannot be read ({detail.splitlines()[0]}); check the file") from error


def _unread(content: bytes) -> str:
    """Why content that Pillow does not know is no picture, and what to do."""
    if (other := stand_in(content)) is not None:
        return f"this {other}; give the picture"
    kind = next((kind for mark, kind in MARKS.items() if content.startswith(mark)), None)
    if kind is not None:
        what = f"this {kind} file is damaged, or of a kind that is not read (three channels of floats, for example)"
        return f"{what}; save it as an 8-bit PNG"
    phone = " (it is HEIC or AVIF, as phones write, or a film)" if content[4:8] == b"ftyp" else ""
    return f"this is not a readable picture; give a {NAMED} file{phone}"


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8: 1 where none is stated, none can be read, or the number is not the standard's.

    Damage of another tag does not matter. A PNG's pixels may be decoded for it.
    """
    with warnings.catch_warnings(action="ignore"):
        try:
            stated = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # as above: whatever it raises, the tag cannot be read
            return 1
    return int(stated) if isinstance(stated, (int, float)) and stated in TURNS else 1


def _to_rgb(picture: Image.Image, name: str) -> NDArray[np.uint8]:
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):  # Pillow's convert would clip these
        values = np.asarray(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise UserError(f"{name}: {picture.mode} pixels have no known white; save the picture with 8 or 16 bits")
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # rounded; 257 is 65535 / 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(picture.convert("RGB"))

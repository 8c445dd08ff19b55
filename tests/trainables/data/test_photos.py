"""Pictures from anywhere: read upright whatever their EXIF data, by content whatever their name, within bounds."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainables.data import photos
from trainables.data.frames import BadFrame
from trainables.data.photos import TURNS, decode_picture, orientation, read_picture
from trainables.data.pictures import check_rgb, decode_rgb, read_header
from trainables.runtime.errors import UserError

RNG = np.random.default_rng(0)
RGB = np.asarray(Image.fromarray(RNG.integers(0, 255, (3, 4, 3), np.uint8)).resize((24, 16), Image.Resampling.BICUBIC))
ORIENTATION, SHORT = 0x0112, 3


def encoded(rgb: np.ndarray, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, format=kind, **options)
    return out.getvalue()


def tiff(entries: list[tuple[int, int, int, bytes]], tail: bytes = b"", order: str = "<") -> bytes:
    """EXIF data: a TIFF header and one directory of (tag, type, count, four bytes of value or offset)."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    body = b"".join(struct.pack(f"{order}HHI", tag, kind, count) + value[:4] for tag, kind, count, value in entries)
    return head + struct.pack(f"{order}H", len(entries)) + body + bytes(4) + tail


def stated(number: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return ORIENTATION, SHORT, 1, struct.pack(f"{order}HH", number, 0)


def jpeg_with(exif: bytes, rgb: np.ndarray = RGB) -> bytes:
    plain, body = encoded(rgb, "JPEG", quality=95), b"Exif\0\0" + exif
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]


def png_with(*chunks: tuple[bytes, bytes], late: bool = False, rgb: np.ndarray = RGB) -> bytes:
    """A PNG with further parts before its pixels, or behind them."""
    plain = encoded(rgb, "PNG")
    more = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    place = len(plain) - 12 if late else 33
    return plain[:place] + more + plain[place:]


def turned(number: int) -> np.ndarray:
    """What is stored when the upright picture is RGB."""
    undo = {6: 8, 8: 6}.get(number, number)
    picture = Image.fromarray(RGB)
    return np.asarray(picture.transpose(TURNS[undo]) if undo in TURNS else picture)


@pytest.mark.parametrize("number", range(12))
def test_predicting_and_training_agree_on_what_is_rotated(number: int) -> None:
    """2 to 8 are rotations; 0, 1 and what the standard does not name are upright, for both."""
    stored = turned(number)
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0" + f'<x tiff:Orientation="{number}"/>'.encode()
    files = [
        png_with((b"eXIf", tiff([stated(number)])), rgb=stored),
        png_with((b"eXIf", tiff([stated(number, ">")], order=">")), late=True, rgb=stored),
        *([png_with((b"iTXt", xmp), rgb=stored)] if number < 10 else []),
    ]
    for content in files:
        assert np.array_equal(decode_picture(content, "a"), RGB)
        header = read_header(content, "a")
        if number in TURNS:
            assert header.orientation == number
            with pytest.raises(BadFrame, match=rf"stored rotated \(EXIF orientation {number}\)"):
                check_rgb(header, "a")
        else:
            assert np.array_equal(decode_rgb(content, "a"), RGB)
    jpeg = jpeg_with(tiff([stated(number)]), stored)
    assert decode_picture(jpeg, "a").shape == RGB.shape
    assert (read_header(jpeg, "a").orientation in TURNS) == (number in TURNS)


entry = st.tuples(
    st.sampled_from([ORIENTATION, 0x010F, 0x011A, 0x8769, 0x8825, 0xA005, 0xB001, 0x02BC]) | st.integers(0, 0xFFFF),
    st.integers(0, 20),
    st.integers(0, 9) | st.integers(0, 2**32 - 1),
    st.binary(min_size=4, max_size=4),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(entry, max_size=4), st.binary(max_size=40), st.sampled_from("<>"), st.integers(2, 8), st.integers(0, 90)
)
def test_other_tags_of_broken_exif_data_do_not_matter(
    others: list[tuple[int, int, int, bytes]], tail: bytes, order: str, number: int, cut: int
) -> None:
    """Any other entries: the picture is read, and turned as its own tag states. Any cut: it is read as something."""
    rest = [one for one in others if one[0] != ORIENTATION]
    whole = tiff([stated(number, order), *rest], tail, order)
    for content in (jpeg_with(whole), png_with((b"eXIf", whole)), png_with((b"eXIf", whole), late=True)):
        assert decode_picture(content, "a").shape == ((24, 16, 3) if number > 4 else (16, 24, 3))
        assert read_header(content, "a").orientation == number
    for content in (jpeg_with(whole[:cut]), png_with((b"eXIf", whole[:cut])), jpeg_with(tiff(others, tail, order))):
        shape = decode_picture(content, "a").shape
        rotated = read_header(content, "a").orientation
        assert shape == ((24, 16, 3) if rotated > 4 else (16, 24, 3))


def test_what_is_no_number_is_no_orientation() -> None:
    image = Image.new("RGB", (4, 2))
    for value in ("6", (6, 6), b"6", 6.5, None, -6, 2**40):
        image.getexif()[ORIENTATION] = value
        assert orientation(image) == 1
    image.getexif()[ORIENTATION] = 6
    assert orientation(image) == 6


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(photos.FORMATS), st.data())
def test_a_damaged_file_of_any_format_is_a_picture_or_one_sentence(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(RGB, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    try:
        rgb = decode_picture(bytes(content), "a.jpg")
    except UserError as error:
        assert str(error).startswith("a.jpg: ") and "\n" not in str(error) and str(error).count(";") >= 1
    else:
        assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3


@pytest.mark.parametrize("kind", photos.FORMATS)
def test_the_content_tells_the_format(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(RGB, kind))
    assert read_picture(path).shape == RGB.shape


FOREIGN = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{ } loop\n",
    "DOS PostScript": b"\xc5\xd0\xd3\xc6"
    + struct.pack("<6IH", 32, 60, 0, 0, 0, 0, 0)
    + b"%!PS-Adobe-3.0\n{ } loop\n" * 3,
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(60),
    "PPM": b"P6 2 2 255\n" + bytes(12),
    "XBM": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {0x1};\n",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "PDF": b"%PDF-1.4\n" + bytes(60),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_formats_are_refused_at_once_and_start_nothing(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "loop.jpg"
    path.write_bytes(FOREIGN[kind])
    began = time.monotonic()
    with pytest.raises(UserError, match=r"loop\.jpg: this is not a readable picture; give a PNG, JPEG, WebP, TIFF"):
        read_picture(path)
    with pytest.raises(BadFrame, match="neither a PNG nor a JPEG"):
        decode_rgb(FOREIGN[kind], "loop.jpg")
    assert time.monotonic() - began < 5


def test_a_known_format_that_is_not_read_is_named_with_a_cure() -> None:
    """Three channels of floats, as renderers write; HEIC, as phones do; files that end at once."""
    tags = [(256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 3, 170), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 182)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 24), (284, 3, 1, 1), (339, 3, 3, 176)]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    floats = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + struct.pack("<I", 0)
    floats = floats.ljust(170, b"\0") + struct.pack("<6H", 32, 32, 32, 3, 3, 3) + struct.pack("<6f", *[0.5] * 6)
    known = {"TIFF": floats, "PNG": b"\x89PNG\r\n", "JPEG": b"\xff\xd8", "BMP": b"BM", "GIF": b"GIF8"}
    for kind, content in known.items():
        with pytest.raises(
            UserError, match=rf"^a: this {kind} file is damaged, or of a kind .*; save it as an 8-bit PNG$"
        ):
            decode_picture(content, "a")
    with pytest.raises(UserError, match=r"give a PNG, .* file \(it is HEIC or AVIF, as phones write, or a film\)$"):
        decode_picture(FOREIGN["HEIC"], "a.jpg")


def test_a_picture_is_bounded_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, size = encoded(RGB, "PNG"), struct.pack(">II", 60_000, 60_000)
    head = small[12:16] + size + small[24:29]
    bomb = small[:12] + head + struct.pack(">I", zlib.crc32(head)) + small[33:]
    with pytest.raises(UserError, match="80,000,000"):
        decode_picture(bomb, "bomb.png")
    progressive = encoded(RGB, "JPEG", progressive=True)
    assert decode_picture(progressive, "a").shape == RGB.shape
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    slow = progressive[:-2] + scan * photos.MAX_SCANS + b"\xff\xd9"
    with pytest.raises(UserError, match="scans takes too long"):
        decode_picture(slow, "slow.jpg")
    with pytest.raises(BadFrame, match="scans, which takes too long"):
        decode_rgb(slow, "slow.jpg")
    (tmp_path / "large.png").write_bytes(encoded(RGB, "PNG"))
    monkeypatch.setattr(photos, "MAX_BYTES", 100)
    with pytest.raises(UserError, match=r"large\.png: the file is larger than"):
        read_picture(tmp_path / "large.png")


def test_a_near_miss_is_named(tmp_path: Path) -> None:
    (tmp_path / "kitchen.JPG").write_bytes(encoded(RGB, "JPEG"))
    for name, says in (
        ("kitchen.jpg", r"no such file \(did you mean kitchen\.JPG\?\)"),
        ("", "this is a folder; name the pictures in it, for example .*/\\*\\.jpg"),
        ("*.jpg", "a pattern is replaced by the shell"),
        ("kitchen.JPG/x.jpg", "no such file"),
        ("none/x.jpg", "no such file"),
        ("x" * 300, "cannot be read|no such file"),
    ):
        with pytest.raises(UserError, match=says):
            read_picture(tmp_path / name)

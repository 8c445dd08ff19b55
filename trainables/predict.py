"""`python -m trainables.predict IMAGE... --checkpoint FOLDER`: depth of a user's pictures, of any size.

Per picture: NAME_depth.png (16-bit, millimetres; metres times 256 where these would not reach), NAME_depth.npy
(float32, metres) and NAME_coloured.png with a scale.
"""

from __future__ import annotations

import argparse
import io
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from trainables.runtime import cli
from trainables.runtime.durable import write_bytes
from trainables.runtime.errors import UserError

MAX_PIXELS = 80_000_000  # beyond it a picture is refused: a small file can unpack to more memory than there is
DRAWN_PX = 1600  # the coloured picture shows every n-th pixel of anything larger
# Steps per metre of the 16-bit picture by its key in the results: millimetres, or KITTI's where depth goes beyond 65 m.
PNG_STEPS = {"depth_png_mm": 1000, "depth_png_m256": 256}
# A model of relative depth has no scale: its 0 to 1 is spread over the range of depth, and metres are only its units.
LEGENDS = {True: "depth (m)", False: "relative depth, near to far (scale in metres is arbitrary)"}
COLOURS = "cividis"  # readable for colour-blind eyes, and in grey


def read_picture(path: Path) -> NDArray[np.uint8]:
    """An upright RGB picture, uint8 (H, W, 3): EXIF rotation applied, transparency laid on white, 16 bits scaled to 8.

    Raises UserError for a file that is missing, damaged, no picture, or too large.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the name")
    try:
        with Image.open(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise UserError(
                    f"{path}: {file.width} x {file.height} pixels are more than {MAX_PIXELS:,}; give a smaller picture"
                )
            file.load()
            upright = ImageOps.exif_transpose(file)
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: this is not a readable picture; give a PNG, JPEG, TIFF or WebP file") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {error}; give a smaller picture") from error
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:  # what Pillow raises for damaged files
        raise UserError(f"{path}: the picture cannot be read ({error}); check the file") from error
    return _to_rgb(upright, path)


def _to_rgb(picture: Image.Image, path: Path) -> NDArray[np.uint8]:
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):  # Pillow's convert would clip these
        values = np.asarray(picture, dtype=np.float64)
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise UserError(f"{path}: {picture.mode} pixels have no known white; save the picture with 8 or 16 bits")
        grey = np.round(values * (255 / 65535)).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(picture.convert("RGB"))


def png_key(max_depth_m: float) -> str:
    """The key of the finest steps that reach a largest depth."""
    return next(key for key, steps in PNG_STEPS.items() if max_depth_m * steps <= 65535 or steps == 256)


def write_depth(
    depth_m: NDArray[np.float32], rgb: NDArray[np.uint8], stem: Path, legend: str, max_depth_m: float
) -> dict[str, str]:
    """Write the three files STEM_depth.png, STEM_depth.npy, STEM_coloured.png; their paths by kind."""
    key = png_key(max_depth_m)
    paths = {
        key: stem.with_name(f"{stem.name}_depth.png"),
        "depth_npy_m": stem.with_name(f"{stem.name}_depth.npy"),
        "coloured": stem.with_name(f"{stem.name}_coloured.png"),
    }
    png, npy = io.BytesIO(), io.BytesIO()
    steps = np.clip(np.round(depth_m.astype(np.float64) * PNG_STEPS[key]), 0, 65535).astype(np.uint16)
    Image.fromarray(steps).save(png, format="PNG")
    np.save(npy, depth_m)
    for path, content in zip(
        paths.values(), (png.getvalue(), npy.getvalue(), coloured(depth_m, rgb, legend)), strict=True
    ):
        write_bytes(path, content)
    return {kind: str(path) for kind, path in paths.items()}


def coloured(depth_m: NDArray[np.float32], rgb: NDArray[np.uint8], legend: str) -> bytes:
    """A PNG: the picture beside its depth in colours, with a scale whose legend says what it measures."""
    from matplotlib.figure import Figure  # slow to import, and a wrong file name should answer at once

    height, width = depth_m.shape
    figure = Figure(figsize=(12, min(max(5.5 * height / width, 2.0), 20.0)), layout="constrained")
    left, right = figure.subplots(1, 2)
    step = -(-max(height, width) // DRAWN_PX)
    left.imshow(rgb[::step, ::step])
    left.set_title("picture")
    map_ = right.imshow(depth_m[::step, ::step], cmap=COLOURS)
    right.set_title("depth")
    figure.colorbar(map_, ax=right, label=legend)
    for axes in (left, right):
        axes.set_xticks([])
        axes.set_yticks([])
    result = io.BytesIO()
    figure.savefig(result, format="png", dpi=110)
    return result.getvalue()


def output_stems(pictures: Sequence[Path], out: Path | None) -> list[Path]:
    """Where each picture's files go: beside it, or in `out`. UserError when two would write the same files."""
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, and --out must name a folder; choose another name")
    stems = [(out if out is not None else path.parent) / path.stem for path in pictures]
    for index, stem in enumerate(stems):
        if stem in stems[:index]:
            other = pictures[stems.index(stem)]
            raise UserError(f"{pictures[index]}: its files would replace those of {other}; rename one of the two")
    return stems


def predict(pictures: Sequence[Path], checkpoint: Path, out: Path | None, device: Any) -> list[dict[str, Any]]:
    """Predict and write every picture; all are read before anything is written. One entry per picture."""
    from trainables.trained import load_model  # here, so that --help need not wait for torch

    stems = output_stems(pictures, out)
    for path in pictures:
        read_picture(path)
    model = load_model(checkpoint, device)
    results = []
    for path, stem in zip(pictures, stems, strict=True):
        rgb = read_picture(path)
        depth_m = model.predict(rgb)
        if not np.isfinite(depth_m).all():
            raise UserError(f"{checkpoint}: the model predicts NaN for {path}; take another checkpoint")
        results.append(
            {
                "picture": str(path),
                "size": list(depth_m.shape),
                "metric": model.metric,
                "min_m": float(depth_m.min()),
                "median_m": float(np.median(depth_m)),
                "max_m": float(depth_m.max()),
                **write_depth(depth_m, rgb, stem, LEGENDS[model.metric], model.config.target.max_depth_m),
            }
        )
    return results


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = cli.parser(
        "trainables.predict",
        "Depth of pictures: 16-bit PNG in millimetres, NPY in metres, and a coloured picture with a scale.",
        "python -m trainables.predict results/rooms/trials/confirm-0000/preview.png "
        "--checkpoint results/rooms/trials/confirm-0000/checkpoints/best --out depth",
    )
    parser.add_argument("pictures", metavar="IMAGE", nargs="+", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint folder that a training wrote")
    parser.add_argument("--out", type=Path, default=None, help="folder for the results (default: beside each picture)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")

    def body(args: argparse.Namespace) -> dict[str, Any]:
        results = predict(args.pictures, args.checkpoint, args.out, args.device)
        for entry in results:
            png = next(entry[key] for key in PNG_STEPS if key in entry)
            print(
                f"{entry['picture']}: {entry['min_m']:.2f} to {entry['max_m']:.2f} m, median {entry['median_m']:.2f} m"
                f"{'' if entry['metric'] else ' (relative depth: the scale is arbitrary)'}"
                f"; {png}, {entry['depth_npy_m']}, {entry['coloured']}"
            )
        return {"checkpoint": str(args.checkpoint), "pictures": results}

    return cli.run(parser, body, argv)


if __name__ == "__main__":
    sys.exit(main())

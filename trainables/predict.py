"""`python -m trainables.predict IMAGE... --checkpoint FOLDER`: depth of a user's pictures, of any size.

Per picture: NAME_depth.png (16-bit, millimetres; metres times 256 where these would not reach), NAME_depth.npy
(float32, metres) and NAME_coloured.png with a scale. The two PNG files carry a mark by which a later call knows them:
it replaces what it made of the same picture, nothing else, and takes none of them for a picture. With --points also
NAME_points.ply, in the camera's frame: NYU Depth v2's, or the one that --intrinsics gives.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainables import colors, drawing, points
from trainables.data.photos import MAX_PIXELS, read_picture
from trainables.runtime import cli
from trainables.runtime.durable import check_folder, sha256, write_bytes
from trainables.runtime.errors import UserError

DRAWN_PX = 1600  # the coloured picture shows every n-th pixel of anything larger
# Steps per metre of the 16-bit picture by its key in the results: millimetres, or KITTI's where depth goes beyond 65 m.
PNG_STEPS = {"depth_png_mm": 1000, "depth_png_m256": 256}
# A model of relative depth has no scale: its 0 to 1 is spread over the range of depth, and metres are only its units.
LEGENDS = {True: "depth (m)", False: "relative depth, near to far (scale in metres is arbitrary)"}
POINTS = {"points_ply": "_points.ply"}
ENDINGS = {"depth_png": "_depth.png", "depth_npy_m": "_depth.npy", "coloured": "_coloured.png"}
SOFTWARE = "trainables.predict of the DenseDepth study"
# Texts of a PNG: who wrote it, SHA-256 of its pixels, the picture's name, SHA-256 of the .npy beside it.
WRITER, PIXELS, PICTURE, ARRAYS = "Software", "Pixels-SHA256", "Picture", "NPY-SHA256"


class Mark(NamedTuple):
    """What an output says about itself: the name of its picture, and SHA-256 of the .npy files that belong to it."""

    picture: str
    arrays: tuple[str, ...]


def mark_of(path: Path) -> Mark | None:
    """The mark of a PNG that this command wrote and nobody changed; None for any other file."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            texts = image.info
            if texts.get(WRITER) != SOFTWARE or image.width * image.height > MAX_PIXELS:
                return None
            if texts.get(PIXELS) != _digest(image):
                return None
            return Mark(json.loads(texts[PICTURE]), tuple(texts[ARRAYS].split()))
    except Exception:  # Pillow promises no list of what its decoders raise; what cannot be read is not ours
        return None


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


def _marked(image: Image.Image, mark: Mark) -> bytes:
    texts = PngInfo()
    values = {PIXELS: _digest(image), PICTURE: json.dumps(mark.picture), ARRAYS: " ".join(mark.arrays)}
    for key, value in ({WRITER: SOFTWARE} | values).items():
        texts.add_text(key, value)
    result = io.BytesIO()
    image.save(result, format="PNG", pnginfo=texts)
    return result.getvalue()


def output_paths(picture: Path, out: Path | None, *, cloud: bool = False) -> dict[str, Path]:
    """The files of a picture by kind: beside it, or in `out`. cloud: its points, too."""
    folder = picture.parent if out is None else out
    return {kind: folder / f"{picture.stem}{ending}" for kind, ending in (ENDINGS | (POINTS if cloud else {})).items()}


def check_outputs(pictures: Sequence[Path], out: Path | None, *, cloud: bool = False) -> None:
    """Raise UserError where a file could not be written, or would replace one that was not made of the same picture."""
    taken: dict[Path, Path] = {}
    for picture in pictures:
        paths = output_paths(picture, out, cloud=cloud)
        folder = paths["coloured"].parent
        other = taken.setdefault(folder / picture.stem, picture)
        if other is not picture:
            same = other.resolve() == picture.resolve()
            cure = "is named twice; name it once" if same else f"its files would replace those of {other}; rename one"
            raise UserError(f"{picture}: {cure}")
        try:
            check_folder(folder, *(path.name for path in paths.values()))
        except UserError as error:
            raise UserError(f"{picture}: its depth cannot be written: {error}") from None
        mark = mark_of(paths["depth_png"])
        for kind, path in paths.items():
            if not path.exists() and not path.is_symlink():
                continue
            found = mark if kind != "coloured" else mark_of(path)
            if kind in POINTS:
                name = points.made_of(path)
                found = None if name is None else Mark(name, ())
            if found is None or (kind == "depth_npy_m" and sha256(path) not in found.arrays):
                raise UserError(
                    f"{path} is not a file of this command, or was changed, and would be replaced; "
                    "move it, or give another folder with --out"
                )
            if found.picture != picture.name:
                raise UserError(f"{path} was made of {found.picture}; move it, or give another folder with --out")


def png_key(max_depth_m: float) -> str:
    """The key of the finest steps that reach a largest depth."""
    return next(key for key, steps in PNG_STEPS.items() if max_depth_m * steps <= 65535 or steps == 256)


def write_depth(
    depth_m: NDArray[np.float32],
    rgb: NDArray[np.uint8],
    picture: Path,
    out: Path | None,
    legend: str,
    max_depth_m: float,
) -> dict[str, str]:
    """Write a picture's three files; their paths by kind, the PNG's with its steps."""
    key, paths = png_key(max_depth_m), output_paths(picture, out)
    array = io.BytesIO()
    np.save(array, depth_m)
    # Whichever of the two files a kill leaves behind, they belong together.
    arrays = [hashlib.sha256(array.getvalue()).hexdigest()]
    if paths["depth_npy_m"].exists() and (old := sha256(paths["depth_npy_m"])) not in arrays:
        arrays.append(old)
    steps = np.clip(np.round(depth_m.astype(np.float64) * PNG_STEPS[key]), 0, 65535).astype(np.uint16)
    mark = Mark(picture.name, tuple(arrays))
    write_bytes(paths["depth_png"], _marked(Image.fromarray(steps), mark))
    write_bytes(paths["depth_npy_m"], array.getvalue())
    write_bytes(paths["coloured"], _marked(coloured(depth_m, rgb, legend), mark))
    paths = {key if kind == "depth_png" else kind: path for kind, path in paths.items()}
    return {kind: str(path) for kind, path in paths.items()}


def coloured(depth_m: NDArray[np.float32], rgb: NDArray[np.uint8], legend: str) -> Image.Image:
    """The picture beside its depth in colours, with a scale whose legend says what it measures."""
    with drawing.own_settings():
        return _coloured(depth_m, rgb, legend)


def _coloured(depth_m: NDArray[np.float32], rgb: NDArray[np.uint8], legend: str) -> Image.Image:
    from matplotlib.figure import Figure  # slow to import, and a wrong file name should answer at once

    height, width = depth_m.shape
    figure = Figure(figsize=(12, min(max(5.5 * height / width, 2.0), 20.0)), layout="constrained")
    left, right = figure.subplots(1, 2)
    step = -(-max(height, width) // DRAWN_PX)
    left.imshow(rgb[::step, ::step])
    left.set_title("picture")
    map_ = right.imshow(depth_m[::step, ::step], cmap=colors.DEPTH)
    right.set_title("depth")
    figure.colorbar(map_, ax=right, label=legend)
    for axes in (left, right):
        axes.set_xticks([])
        axes.set_yticks([])
    result = io.BytesIO()
    figure.savefig(result, format="png", dpi=110)
    return Image.open(result, formats=["PNG"])


def predict(
    pictures: Sequence[Path],
    checkpoint: Path,
    out: Path | None,
    device: Any,
    camera: points.Intrinsics | Literal["nyu"] | None = None,
) -> list[dict[str, Any]]:
    """Predict and write every picture; all are read, and their outputs checked, before. One entry per picture.

    camera: of the point cloud that is written, too; None: none is.
    """
    from trainables.trained import load_model  # here, so that --help need not wait for torch

    check_outputs(pictures, out, cloud=camera is not None)
    for path in pictures:
        read_picture(path)
    model = load_model(checkpoint, device)
    if camera is not None and not model.metric:
        raise UserError(f"{checkpoint} predicts relative depth, whose points have no place in space; omit --points")
    results = []
    for path in pictures:
        rgb = read_picture(path)
        depth_m = model.predict(rgb)
        if not np.isfinite(depth_m).all():
            raise UserError(f"{checkpoint}: the model predicts NaN for {path}; take another checkpoint")
        cloud = {}
        if camera is not None:
            place = output_paths(path, out, cloud=True)["points_ply"]
            of_picture = points.nyu_camera((rgb.shape[0], rgb.shape[1])) if camera == "nyu" else camera
            write_bytes(place, points.ply(depth_m, rgb, of_picture, path.name))
            cloud = {"points_ply": str(place)}
        results.append(
            {
                "picture": str(path),
                "size": list(depth_m.shape),
                "metric": model.metric,
                "min_m": float(depth_m.min()),
                "median_m": float(np.median(depth_m)),
                "max_m": float(depth_m.max()),
                **write_depth(depth_m, rgb, path, out, LEGENDS[model.metric], model.config.target.max_depth_m),
                **cloud,
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
    parser.add_argument("pictures", metavar="IMAGE", nargs="+", type=cli.path)
    parser.add_argument("--checkpoint", type=cli.path, required=True, help="a checkpoint folder that a training wrote")
    parser.add_argument(
        "--out", type=cli.path, default=None, help="folder for the results (default: beside each picture)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--points", action="store_true", help="also a point cloud, NAME_points.ply (metres, colored)")
    parser.add_argument(
        "--intrinsics",
        nargs=4,
        type=float,
        metavar=("FX", "FY", "CX", "CY"),
        help="the camera of --points, in pixels of the pictures (default: NYU Depth v2's, scaled to their size)",
    )

    def body(args: argparse.Namespace) -> dict[str, Any]:
        camera: points.Intrinsics | Literal["nyu"] | None = "nyu" if args.points else None
        if args.intrinsics is not None:
            if not args.points:
                raise UserError("--intrinsics goes with --points")
            camera = points.Intrinsics(*args.intrinsics)
            if not all(map(math.isfinite, camera)) or min(camera.fx, camera.fy) <= 0:
                raise UserError("--intrinsics: FX and FY are pixels above 0, CX and CY pixels; correct them")
        own = [path for path in args.pictures if mark_of(path) is not None]
        for path in own:
            print(f"{path}: left out, this command made it")
        pictures = [path for path in args.pictures if path not in own]
        if not pictures:
            raise UserError("every picture named is one that this command made; name a photo")
        results = predict(pictures, args.checkpoint, args.out, args.device, camera)
        for entry in results:
            png = next(entry[key] for key in PNG_STEPS if key in entry)
            print(
                f"{entry['picture']}: {entry['min_m']:.2f} to {entry['max_m']:.2f} m, median {entry['median_m']:.2f} m"
                f"{'' if entry['metric'] else ' (relative depth: the scale is arbitrary)'}"
                f"; {png}, {entry['depth_npy_m']}, {entry['coloured']}"
                f"{', ' + entry['points_ply'] if args.points else ''}"
            )
        return {"checkpoint": str(args.checkpoint), "pictures": results, "left_out": list(map(str, own))}

    return cli.run(parser, body, argv)


if __name__ == "__main__":
    sys.exit(main())

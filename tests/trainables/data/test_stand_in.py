"""A file that a clone or a download did not bring is named as what it is, wherever it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainables.data.dataset import open_training
from trainables.data.doctor.diagnosis import open_splits
from trainables.data.hdf5 import opened, unpacked
from trainables.data.photos import decode_picture
from trainables.data.pictures import decode_grey, decode_rgb
from trainables.data.stand_in import stand_in, stand_in_at
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig
from trainables.weights_keras import read_h5

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 4100000\n"
STAND_INS = {
    "is a Git LFS pointer and not the file itself": LFS,
    "is a web page and not the file itself": b"\n<!DOCTYPE html><html><title>Quota exceeded</title></html>",
    "is a MATLAB file of before version 7.3": b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(124)
    + b"\0\1IM"
    + bytes(60),
}


@pytest.mark.parametrize("what", STAND_INS)
@pytest.mark.parametrize("name", ["nyu_depth_v2_labeled.mat", "nyu_data.zip", "nyuv2.hdf5", "nyu.tar"])
def test_a_data_set_that_is_another_file(
    what: str, name: str, tmp_path: Path, tiny_config: Callable[..., TrialConfig]
) -> None:
    path = tmp_path / name
    path.write_bytes(STAND_INS[what])
    with pytest.raises(UserError, match=what):
        open_splits(path, None, {})
    source = {"mat": "labeled", "zip": "kaggle", "hdf5": "unidepth", "tar": "marigold"}[name.rpartition(".")[2]]
    depth = "raw" if source in ("marigold", "unidepth") else "filled"
    config = tiny_config(**{"data.source": source, "data.root": str(path), "data.depth": depth})
    with pytest.raises(UserError, match=what):
        open_training(config)


@pytest.mark.parametrize("what", STAND_INS)
def test_a_frame_a_picture_and_weights_that_are_another_file(what: str, tmp_path: Path) -> None:
    content, path = STAND_INS[what], tmp_path / "1.h5"
    path.write_bytes(content)
    for read in (decode_rgb, decode_grey, decode_picture):
        with pytest.raises(UserError, match=rf"kitchen\.png:? (this )?{what}.*; "):
            read(content, "kitchen.png")
    with pytest.raises(UserError, match=rf"1\.h5 {what}.*; replace it"), opened(path):
        pass
    with pytest.raises(UserError, match=rf"1\.h5 {what}.*; replace it"), unpacked(content, "1.h5"):
        pass
    with pytest.raises(UserError, match=rf"1\.h5 {what}.*; "):
        read_h5(path)


def test_other_files_are_what_they_are(tmp_path: Path) -> None:
    for content in (b"", b"\x89PNG\r\n\x1a\n", b"version 2\n", b"MATLAB 7.3 MAT-file", b"PK\3\4"):
        assert stand_in(content) is None
    assert stand_in_at(tmp_path) is None and stand_in_at(tmp_path / "absent") is None

"""Torch files of unknown origin: read as they were written, or refused; nothing in them runs."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iris_cli.errors import DataRefused, UsageError
from iris_cli.model.torch_file import read_torch_file
from iris_cli.training.checkpoint import write_checkpoint

CONTENT = {"w": torch.arange(24.0).reshape(2, 3, 4), "n": 3, "deep": OrderedDict(a=[1.5, "x"])}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(CONTENT, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def _refused(path: Path, words: str = "") -> DataRefused:
    with pytest.raises(DataRefused) as caught:
        read_torch_file(path)
    error = caught.value
    assert error.file == str(path)
    assert words in str(error.found)
    assert error.expected
    assert error.fix
    return error


def _as_written(found: Any) -> bool:
    return bool(
        list(found) == list(CONTENT)
        and torch.equal(found["w"], CONTENT["w"])
        and (found["n"], found["deep"]) == (CONTENT["n"], CONTENT["deep"])
    )


def test_a_good_file_is_read_as_it_was_written(path: Path) -> None:
    assert _as_written(read_torch_file(path))


def test_numpy_numbers_of_a_trainer_do_not_stand_in_the_way(path: Path) -> None:
    content = {**CONTENT, "best_metric": np.float64(0.5), "best_epoch": np.int32(7)}
    torch.save(content, path)
    assert torch.equal(read_torch_file(path)["w"], CONTENT["w"])


def test_flipped_bits_are_refused_or_change_nothing(path: Path) -> None:
    good = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(400):
        data = bytearray(good)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            assert _as_written(read_torch_file(path))
        except DataRefused:
            refused += 1
    assert refused > 40  # most of a small file is padding


def test_truncated_files_are_refused(path: Path) -> None:
    good = path.read_bytes()
    for length in (0, 1, 30, len(good) // 2, len(good) - 22, len(good) - 1):
        path.write_bytes(good[:length])
        _refused(path)


class _Runs:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.folder),)


class _Grows:
    """Unpickled, it would take a terabyte."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return bytearray, (10**12,)


def test_a_pickle_that_would_run_code_runs_nothing(path: Path, tmp_path: Path) -> None:
    torch.save({"model": CONTENT, "config": _Runs(tmp_path / "made")}, path)
    error = _refused(path, "mkdir")
    assert "keep the weights alone" in str(error.fix)
    path.write_bytes(pickle.dumps(_Runs(tmp_path / "made")))
    _refused(path, "no whole zip")
    assert not (tmp_path / "made").exists()


def test_a_pickle_that_would_take_memory_is_not_loaded(path: Path) -> None:
    torch.save({"model": _Grows()}, path)
    _refused(path, "bytearray")


def test_text_that_would_be_multiplied_is_refused(path: Path) -> None:
    """One long text, encoded again and again: 9 bytes of pickle for 100 kB each time."""
    text = b"X" + (100_000).to_bytes(4, "little") + b"a" * 100_000
    again = b"c_codecs\nencode\nh\x00\x85R"
    pickled = b"\x80\x02]q\x01(" + text + b"q\x00" + again * 5000 + b"e."
    _rewrite(path, "data.pkl", pickled)
    _refused(path, "objects")


def test_tensors_beyond_their_storage_are_refused(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("w/data.pkl")
    assert pickled.count(b"K\x02K\x03K\x04\x87") == 1
    huge = b"J\xff\xff\xff\x7fK\x03K\x04\x87"
    _rewrite(path, "data.pkl", pickled.replace(b"K\x02K\x03K\x04\x87", huge))
    _refused(path, "cannot be loaded")


def test_a_zip_of_something_else_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    _refused(path, "word/document.xml")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", pickle.dumps({}))
    _refused(path, "packed")
    path.write_bytes(b"\x93NUMPY" + bytes(100))
    _refused(path, "zip")


def test_a_checkpoint_of_iris_is_no_file_of_released_weights(tmp_path: Path) -> None:
    error = _refused(write_checkpoint(tmp_path, {"ema": CONTENT}), "checkpoints of iris")
    assert "model/ folder" in str(error.fix)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    for missing in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(UsageError, match="no such file"):
            read_torch_file(missing)


def _rewrite(path: Path, name: str, data: bytes) -> None:
    """The same zip with other bytes in one entry, its checksum right."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    entries[f"w/{name}"] = data
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)

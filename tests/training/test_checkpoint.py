from __future__ import annotations

import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from iris_cli.errors import DataRefused
from iris_cli.training.checkpoint import (
    BEST,
    DAMAGED,
    LATEST,
    PREVIOUS,
    check_seal,
    read_checkpoint,
    read_newest,
    seal,
    write_best,
    write_checkpoint,
)


def state(step: int) -> dict[str, object]:
    return {"step": step, "model": {"w": torch.arange(50.0) * step}, "score": None, "names": ["a"]}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(3))
    read = read_checkpoint(tmp_path / LATEST)
    assert read["step"] == 3
    assert torch.equal(read["model"]["w"], torch.arange(50.0) * 3)
    assert read["score"] is None


def test_a_sealed_checkpoint_is_still_a_zip_with_its_digest_in_the_comment(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(1))
    with zipfile.ZipFile(tmp_path / LATEST) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"iris-sha256:")


def test_two_generations_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, state(step))
    assert read_checkpoint(tmp_path / LATEST)["step"] == 3
    assert read_checkpoint(tmp_path / PREVIOUS)["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [LATEST, PREVIOUS]


def test_flipped_and_missing_bytes_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(1))
    whole = (tmp_path / LATEST).read_bytes()
    rng = random.Random(0)
    bad = tmp_path / "bad.pt"
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        bad.write_bytes(bytes(data))
        with pytest.raises(DataRefused, match="damaged"):
            read_checkpoint(bad)
    for size in (0, 1, 22, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:size])
        with pytest.raises(DataRefused):
            read_checkpoint(bad)
    bad.write_bytes(whole + b"x")
    with pytest.raises(DataRefused):
        read_checkpoint(bad)


def test_a_damaged_latest_is_put_aside_and_the_previous_one_used(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(1))
    write_checkpoint(tmp_path, state(2))
    data = bytearray((tmp_path / LATEST).read_bytes())
    data[len(data) // 2] ^= 16
    (tmp_path / LATEST).write_bytes(bytes(data))
    found = read_newest(tmp_path)
    assert found is not None
    assert found[0]["step"] == 1
    assert (tmp_path / DAMAGED).exists()
    # The damaged one must not push out the whole one at the next write.
    write_checkpoint(tmp_path, state(5))
    assert read_checkpoint(tmp_path / PREVIOUS)["step"] == 1


def test_no_whole_generation_is_refused_and_none_at_all_is_a_new_run(tmp_path: Path) -> None:
    assert read_newest(tmp_path) is None
    (tmp_path / LATEST).write_bytes(b"nothing")
    with pytest.raises(DataRefused, match="no checkpoint of this run is whole"):
        read_newest(tmp_path)


def test_a_failed_write_leaves_both_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, state(1))
    write_checkpoint(tmp_path, state(2))

    def broken(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk"):
        write_checkpoint(tmp_path, state(3))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / LATEST)["step"] == 2
    assert read_checkpoint(tmp_path / PREVIOUS)["step"] == 1


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("exploded",))


def test_a_pickle_bomb_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = tmp_path / "bomb.pt"
    torch.save({"format": "iris-checkpoint-1", "model": _Bomb()}, bomb)
    seal(bomb)
    check_seal(bomb)
    with pytest.raises(DataRefused, match="not a checkpoint"):
        read_checkpoint(bomb)
    bomb.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(DataRefused):
        read_checkpoint(bomb)
    assert not (tmp_path / "exploded").exists()


def test_another_file_of_torch_is_no_checkpoint(tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save([1, 2], other)
    seal(other)
    with pytest.raises(DataRefused, match="not a checkpoint"):
        read_checkpoint(other)


def test_the_best_stands_beside_the_generations(tmp_path: Path) -> None:
    write_best(tmp_path, state(9))
    assert read_checkpoint(tmp_path / BEST)["step"] == 9
    assert read_newest(tmp_path) is None


@pytest.mark.parametrize(
    "error",
    [MemoryError(), PermissionError("no"), RuntimeError("can't allocate memory: 9 bytes")],
)
def test_what_is_not_the_files_fault_leaves_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    write_checkpoint(tmp_path, state(1))

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises((MemoryError, PermissionError)):
        read_newest(tmp_path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == [LATEST]
    assert read_checkpoint(tmp_path / LATEST)["step"] == 1


def test_a_whole_file_that_is_no_checkpoint_is_not_put_aside(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / LATEST)
    seal(tmp_path / LATEST)
    with pytest.raises(DataRefused, match="not a checkpoint"):
        read_newest(tmp_path)
    assert (tmp_path / LATEST).exists()

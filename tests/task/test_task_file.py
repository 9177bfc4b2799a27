"""The task file: round trip, deterministic bytes, and R8 (bit flips, forged headers)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import random
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.hashing import hash_array, hash_json
from iris_cli.task.task_file import (
    ModelRecord,
    ReferenceVolumes,
    Task,
    TaskClass,
    TaskHeader,
    TaskReference,
    read_task,
    task_bytes,
    write_task,
)

DIGEST_SIZE = len(b"iris-task sha256:") + 64


def make_task(classes: int = 2, **changes: Any) -> Task:
    values: dict[str, Any] = {
        "model": ModelRecord(name="tiny", version="1", fingerprint="ab" * 32),
        "profile": "iris-1",
        "spacing_mm": 1.25,
        "spacing_reason": "because",
        "modality": "other",
        "classes": tuple(
            TaskClass(
                name=f"class {i}", value=3 + 7 * i, references=1, crops=2, voxels=40, coverage=0.5
            )
            for i in range(classes)
        ),
        "groups": (tuple(range(classes)),),
        "stages": ((3, 8), (3, 4)),
        "references": (TaskReference(image_sha256="0" * 64, labels_sha256="1" * 64),),
        "warnings": ("half of it is not seen",),
    }
    header = TaskHeader(**(values | changes))
    generator = np.random.default_rng(0)
    tokens = tuple(
        generator.normal(size=(classes, *stage)).astype(np.float32) for stage in header.stages
    )
    return Task(header, tokens)


def sealed(body: bytes) -> bytes:
    """A file with a right digest, whatever it holds."""
    return body + b"iris-task sha256:" + hashlib.sha256(body).hexdigest().encode()


def forge(task: Task, text: str) -> bytes:
    """A task file with another header text and everything else in order."""
    from iris_cli.task import task_file

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        shapes = [array.shape for array in task.tokens]
        archive.writestr("archive/data.pkl", task_file._pickle(text, shapes))
        archive.writestr("archive/byteorder", b"little")
        for stage, array in enumerate(task.tokens):
            archive.writestr(f"archive/data/{stage}", array.tobytes())
        archive.comment = b" " * DIGEST_SIZE
    return sealed(buffer.getvalue()[:-DIGEST_SIZE])


def test_a_task_reads_back_as_it_was_written(tmp_path: Path) -> None:
    task = make_task()
    read = read_task(write_task(tmp_path / "a.task.pt", task))
    assert read.header == task.header
    assert read.fingerprint() == task.fingerprint()
    for found, expected in zip(read.tokens, task.tokens, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_torch_load_reads_a_task_with_weights_only(tmp_path: Path) -> None:
    task = make_task()
    path = write_task(tmp_path / "a.task.pt", task)
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert TaskHeader.model_validate_json(loaded["header"]) == task.header
        for stage, expected in enumerate(task.tokens):
            np.testing.assert_array_equal(loaded[f"tokens/{stage}"].numpy(), expected)


def test_the_same_content_gives_the_same_bytes() -> None:
    assert task_bytes(make_task()) == task_bytes(make_task())
    assert task_bytes(make_task()) != task_bytes(make_task(spacing_mm=1.5))


def test_tensors_lie_aligned_in_the_file() -> None:
    data = task_bytes(make_task())
    for array in make_task().tokens:
        assert data.index(array.tobytes()) % 64 == 0


def test_a_newer_major_version_is_refused_by_name(tmp_path: Path) -> None:
    task = make_task()
    header = json.loads(task.header.model_dump_json()) | {"version": "2.3", "unheard": [1]}
    path = tmp_path / "a.task.pt"
    path.write_bytes(forge(task, json.dumps(header)))
    with pytest.raises(DataRefused, match=r"2\.3 is newer"):
        read_task(path)


def test_a_newer_minor_version_is_read_without_its_new_keys(tmp_path: Path) -> None:
    task = make_task()
    header = json.loads(task.header.model_dump_json()) | {"version": "1.9", "unheard": [1]}
    path = tmp_path / "a.task.pt"
    path.write_bytes(forge(task, json.dumps(header)))
    assert read_task(path).header.classes == task.header.classes
    path.write_bytes(forge(task, json.dumps(header | {"version": "1.0"})))
    with pytest.raises(DataRefused, match="unheard"):
        read_task(path)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": []},
        {"spacing_mm": 0},
        {"spacing_mm": "NaN"},
        {"spacing_mm": 1e300},
        {"modality": "pet"},
        {"groups": [[0]]},
        {"groups": [[0, 1], [1]]},
        {"stages": [[3, 8], [3, 2**31 - 1]]},
        {"stages": [[3, 8], [3, 2**70]]},
        {"stages": [[3, 8]]},
        {"format": "something"},
        {"version": "one"},
        {"version": "0.1"},
        {"references": [{"image_sha256": "../../patient", "labels_sha256": "1" * 64}]},
    ],
)
def test_a_forged_header_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    task = make_task()
    header = json.loads(task.header.model_dump_json()) | change
    path = tmp_path / "a.task.pt"
    path.write_bytes(forge(task, json.dumps(header)))
    with pytest.raises(DataRefused, match=r"a\.task\.pt"):
        read_task(path)


@pytest.mark.parametrize("name", ["", "a\nb", "a\x00b", "x" * 201, "\x1b[31mred", "a\u202eb"])
def test_a_hostile_class_name_is_refused(tmp_path: Path, name: str) -> None:
    task = make_task()
    header = json.loads(task.header.model_dump_json())
    header["classes"][0]["name"] = name
    path = tmp_path / "a.task.pt"
    path.write_bytes(forge(task, json.dumps(header)))
    with pytest.raises(DataRefused):
        read_task(path)


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 100_000, "1" * 100_000, "NaN", '{"format": NaN}', "{}"],
    ids=["brackets", "braces", "digits", "nan", "inner-nan", "empty"],
)
def test_a_header_that_is_no_header_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.task.pt"
    path.write_bytes(forge(make_task(), text))
    with pytest.raises(DataRefused):
        read_task(path)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_a_pickle_bomb_with_a_right_digest_does_nothing(tmp_path: Path) -> None:
    target = tmp_path / "exploded"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"header": Bomb(target)}, protocol=2))
        archive.writestr("archive/byteorder", b"little")
        archive.comment = b" " * DIGEST_SIZE
    path = tmp_path / "bomb.task.pt"
    path.write_bytes(sealed(buffer.getvalue()[:-DIGEST_SIZE]))
    with pytest.raises(DataRefused, match="did not write"):
        read_task(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "name",
    ["archive/code/x.py", "../x", "archive/../x", "/x", "other/data.pkl", "archive/data/\u0663"],
)
def test_an_entry_of_another_name_is_refused(tmp_path: Path, name: str) -> None:
    data = task_bytes(make_task())[:-DIGEST_SIZE] + b" " * DIGEST_SIZE
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, b"x")
        archive.comment = b" " * DIGEST_SIZE
    path = tmp_path / "a.task.pt"
    path.write_bytes(sealed(buffer.getvalue()[:-DIGEST_SIZE]))
    with pytest.raises(DataRefused, match="an entry"):
        read_task(path)


def test_a_packed_entry_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
        archive.writestr("archive/byteorder", b"little")
        archive.comment = b" " * DIGEST_SIZE
    path = tmp_path / "a.task.pt"
    path.write_bytes(sealed(buffer.getvalue()[:-DIGEST_SIZE]))
    tracemalloc.start()
    with pytest.raises(DataRefused, match="packed"):
        read_task(path)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="encode-task"):
        read_task(tmp_path / "no.task.pt")


def test_a_foreign_or_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.task.pt"
    for data in (b"", b"x" * 500):
        path.write_bytes(data)
        with pytest.raises(DataRefused, match="not a whole"):
            read_task(path)
    torch.save({"header": "x"}, path)
    with pytest.raises(DataRefused, match="no digest"):
        read_task(path)


def test_tokens_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    task = make_task()
    task.tokens[0][0, 0, 0] = np.nan
    with pytest.raises(DataRefused, match="finite"):
        write_task(tmp_path / "a.task.pt", task)
    assert list(tmp_path.iterdir()) == []


def check_flips(tmp_path: Path, count: int) -> None:
    task = make_task()
    data = task_bytes(task)
    path = tmp_path / "a.task.pt"
    chooser = random.Random(0)
    for _ in range(count):
        position, bit = chooser.randrange(len(data)), chooser.randrange(8)
        flipped = bytearray(data)
        flipped[position] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(DataRefused, match="not a whole"):
            read_task(path)


def mutated(data: bytes, chooser: random.Random) -> bytes:
    """Change, drop, repeat or insert a few bytes of the body, mostly in its text."""
    body = bytearray(data)
    for _ in range(chooser.choice([1, 1, 2, 5])):
        at = chooser.randrange(len(body))
        kind = chooser.randrange(5)
        if kind == 0:
            body[at] = chooser.randrange(256)
        elif kind == 1:
            del body[at : at + chooser.randrange(1, 30)]
        elif kind == 2:
            body[at:at] = body[at : at + chooser.randrange(1, 30)]
        elif kind == 3:
            body[at:at] = chooser.choice(
                [b"9" * 20, b"-", b"[", b'"', b"\xff\xff\xff\x7f", b"1e999"]
            )
        else:
            body[at : at + 4] = chooser.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x00"])
    return bytes(body)


def check_mutations(tmp_path: Path, count: int) -> None:
    """Half of them change the raw file, half only the header text; all have a right digest."""
    task = make_task()
    data = task_bytes(task)[:-DIGEST_SIZE]
    text = json.dumps(json.loads(task.header.model_dump_json()))
    path = tmp_path / "a.task.pt"
    chooser = random.Random(1)
    tracemalloc.start()
    for number in range(count):
        if number % 2:
            path.write_bytes(sealed(mutated(data, chooser)))
        else:
            broken = mutated(text.encode(), chooser).decode(errors="replace")
            path.write_bytes(forge(task, broken))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with contextlib.suppress(DataRefused):
            read = read_task(path)
            assert [array.shape for array in read.tokens] == [(2, 3, 8), (2, 3, 4)]
        # A few copies of the file, and what reading a zip and JSON costs in any case.
        assert tracemalloc.get_traced_memory()[1] - before < 16 * path.stat().st_size + 400_000
    tracemalloc.stop()


def test_flipped_bits_are_refused(tmp_path: Path) -> None:
    check_flips(tmp_path, 150)


def test_mutated_headers_are_refused_or_harmless(tmp_path: Path) -> None:
    check_mutations(tmp_path, 200)


@pytest.mark.slow
def test_two_thousand_flipped_bits_are_refused(tmp_path: Path) -> None:
    check_flips(tmp_path, 2000)


@pytest.mark.slow
def test_ten_thousand_mutated_headers_are_refused_or_harmless(tmp_path: Path) -> None:
    check_mutations(tmp_path, 10_000)


def test_what_is_known_of_references_is_kept_and_older_files_have_none(tmp_path: Path) -> None:
    volumes = {"b": ReferenceVolumes(volumes_ml=(3.5, 2.0), cut=1)}
    distances = {"b": (0.01, 0.25)}
    task = make_task(reference_volumes=volumes, token_distances=distances)
    assert task.header.version == "1.3"
    kept = read_task(write_task(tmp_path / "a.task.pt", task)).header
    assert (kept.reference_volumes, kept.token_distances) == (volumes, distances)
    older = make_task()
    header = json.loads(older.header.model_dump_json()) | {"version": "1.1"}
    del header["reference_volumes"], header["token_distances"]
    path = tmp_path / "b.task.pt"
    path.write_bytes(forge(older, json.dumps(header)))
    read = read_task(path)
    assert read.header.reference_volumes == read.header.token_distances == {}
    # What was predicted with it is still known as its: the fingerprint is as it was.
    tokens = [hash_array(array) for array in older.tokens]
    assert read.fingerprint() == hash_json([header, tokens])
    assert task.fingerprint() != older.fingerprint()

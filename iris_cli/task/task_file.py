"""The task file `.task.pt`: what it holds, how it is written, and why reading it is safe.

A task file is a zip that `torch.load(path, weights_only=True)` reads as a dict: `"header"`, a
JSON string (`TaskHeader`), and `"tokens/<stage>"`, one float32 tensor (K, m+1, C) per token stage,
deepest first. The same content always gives the same bytes: entries are stored uncompressed, in one
order, with a fixed time, and the zip comment, the last bytes of the file, is a SHA-256 over all
bytes before it.

Reading never unpickles. The order of checks is: size and digest of the whole file; the zip
directory (names, stored, sizes that fit the file); the header, which must begin where this module
puts it, against its schema; then `data.pkl` must be byte for byte the pickle that this module
writes for that header, and every tensor entry must have exactly the bytes its shape asks for. A
flipped bit fails the digest; a forged file with a right digest can still say nothing but numbers.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import pydantic

from iris_cli.errors import DataRefused, UsageError
from iris_cli.files.hashing import hash_array, hash_json
from iris_cli.files.publish import publish
from iris_cli.files.schema import Record, parse_record

FORMAT = "iris-task"
MAJOR, MINOR = 1, 3
TASK_ENDING = ".task.pt"

_COMMENT = b"iris-task sha256:"
_COMMENT_SIZE = len(_COMMENT) + 64
_ROOT = "archive"
_HEADER_LIMIT = 4 << 20
_ALIGNMENT = 64
_LOCAL_HEADER_SIZE = 30  # of a zip entry, without its name and extra field
_TIME = (1980, 1, 1, 0, 0, 0)
# What zipfile raises on forged directories, beside BadZipFile.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    struct.error,
    ValueError,
    OverflowError,
)
_PICKLE_START = b"\x80\x02}(X\x06\x00\x00\x00headerX"


def _plain_text(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must hold printable characters only")
    return text


# A class name ends up in tables, colour files and headers: no control characters, no novels.
PlainText = Annotated[
    str,
    pydantic.StringConstraints(min_length=1, max_length=200),
    pydantic.AfterValidator(_plain_text),
]
Text = Annotated[str, pydantic.StringConstraints(max_length=2000)]
TokenDistance = Annotated[float, pydantic.Field(ge=0, le=2)]
Sha256 = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ModelRecord(Record):
    """The model whose tokens these are."""

    name: PlainText
    version: PlainText
    fingerprint: PlainText


class TaskClass(Record):
    """One class: its name, the value it gets in label maps, and what its tokens rest on.

    references: how many references have it; crops and voxels: over all of them, on the working
    grid; coverage: part of its voxels that some crop shows. All four are None where the tokens come
    from a memory bank, which knows the number of its episodes alone (`TaskHeader.bank`).
    """

    name: PlainText
    value: int = pydantic.Field(ge=1, le=2**31 - 1)
    references: int | None = pydantic.Field(default=None, ge=1)
    crops: int | None = pydantic.Field(default=None, ge=1)
    voxels: int | None = pydantic.Field(default=None, ge=0)
    coverage: float | None = pydantic.Field(default=None, ge=0, le=1)
    soft: bool = False


class TaskReference(Record):
    """A reference by content only, never by name."""

    image_sha256: Sha256
    labels_sha256: Sha256


class ReferenceVolumes(Record):
    """Volumes (ml) of one class in the references that have it; in `cut` of them it is cut off."""

    volumes_ml: tuple[Annotated[float, pydantic.Field(gt=0)], ...] = ()
    cut: int = pydantic.Field(default=0, ge=0)


class BankSource(Record):
    """An entry of a model's memory bank, `<set>/<class>`, and how many episodes fed it."""

    name: PlainText
    episodes: int = pydantic.Field(ge=1)


class TaskHeader(Record):
    """Everything about a task that is not a tensor.

    modality: `auto` leaves it to the voxels of every query, as profile mass-1 may (task.views).
    groups: indices into `classes`; the classes of one group are decoded together. stages:
    (m + 1, C) of every token tensor. bank: where the tokens come from the memory bank of the model
    instead of references, its entries in the order of the classes (since 1.1). reference_volumes:
    by class name, to compare those of queries with (since 1.2). token_distances: by class name, of
    each reference from the others (`task.likeness`), where there are two or more (since 1.3). A
    newer minor version only adds keys, and only at this level.
    """

    format: Literal["iris-task"] = "iris-task"
    version: str = f"{MAJOR}.{MINOR}"
    model: ModelRecord
    profile: PlainText
    spacing_mm: float = pydantic.Field(gt=0, lt=1e6)
    spacing_reason: Text = ""
    channel: int = pydantic.Field(default=0, ge=0)
    modality: Literal["ct", "other", "auto"]
    classes: tuple[TaskClass, ...] = pydantic.Field(min_length=1)
    groups: tuple[tuple[int, ...], ...] = pydantic.Field(min_length=1)
    stages: tuple[tuple[int, int], ...] = pydantic.Field(min_length=1, max_length=8)
    references: tuple[TaskReference, ...] = ()
    bank: tuple[BankSource, ...] = ()
    warnings: tuple[Text, ...] = ()
    licence: Text | None = None
    expected_quality: dict[str, float] | None = None
    reference_volumes: dict[str, ReferenceVolumes] = pydantic.Field(default_factory=dict)
    token_distances: dict[str, tuple[TokenDistance, ...]] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> TaskHeader:
        names = [entry.name for entry in self.classes]
        values = [entry.value for entry in self.classes]
        if len(set(names)) != len(names):
            raise ValueError("two classes have one name")
        if len(set(values)) != len(values):
            raise ValueError("two classes have one label value")
        grouped = sorted(index for group in self.groups for index in group)
        if grouped != list(range(len(names))) or not all(self.groups):
            raise ValueError("every class must be in exactly one group")
        if not self.bank and any(entry.crops is None for entry in self.classes):
            raise ValueError("a class that comes from no memory bank must say what it rests on")
        if not all(rows >= 1 and width >= 1 for rows, width in self.stages):
            raise ValueError("a token stage has no values")
        return self

    @property
    def names(self) -> dict[int, str]:
        """Label value -> class name."""
        return {entry.value: entry.name for entry in self.classes}


@dataclass(frozen=True)
class Task:
    """A task: its header and its tokens, float32 (K, m+1, C) per stage, deepest stage first."""

    header: TaskHeader
    tokens: tuple[npt.NDArray[np.float32], ...]

    def __post_init__(self) -> None:
        expected = _token_shapes(self.header)
        found = [array.shape for array in self.tokens]
        if found != expected:
            raise ValueError(f"tokens have shapes {found}, the header says {expected}")

    def fingerprint(self) -> str:
        """SHA-256 over header and tokens: two tasks with one fingerprint predict the same."""
        header = self.header.model_dump(mode="json")
        for added in ("reference_volumes", "token_distances"):
            if not header[added]:  # as it was before they were noted
                del header[added]
        return hash_json([header, [hash_array(array) for array in self.tokens]])


def write_task(path: Path, task: Task) -> Path:
    """Publish a task file; it is read again and compared before it gets its name."""
    if not all(bool(np.isfinite(array).all()) for array in task.tokens):
        raise DataRefused("the task tokens are not finite numbers", file=path)
    data = task_bytes(task)

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    def verify(temporary: Path) -> None:
        if read_task(temporary).fingerprint() != task.fingerprint():
            raise AssertionError("a task does not read back as it was written")

    return publish(path, write, verify=verify, needs=len(data))


def read_task(path: Path) -> Task:
    """Read a task file after the checks of the module docstring.

    raises UsageError where there is no such file; DataRefused where it is not a whole, unchanged
    task file of a version this iris reads.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            _check_digest(path, stream, size)
            return _read_checked(path, stream, size)
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(
            "no such task file", file=path, fix="make one with `iris encode-task`"
        ) from None


def task_bytes(task: Task) -> bytes:
    """The file of a task as bytes; equal tasks give equal bytes."""
    header = json.dumps(
        task.header.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, allow_nan=False
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, buffer, "data.pkl", _pickle(header, _token_shapes(task.header)))
        _add(archive, buffer, "byteorder", b"little")
        for stage, array in enumerate(task.tokens):
            _add(archive, buffer, f"data/{stage}", np.ascontiguousarray(array, "<f4").tobytes())
        _add(archive, buffer, "version", b"3\n")
        archive.comment = b" " * _COMMENT_SIZE
    body = buffer.getvalue()[:-_COMMENT_SIZE]
    return body + _COMMENT + hashlib.sha256(body).hexdigest().encode()


def _add(archive: zipfile.ZipFile, buffer: io.BytesIO, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}", _TIME)
    entry.create_system = 3
    # torch maps tensors from the file in place: their bytes must lie on its alignment.
    used = buffer.tell() + _LOCAL_HEADER_SIZE + len(entry.filename) + 4
    padding = -used % _ALIGNMENT
    entry.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
    archive.writestr(entry, data)


def _token_shapes(header: TaskHeader) -> list[tuple[int, ...]]:
    return [(len(header.classes), rows, width) for rows, width in header.stages]


def _pickle(header: str, shapes: Sequence[tuple[int, ...]]) -> bytes:
    """The pickle (protocol 2) of {"header": header, "tokens/<i>": float32 tensor}.

    Written opcode by opcode, so that there is exactly one right pickle for a header: torch's own
    writer changes between versions. The opcodes are those `weights_only=True` accepts.
    """
    parts = [b"\x80\x02}(", _text("header"), _text(header)]
    for stage, shape in enumerate(shapes):
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        storage = (
            b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(stage)) + _text("cpu")
        )
        parts += [_text(f"tokens/{stage}"), b"ctorch._utils\n_rebuild_tensor_v2\n("]
        parts += [storage, _integer(math.prod(shape)), b"tQ", _integer(0)]
        parts += [b"(", *map(_integer, shape), b"t(", *map(_integer, strides), b"t\x89"]
        parts += [b"ccollections\nOrderedDict\n)RtR"]
    return b"".join(parts) + b"u."


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _refuse(path: Path, found: str) -> NoReturn:
    raise DataRefused(
        "not a whole, unchanged iris task",
        file=path,
        found=found,
        expected="a .task.pt file as `iris encode-task` writes it",
        fix="copy the file again or encode the task again",
    )


def _check_digest(path: Path, stream: BinaryIO, size: int) -> None:
    if size <= _COMMENT_SIZE:
        _refuse(path, f"{size} bytes")
    stream.seek(size - _COMMENT_SIZE)
    comment = stream.read(_COMMENT_SIZE)
    if not comment.startswith(_COMMENT):
        _refuse(path, "no digest at its end")
    stream.seek(0)
    digest, left = hashlib.sha256(), size - _COMMENT_SIZE
    while left > 0 and (block := stream.read(min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    if left or digest.hexdigest().encode() != comment[len(_COMMENT) :]:
        _refuse(path, "its bytes do not match the digest at its end")


def _read_checked(path: Path, stream: BinaryIO, size: int) -> Task:
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = _scan(path, archive, size)
            pickled = archive.read(entries["data.pkl"])
            text = _header_text(path, pickled)
            header = _header(path, text)
            shapes = _token_shapes(header)
            stored = sum(math.prod(shape) * 4 for shape in shapes)
            if stored > size or pickled != _pickle(text, shapes):
                _refuse(path, "tensors that its header does not describe")
            tokens = tuple(
                _tensor(path, archive, entries, stage, shape) for stage, shape in enumerate(shapes)
            )
    except _ZIP_ERRORS as error:
        if isinstance(error, DataRefused):
            raise
        _refuse(path, f"a broken zip: {error}"[:200])
    return Task(header, tokens)


def _scan(path: Path, archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The entries by name below the root, after everything about them was checked."""
    entries: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in archive.infolist():
        root, _, name = info.filename.partition("/")
        known = name in ("data.pkl", "byteorder", "version") or (
            name.startswith("data/") and name[5:].isascii() and name[5:].isdigit()
        )
        if root != _ROOT or not known or name in entries:
            _refuse(path, f"an entry {info.filename!r:.80}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ~0x800:
            _refuse(path, f"a packed or encrypted entry {info.filename!r:.80}")
        total += info.file_size
        inside = 0 <= info.header_offset <= size - info.file_size
        if info.file_size != info.compress_size or not inside or total > size:
            _refuse(path, f"an entry {info.filename!r:.80} larger than the file")
        entries[name] = info
    if "data.pkl" not in entries or "byteorder" not in entries:
        _refuse(path, "no data.pkl or byteorder entry")
    if entries["data.pkl"].file_size > _HEADER_LIMIT:
        _refuse(path, f"a header of {entries['data.pkl'].file_size} bytes")
    if archive.read(entries["byteorder"]) != b"little":
        _refuse(path, "a byte order other than little")
    return entries


def _header_text(path: Path, pickled: bytes) -> str:
    first = len(_PICKLE_START) + 4
    if not pickled.startswith(_PICKLE_START) or len(pickled) < first:
        _refuse(path, "a data.pkl that iris did not write")
    (length,) = struct.unpack("<I", pickled[first - 4 : first])
    return pickled[first : first + length].decode()


def _header(path: Path, text: str) -> TaskHeader:
    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} in the header")

    try:
        value = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"a header that is not JSON: {error}"[:200])
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        _refuse(path, "a header of another format")
    major, minor = _version(path, value.get("version"))
    if major != MAJOR:
        raise DataRefused(
            f"the task format {major}.{minor} is newer than this iris reads",
            file=path,
            found=f"{FORMAT} {major}.{minor}",
            expected=f"{FORMAT} {MAJOR}.x",
            fix="update iris, or encode the task again with this version",
        )
    if minor > MINOR:
        # A newer minor version only adds keys that an older reader may leave out.
        value = {key: item for key, item in value.items() if key in TaskHeader.model_fields}
    try:
        return parse_record(value, TaskHeader, file=path)
    except RecursionError:
        _refuse(path, "a header nested too deeply")


def _version(path: Path, version: Any) -> tuple[int, int]:
    parts = version.split(".") if isinstance(version, str) else []
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        _refuse(path, f"a format version {version!r:.40}")
    if any(len(part) > 4 for part in parts) or int(parts[0]) < 1:
        _refuse(path, f"a format version {version!r:.40}")
    return int(parts[0]), int(parts[1])


def _tensor(
    path: Path,
    archive: zipfile.ZipFile,
    entries: dict[str, zipfile.ZipInfo],
    stage: int,
    shape: tuple[int, ...],
) -> npt.NDArray[np.float32]:
    entry = entries.get(f"data/{stage}")
    expected = math.prod(shape) * 4
    if entry is None or entry.file_size != expected:
        _refuse(path, f"tokens/{stage} without its {expected} bytes")
    array = np.frombuffer(archive.read(entry), dtype="<f4").reshape(shape).astype(np.float32)
    if not np.isfinite(array).all():
        _refuse(path, f"numbers in tokens/{stage} that are not finite")
    return array

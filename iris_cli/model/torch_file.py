"""Reading a torch file of unknown origin: everything about it is checked before it is loaded.

A torch file is a zip of stored entries: `data.pkl`, a pickle, and the bytes of each storage. Here
the zip's directory must add up within the file, every checksum must hold (torch looks at none),
and the pickle may hold nothing but tensors, containers, words and numbers. Only then
`torch.load(weights_only=True)` reads it, with its storages mapped from the disk: what is allocated
is bounded by the file's size.
"""

from __future__ import annotations

import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import Any, NoReturn

import torch

from iris_cli.errors import DataRefused, UsageError

_ENTRIES = ("data.pkl", "byteorder", "version", ".format_version", ".storage_alignment")
_ENTRIES_BELOW = ("data/", ".data/")
# Of an entry: name in UTF-8, sizes that follow the data. Not: encrypted.
_FLAGS = 0x808
_PICKLE_LIMIT = 2 << 20
_CALLS_LIMIT = 20_000
_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, zlib.error)
_OPCODES = frozenset(
    {
        *("PROTO", "STOP", "MARK", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID"),
        *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "NONE", "NEWFALSE", "NEWTRUE"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
        *("BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"),
    }
)
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_ENCODE = "_codecs encode"
# Numbers that training noted as numpy scalars; their values are of no interest here.
_NUMPY = ("numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray scalar")
_GLOBALS = frozenset(
    [
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch Size",
        *(f"torch {kind}Storage" for kind in _STORAGES),
        _ENCODE,
        *_NUMPY,
    ]
)
# How torch's allocator says, in a RuntimeError, that there is no memory.
_NO_MEMORY = "allocate memory"


class _Unread:
    """Takes the place of a numpy scalar and of its type, so that none is built."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read_torch_file(path: Path) -> Any:
    """The object in a torch file; its tensors are mapped from the disk.

    raises UsageError where there is no such file, DataRefused where it is no torch file, is
    damaged, or holds anything but tensors, containers, words and numbers.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entry = _scan(path, archive, size)
            damaged = archive.testzip()
            if damaged is not None:
                refuse(path, f"its entry {damaged!r:.80} is damaged", "copy or download it again")
            pickled = archive.read(entry)
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError("no such file", file=path, fix="check the path") from None
    except _ZIP_ERRORS as error:
        if isinstance(error, DataRefused):
            raise
        refuse(path, f"no whole zip: {error}"[:200], "copy or download it again")
    _check_pickle(path, pickled, size)
    return _load(path)


def refuse(path: Path, found: str, fix: str | None = None) -> NoReturn:
    """Raise DataRefused for a file that is no set of weights."""
    raise DataRefused(
        "not a file of weights that iris can read",
        file=path,
        found=found,
        expected="a file of `torch.save` with tensors, containers, words and numbers only",
        fix=fix or "keep the weights alone: torch.save({'model': state_dict}, 'weights.pth')",
    )


def _scan(path: Path, archive: zipfile.ZipFile, size: int) -> zipfile.ZipInfo:
    """The entry of the pickle, after the directory was checked as a whole."""
    if archive.comment:
        # torch and zipfile must find one and the same directory.
        refuse(
            path,
            "a zip with a comment, as checkpoints of iris are",
            "of a run of iris, import its model/ folder",
        )
    roots, names, total = set(), set(), 0
    pickled = None
    for info in archive.infolist():
        root, _, name = info.filename.partition("/")
        if name in names or not (name in _ENTRIES or name.startswith(_ENTRIES_BELOW)):
            refuse(path, f"an entry {info.filename!r:.80}")
        total += info.file_size
        inside = 0 <= info.header_offset <= size - info.file_size
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ~_FLAGS:
            refuse(path, f"a packed or encrypted entry {info.filename!r:.80}")
        if info.file_size != info.compress_size or not inside or total > size:
            refuse(path, f"an entry {info.filename!r:.80} larger than the file")
        if name == "byteorder" and archive.read(info) != b"little":
            refuse(path, "a byte order other than little")
        if name == "data.pkl":
            pickled = info
        roots.add(root)
        names.add(name)
    if pickled is None or len(roots) != 1:
        refuse(path, "a zip without data.pkl")
    if pickled.file_size > _PICKLE_LIMIT:
        refuse(path, f"a pickle of {pickled.file_size} bytes")
    return pickled


def _check_pickle(path: Path, pickled: bytes, size: int) -> None:
    """Refuse what could run code, or build more than the file holds."""
    calls, longest, encodes = 0, 0, False
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name not in _OPCODES:
                refuse(path, f"a pickle with {opcode.name}")
            if opcode.name == "GLOBAL":
                if argument not in _GLOBALS:
                    refuse(path, f"a pickle that asks for {str(argument).replace(' ', '.')!r:.100}")
                encodes |= argument == _ENCODE
            calls += opcode.name in ("REDUCE", "NEWOBJ")
            if isinstance(argument, str | bytes):
                longest = max(longest, len(argument))
    except ValueError as error:
        if isinstance(error, DataRefused):
            raise
        refuse(path, f"a broken pickle: {error}"[:200], "copy or download it again")
    if calls > _CALLS_LIMIT or (encodes and calls * longest > size):
        refuse(path, f"a pickle of {calls} objects")


def _load(path: Path) -> Any:
    unread: list[Any] = [(_Unread, name.replace(" ", ".")) for name in _NUMPY]
    try:
        with torch.serialization.safe_globals(unread):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # torch raises a dozen kinds
        if _NO_MEMORY in str(error):
            raise MemoryError(str(error)) from error
        first = (str(error) or type(error).__name__).splitlines()[0]
        refuse(path, f"a pickle that cannot be loaded: {first}"[:200])

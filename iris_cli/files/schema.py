"""JSON files as typed values: everything is checked once, on reading, and the file is named."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, TypeVar, get_args

import pydantic

from iris_cli.errors import DataRefused, EnvironmentProblem, IrisError, UsageError


class Record(pydantic.BaseModel):
    """Base of every value that is read from or written to a file: frozen, no unknown keys.

    What checks a kind of record is built at its first use: no command uses half of them.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True
    )


RecordType = TypeVar("RecordType", bound=pydantic.BaseModel)


def read_json(path: Path) -> Any:
    """Read a JSON file, with or without byte order mark.

    raises UsageError where there is no such file, EnvironmentProblem where it cannot be read, and
    DataRefused, with the line, where it is not JSON.
    """
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of endless digits
        if isinstance(error, IrisError):
            raise
        raise DataRefused(
            "not valid JSON", file=path, found=str(error), fix="correct the file"
        ) from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError("no such file", file=path, fix="check the path") from None
    except IsADirectoryError:
        raise UsageError(
            "a folder where a JSON file belongs", file=path, fix="give the file itself"
        ) from None
    except UnicodeDecodeError as error:
        raise DataRefused(
            "not a text file", file=path, found=str(error), fix="save it as UTF-8"
        ) from None
    except OSError as error:
        raise EnvironmentProblem(
            "the file cannot be read",
            file=path,
            found=error.strerror or str(error),
            fix="make it readable for your user, or check the disk it lies on",
        ) from error


def read_record(path: Path, kind: type[RecordType]) -> RecordType:
    """Read a JSON file as a record of the given kind.

    raises UsageError where the file does not exist and DataRefused where its content is not
    what `kind` declares; every wrong key is listed, unknown ones with the nearest known name.
    """
    return parse_record(read_json(path), kind, file=path)


def parse_record(
    value: object, kind: type[RecordType], *, file: Path | str | None = None
) -> RecordType:
    """Check a JSON value against a record; raises DataRefused listing every wrong key."""
    try:
        return kind.model_validate_json(json.dumps(value))
    except pydantic.ValidationError as error:
        findings = [_finding(kind, item) for item in error.errors(include_url=False)]
        raise DataRefused(
            f"not a valid {kind.__name__}: {findings[0]}",
            file=file,
            found="; ".join(findings),
            fix="correct the keys named above",
        ) from None


def nearest(name: str, known: list[str]) -> str | None:
    """The known name a mistyped one most likely means, or None."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return matches[0] if matches else None


def _finding(kind: type[pydantic.BaseModel], item: Any) -> str:
    location = item["loc"]
    where = ".".join(str(part) for part in location) or "the file"
    if item["type"] != "extra_forbidden":
        return f"{where}: {item['msg']} (found {item['input']!r:.80})"
    guess = nearest(str(location[-1]), _known_keys(kind, location[:-1]))
    hint = f", did you mean {guess!r}?" if guess else ""
    return f"unknown key {where!r}{hint}"


def _known_keys(kind: Any, location: tuple[str | int, ...]) -> list[str]:
    """Field names of the record at `location` below `kind` (best effort, for hints only)."""
    for part in location:
        fields = getattr(kind, "model_fields", {})
        if part in fields:
            kind = fields[str(part)].annotation
        kind = _innermost_record(kind)
    return list(getattr(kind, "model_fields", {}))


def _innermost_record(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _innermost_record(argument)
        if isinstance(found, type) and issubclass(found, pydantic.BaseModel):
            return found
    return annotation

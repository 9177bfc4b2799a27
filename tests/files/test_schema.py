"""Wrong JSON is refused with the file, every wrong key, and the nearest right one."""

from __future__ import annotations

import errno
from pathlib import Path

import pydantic
import pytest

from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError
from iris_cli.files.schema import Record, read_json, read_record


class _Inner(Record):
    steps: int = 1


class _Outer(Record):
    training: _Inner
    sets: dict[str, _Inner] = pydantic.Field(default_factory=dict)


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_right_file_becomes_a_value(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.json", '{"training": {"steps": 5}}')
    assert read_record(path, _Outer) == _Outer(training=_Inner(steps=5))


def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.json", '{"training": {"stesp": 5}, "sets": {"a": {"stps": 1}}}')
    with pytest.raises(DataRefused) as caught:
        read_record(path, _Outer)
    message = str(caught.value)
    assert "training.stesp" in message
    assert "sets.a.stps" in message
    assert message.count("'steps'") >= 2
    assert str(path) in message


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, '{"training": 3}', '{"training": {"steps": "x"}}']
)
def test_broken_files_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataRefused) as caught:
        read_record(_write(tmp_path / "p.json", text), _Outer)
    assert "p.json" in str(caught.value)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_record(tmp_path / "p.json", _Outer)


def test_a_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "p.json") == {}


def test_what_is_no_readable_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "p.json", "{}")
    with pytest.raises(UsageError, match="a folder"):
        read_json(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        read_json(path / "below.json")

    def forbidden(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", forbidden)  # chmod does not stop root
    with pytest.raises(EnvironmentProblem, match="cannot be read") as caught:
        read_json(path)
    assert caught.value.file == str(path)


def test_a_number_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.json", "1" * 5000)
    with pytest.raises(DataRefused, match="not valid JSON"):
        read_json(path)

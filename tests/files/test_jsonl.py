"""Logs of one JSON object per line."""

from __future__ import annotations

from pathlib import Path

from iris_cli.files.jsonl import read_json_lines


def test_half_lines_and_other_values_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n[2]\n\n{"name": "\xff"}\n{"step": 3, "lo')
    assert read_json_lines(path) == [{"step": 1}, {"name": "\ufffd"}]

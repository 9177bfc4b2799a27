"""The registry: converters by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_conversion.registry import CONVERTERS, convert, find_converter
from iris_cli.errors import UsageError
from tests.dataset_conversion.test_info_json import source_set


def test_every_converter_has_its_name_and_a_summary() -> None:
    for name, converter in CONVERTERS.items():
        assert converter.name == name
        assert converter.summary


def test_a_converter_runs_by_name(tmp_path: Path) -> None:
    done = convert("info_json", source_set(tmp_path / "set"), tmp_path / "raw")
    assert done.folders == (tmp_path / "raw",)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="no converter 'msdd'") as caught:
        find_converter("msdd")
    assert "did you mean 'msd'?" in str(caught.value)

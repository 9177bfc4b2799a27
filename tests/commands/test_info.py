"""`iris info` and `iris doctor`: empty tables, and the switches that every command has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.conftest import Iris


@pytest.fixture
def only_background(tmp_path: Path) -> Path:
    """A raw folder whose labels name nothing but the background."""
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0},
                "numTraining": 0,
                "file_ending": ".nii.gz",
            }
        )
    )
    return tmp_path


def test_a_set_without_classes_is_described(iris: Iris, only_background: Path) -> None:
    ran = iris("info", only_background)
    assert ran.code == 0, ran.err
    assert "classes: none" in ran.out


def test_info_says_more_with_verbose(iris: Iris, only_background: Path) -> None:
    assert "licence" not in iris("info", only_background, "-q").out
    assert "licence" in iris("info", only_background, "-v").out


def test_doctor_takes_verbose_and_quiet(iris: Iris) -> None:
    quiet, verbose = iris("doctor", "-q"), iris("doctor", "-v")
    assert quiet.err == ""
    assert str(Path.cwd()) in verbose.err


@pytest.mark.parametrize("command", ["info", "encode-task", "evaluate", "predict"])
def test_volumes_without_position_are_accepted_everywhere(iris: Iris, command: str) -> None:
    assert "--assume-spacing" in iris(command, "--help").out

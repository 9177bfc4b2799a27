"""What a run says of its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from iris_cli.errors import DataRefused, Stopped, UsageError
from iris_cli.training.ending import noted_end, read_end


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ZeroDivisionError("x"), 1),
        (UsageError("x"), 2),
        (DataRefused("x"), 4),
        (MemoryError("x"), 5),
        (Stopped("x"), 75),
        (KeyboardInterrupt("x"), 130),
    ],
)
def test_the_note_holds_the_exit_code_of_every_error(
    tmp_path: Path, error: BaseException, code: int
) -> None:
    with pytest.raises(type(error)), noted_end(tmp_path):
        raise error
    assert read_end(tmp_path)["exit_code"] == code
    assert "x" in read_end(tmp_path)["problem"]


def test_a_run_that_goes_on_has_no_note(tmp_path: Path) -> None:
    with pytest.raises(UsageError), noted_end(tmp_path):
        raise UsageError("x")
    with noted_end(tmp_path):
        assert read_end(tmp_path) == {}
    assert read_end(tmp_path) == {}

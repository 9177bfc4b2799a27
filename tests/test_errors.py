"""Errors keep their four parts, across processes too, and map to the documented exit codes."""

from __future__ import annotations

import pickle

import pytest

from iris_cli import errors

_EXIT_CODES = {
    "IrisError": 1,
    "UsageError": 2,
    "SomeCasesFailed": 3,
    "DataRefused": 4,
    "EnvironmentProblem": 5,
    "Diverged": 6,
    "Stopped": 75,
    "Interrupted": 130,
}


def _all_errors() -> dict[str, type[errors.IrisError]]:
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    return {kind.__name__: kind for kind in kinds if issubclass(kind, errors.IrisError)}


def test_exit_codes_are_the_documented_ones() -> None:
    assert {name: kind.exit_code for name, kind in _all_errors().items()} == _EXIT_CODES


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__ is not None
    for name, code in _EXIT_CODES.items():
        line = next(line for line in errors.__doc__.splitlines() if name in line)
        assert str(code) in line


@pytest.mark.parametrize("name", sorted(_EXIT_CODES))
def test_an_error_crosses_process_borders_whole(name: str) -> None:
    error = _all_errors()[name]("broken", file="a.nii", found=(1, 2), expected=3, fix="mend it")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.to_json() == error.to_json()
    assert str(copy) == str(error)


def test_a_message_names_file_found_expected_and_fix() -> None:
    text = str(errors.DataRefused("bad", file="a.nii", found=1, expected=2, fix="mend it"))
    assert [line.split()[0] for line in text.splitlines()] == [
        "bad", "file", "found", "expected", "fix",
    ]  # fmt: skip

"""Help is quick, every command shows an example, and the reference page is up to date."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.conftest import Iris

_ROOT = Path(__file__).resolve().parents[2]
_COMMANDS = (
    ("demo",), ("plan",), ("preprocess",), ("train",), ("status",), ("encode-task",), ("predict",),
    ("evaluate",), ("info",), ("doctor",), ("convert", "list"), ("convert", "pairs"),
    ("convert", "NAME"),
    ("model", "list"), ("model", "info"), ("model", "use"), ("model", "import"),
    ("model", "export"), ("model", "download"),
    ("task", "merge"), ("task", "split"), ("task", "rename"),
)  # fmt: skip


@pytest.mark.parametrize("command", _COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(iris: Iris, command: tuple[str, ...]) -> None:
    ran = iris(*command, "--help")
    assert ran.code == 0
    assert f"Example: iris {' '.join(command)}" in ran.out


def test_the_list_above_is_complete(iris: Iris) -> None:
    sys.path.insert(0, str(_ROOT / "docs"))
    try:
        from generate_cli_reference import command_names
    finally:
        sys.path.pop(0)
    assert sorted(command_names()) == sorted(_COMMANDS)


def test_the_reference_page_is_what_the_commands_say() -> None:
    sys.path.insert(0, str(_ROOT / "docs"))
    try:
        from generate_cli_reference import reference
    finally:
        sys.path.pop(0)
    page = (_ROOT / "docs" / "cli-reference.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python docs/generate_cli_reference.py"


def test_the_reference_page_shows_names_whole_and_defaults_of_zero() -> None:
    page = (_ROOT / "docs" / "cli-reference.md").read_text(encoding="utf-8")
    assert "| `[NAME=VALUE]...` |" in page
    assert "`NAME=VALUE]...`" not in page
    assert "| `--workers`, `-j` | `0` |" in page
    assert "| `--json` |  |" in page


def test_help_takes_less_than_half_a_second_and_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['iris', '--help']\n"
        "from iris_cli.commands.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'SimpleITK', 'nibabel', 'matplotlib', 'scipy', 'pandas'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=_ROOT
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert ran.returncode == 0, ran.stderr
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5

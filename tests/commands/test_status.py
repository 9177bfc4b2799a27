"""`iris status` for people, for programs and for scripts."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from iris_cli.execution.announced import Announced, announce
from iris_cli.execution.claims import Claims
from iris_cli.execution.receipts import Receipt, write_receipt
from tests.commands.conftest import Iris


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Predictions of two cases, one done and one failed."""
    inputs = {
        "query": "q",
        "assumed_spacing_xyz": None,
        "task": "t",
        "parameters": {"precision": "fp32"},
    }
    write_receipt(tmp_path / ".iris" / "a.json", Receipt(case="a", content={"inputs": inputs}))
    (tmp_path / "a.nii.gz").touch()
    failed = tmp_path / ".iris" / "failed" / "b.json"
    failed.parent.mkdir()
    failed.write_text(json.dumps({"problem": "the image ends early", "fix": "copy it again"}))
    return tmp_path


def test_failed_cases_are_named_with_their_reasons(iris: Iris, output: Path) -> None:
    ran = iris("status", output)
    assert ran.code == 0
    assert "1 done, 1 failed" in ran.out
    assert "failed: b: the image ends early" in ran.out
    assert "copy it again" in ran.out
    assert "next: run the same line of iris predict again" in ran.out


def test_a_file_that_was_refused_has_to_be_corrected_first(iris: Iris, output: Path) -> None:
    note = {"problem": "the image ends early", "exit_code": 4}
    (output / ".iris" / "failed" / "b.json").write_text(json.dumps(note))
    assert "next: correct the files named above" in iris("status", output).out


def test_cases_in_work_are_named_with_host_and_age(iris: Iris, output: Path) -> None:
    announce(
        output / ".iris" / "cases",
        Announced(
            inputs={"task": "t", "parameters": {}},
            cases={case: f"/in/{case}.nii.gz" for case in "abcd"},
        ),
    )
    with Claims(output / ".iris" / "claims") as claims:
        claims.take("c")
        ran = iris("status", output)
    assert "1 done, 1 failed, 1 in work, 1 waiting" in ran.out
    assert f"in work: c: process {os.getpid()} on {socket.gethostname()}, for 0 s" in ran.out


def test_the_exit_code_is_for_scripts_that_ask(iris: Iris, output: Path) -> None:
    ran = iris("status", output, "--exit-code", "--json")
    assert ran.code == 3
    found = json.loads(ran.out)
    assert (found["done"], found["exit_code"]) == (["a"], 3)


def test_a_folder_of_something_else_is_refused(iris: Iris, tmp_path: Path) -> None:
    ran = iris("status", tmp_path)
    assert ran.code == 2
    assert "neither a run nor a folder of predictions" in ran.err

"""Receipts: written, read back, matched by their inputs only."""

from __future__ import annotations

from pathlib import Path

import pytest

from iris_cli.execution.receipts import Receipt, matches, read_receipt, write_receipt

INPUTS = {"image": "abc", "parameters": {"spacing_mm": 1.5, "classes": ["a", "b"]}}


def receipt() -> Receipt:
    return Receipt(
        case="case_1",
        content={"inputs": INPUTS, "output": "def"},
        run={"seconds": 1.25, "host": "here"},
    )


def test_a_receipt_is_read_back(tmp_path: Path) -> None:
    path = write_receipt(tmp_path / ".iris/case_1.json", receipt())
    assert read_receipt(path) == receipt()


def test_a_receipt_matches_its_inputs_in_any_order_of_keys() -> None:
    again = {"parameters": {"classes": ["a", "b"], "spacing_mm": 1.5}, "image": "abc"}
    assert matches(receipt(), again)


@pytest.mark.parametrize(
    "inputs",
    [
        {"image": "abd", "parameters": INPUTS["parameters"]},
        {"image": "abc"},
        {**INPUTS, "more": None},
        {},
    ],
)
def test_other_inputs_do_not_match(inputs: dict[str, object]) -> None:
    assert not matches(receipt(), inputs)


def test_no_receipt_and_one_without_inputs_match_nothing() -> None:
    assert not matches(None, {})
    assert not matches(Receipt(case="a", content={}), {})


def test_the_run_section_has_no_part_in_the_content_hash() -> None:
    other = receipt().model_copy(update={"run": {"seconds": 9}})
    assert other.content_hash() == receipt().content_hash()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"case": "a"}', '{"case": 1, "x": 2}', "\x00"])
def test_an_unreadable_receipt_proves_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert read_receipt(path) is None


def test_an_absent_receipt_is_none(tmp_path: Path) -> None:
    assert read_receipt(tmp_path / "a.json") is None
    (tmp_path / "folder.json").mkdir()
    assert read_receipt(tmp_path / "folder.json") is None

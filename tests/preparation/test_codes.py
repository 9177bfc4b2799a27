"""The words of findings: each has its rule, its line in the docs, and a way in by --accept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from iris_cli.errors import UsageError
from iris_cli.preparation.codes import RULES, Code, Verdict, read_codes

_DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_code_has_a_rule_in_the_order_of_the_docs() -> None:
    assert list(RULES) == list(Code)
    assert all(rule.meaning[-1] in ".?" and rule.todo for rule in RULES.values())


def test_the_page_lists_what_the_program_knows() -> None:
    sys.path.insert(0, str(_DOCS))
    try:
        from generate_data_checks import NNUNET, PAGE, page
    finally:
        sys.path.pop(0)
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python docs/generate_data_checks.py"
    assert set(NNUNET) <= set(Code)


def test_codes_are_read_by_their_words() -> None:
    assert read_codes([]) == frozenset()
    assert read_codes(["sides-swapped", "nan"]) == {Code.SIDES_SWAPPED, Code.NAN}


@pytest.mark.parametrize(
    ("word", "says"), [("side-swaped", "did you mean 'sides-swapped'"), ("x", "data-checks.md")]
)
def test_an_unknown_word_is_refused_with_the_nearest(word: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_codes([word])


@pytest.mark.parametrize("code", [c for c, r in RULES.items() if r.verdict is Verdict.IMPOSSIBLE])
def test_what_iris_cannot_work_with_cannot_be_accepted(code: Code) -> None:
    with pytest.raises(UsageError, match="cannot be accepted"):
        read_codes([code.value])

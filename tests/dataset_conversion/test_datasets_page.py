"""The page of data sets is what the converters say."""

from __future__ import annotations

import sys
from pathlib import Path

_DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_what_the_converters_say() -> None:
    sys.path.insert(0, str(_DOCS))
    try:
        from generate_datasets import PAGE, page
    finally:
        sys.path.pop(0)
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "run: python docs/generate_datasets.py"

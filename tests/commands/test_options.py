from __future__ import annotations

import pytest

from iris_cli.commands._options import parse_bytes
from iris_cli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8G", 8 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5t", 15 * 10**11),
        ("1000", 1000),
        ("2 GiB", 2**31),
    ],
)
def test_sizes_are_numbers_with_a_unit(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "eight", "-1G", "0", "nan", "inf", "8X"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no size of memory"):
        parse_bytes(text)

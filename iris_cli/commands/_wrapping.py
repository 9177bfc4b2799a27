"""Text for people, at most 80 columns wide where it can be."""

from __future__ import annotations

import textwrap

WIDTH = 80


def entry(key: str, text: str, *, indent: int = 2) -> list[str]:
    """`key: text` as lines."""
    return wrapped(f"{key}: {text}", indent=indent)


def wrapped(text: str, *, indent: int) -> list[str]:
    """Lines of a text; long words (paths) stay whole, so that they can be copied."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )

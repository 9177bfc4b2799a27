"""Fixtures shared by all rooms."""

from __future__ import annotations

from pathlib import Path

import pytest

_SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that ask for it are marked `real`."""
    folder = _SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real data are not here: {folder} does not exist")
    return folder

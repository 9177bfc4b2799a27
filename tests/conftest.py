"""Fixtures shared by all rooms."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: results are equal bytes for one number of threads only, and on shared
# machines threads that spin while they wait cost many times their work.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
# The models and the default that whoever runs the tests has registered are no part of them.
os.environ["XDG_DATA_HOME"] = str(Path(__file__).parent / "no-data-home")

import pytest
from hypothesis import settings

# What lands must not depend on luck: there the same examples are drawn each time, elsewhere new
# ones, which are printed as a line to add to the test.
settings.register_profile("landing", derandomize=True, print_blob=True, deadline=None)
settings.register_profile("default", print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

_SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that ask for it are marked `real`."""
    folder = _SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real data are not here: {folder} does not exist")
    return folder

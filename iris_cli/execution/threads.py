"""Threads: how many compute, and what they do while they wait.

OpenMP threads spin while they wait for each other. On a shared machine two spinning threads cost
10 to 50 times the work they do (RELIABILITY.md, Threads), and the libraries read their settings
once, when they are loaded. So these variables are set before torch and NumPy are imported.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
_COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLOSC_NTHREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


def settings(threads: int | None) -> dict[str, str]:
    """The environment variables for `threads` computing threads (None: as many as there are)."""
    counts = {} if threads is None else dict.fromkeys(_COUNTS, str(threads))
    return {**_PASSIVE, **counts}


def configure(
    threads: int | None = None, environment: MutableMapping[str, str] | None = None
) -> dict[str, str]:
    """Set passive waiting and, where given, the number of threads; returns what was set.

    Call it before torch or NumPy are imported. A variable that the user has set is left alone
    unless `threads` is given, which is the user's word too and the later one.
    """
    target = os.environ if environment is None else environment
    wanted = {
        name: value
        for name, value in settings(threads).items()
        if name in _COUNTS or name not in target
    }
    target.update(wanted)
    return wanted


def limit_torch(threads: int) -> None:
    """Limit torch in this process to `threads` computing threads (torch is imported here)."""
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        # Fails where parallel work has started; then the pool exists and the limit is moot.
        try:
            torch.set_num_interop_threads(1)
        except RuntimeError:
            return

"""How much memory preprocessing a case will take: from the headers of its files, before it runs.

Label map and channels are native in memory one at a time, and what is made of them is made in
slabs, so a case takes what its largest file takes at its worst moment, and its working arrays.
`benchmarks/preprocess_memory.py` holds the figures against real runs.
"""

from __future__ import annotations

import math

from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError
from iris_cli.preparation.preprocess import GUESS, PreprocessPayload
from iris_cli.preparation.profiles import is_counted
from iris_cli.volume.reading import VolumeClaim, read_claim, smallest_label_type

# Python with NumPy and blosc2, before any voxel.
PROCESS_BYTES = 80_000_000
# Slabs in work, their blocks for the store, and what malloc keeps of both.
SLAB_BYTES = 65_000_000
IMAGE_BYTES = 2  # float16
# Percentiles of values that are too many to count are found in a copy of them, with a mask.
STATISTICS_COPIES = 1.1
# Grids that are turned against each other are worked as a whole, in float32, with two copies.
TURNED_BYTES = 12
# CPU seconds of a case however small, and of what it holds beyond a small one (2 cores, 2026).
CASE_S = 0.015
S_PER_BYTE = 1e-8


def predicted_bytes(payload: PreprocessPayload) -> int | None:
    """As `case_bytes`; None where a header cannot be read: working on the case will say why."""
    try:
        return case_bytes(payload)
    except (DataRefused, UsageError, EnvironmentProblem):
        return None


def predicted_seconds(needs_bytes: int | None) -> float:
    """About how long one process works on a case, from `predicted_bytes`: right within a half."""
    return CASE_S + S_PER_BYTE * max(0, (needs_bytes or 0) - PROCESS_BYTES - SLAB_BYTES)


def case_bytes(payload: PreprocessPayload) -> int:
    """Peak memory (bytes) of one process that preprocesses this case.

    raises what reading a header raises: UsageError for a missing file, DataRefused for others.
    """
    claims = [read_claim(path) for path in payload.images]
    grid = claims[0].native.canonical_grid
    working = math.prod(grid.working(payload.spacing_mm).shape_zyx)
    label_bytes = 0
    peaks = []
    if payload.label is not None:
        each = _label_itemsize(payload)
        label_bytes = each * working
        peaks.append(_label_peak(read_claim(payload.label), each) + label_bytes)
    for claim, modality in zip(claims, payload.modalities, strict=True):
        peaks.append(_image_peak(claim, modality, IMAGE_BYTES * working) + label_bytes)
    return PROCESS_BYTES + round(max(peaks))


def _label_itemsize(payload: PreprocessPayload) -> int:
    values = [0, *(value for values in payload.classes.values() for value in values)]
    values += [] if payload.ignore_value is None else [payload.ignore_value]
    return smallest_label_type(min(values), max(values)).itemsize


def _label_peak(claim: VolumeClaim, each: int) -> float:
    """each: bytes a voxel of the smallest type that holds the values."""
    stored = claim.value_type.itemsize
    if claim.value_type.kind == "f":  # rounded, and the rounding is looked at
        reading = 4 * stored + 1
    else:
        reading = stored + (each if claim.value_type.itemsize != each else 0)
    turning = stored + 2 * each if _is_turned(claim) else 0
    resampling = each * _voxels(claim) + SLAB_BYTES
    return max(_voxels(claim) * max(reading, turning), resampling)


def _image_peak(claim: VolumeClaim, modality: str, working_bytes: int) -> float:
    stored, each, voxels = claim.stored_type, claim.value_type.itemsize, _voxels(claim)
    scaled = stored.newbyteorder("=") != claim.value_type
    reading = each + (stored.itemsize if scaled else 0)
    turning = 2 * each if _is_turned(claim) else 0
    is_copied = modality == GUESS or (modality != "ct" and not is_counted(claim.value_type))
    copies = STATISTICS_COPIES if is_copied else 0.0
    is_finite = 1 if claim.value_type.kind == "f" else 0
    statistics = each * (1 + copies) + is_finite
    resampling = voxels * each + SLAB_BYTES + working_bytes
    if not claim.native.grid.is_orthonormal:
        resampling += TURNED_BYTES * voxels
    return max(voxels * max(reading, turning, statistics), resampling)


def _is_turned(claim: VolumeClaim) -> bool:
    """Whether the canonical array is a copy of the stored one."""
    return not claim.native.orientation.is_identity


def _voxels(claim: VolumeClaim) -> int:
    return math.prod(claim.native.grid.shape_zyx)

"""What the voxels of an image say about themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.errors import DataRefused
from iris_cli.preparation.codes import Code
from iris_cli.preparation.findings import Finding
from iris_cli.preparation.integrity.geometry import check_ct_extent
from iris_cli.preparation.integrity.payload import CasePayload
from iris_cli.preparation.profiles import NONFINITE_LIMIT, guess_modality, replace_nonfinite
from iris_cli.volume.reading import Volume


def check_voxels(payload: CasePayload, channel: int, volume: Volume) -> Iterator[Finding]:
    """NaN, constant images, and another modality than declared."""
    place, array = payload.place, volume.array
    finite = np.isfinite(array) if array.dtype.kind == "f" else None
    bad = 0 if finite is None else int(finite.size - np.count_nonzero(finite))
    too_many = bad > NONFINITE_LIMIT * array.size
    if bad:
        yield place.finding(
            Code.MANY_NAN if too_many else Code.NAN,
            f"{bad} voxels are NaN or infinite",
            file=volume.path,
            found=f"{100 * bad / array.size:.3g} % of the voxels",
            expected=f"at most {100 * NONFINITE_LIMIT:g} %, which are replaced",
        )
    if too_many:
        return
    values, _ = replace_nonfinite(array)
    if values.min() == values.max():
        yield place.finding(
            Code.CONSTANT_IMAGE,
            "every voxel has the same value",
            file=volume.path,
            found=values.flat[0],
        )
        return
    yield from _check_modality(payload, channel, volume, guess_modality(values))


def guess(array: npt.NDArray[Any]) -> str:
    """The modality the voxels look like."""
    try:
        return guess_modality(array)
    except DataRefused:  # too many non-finite voxels, which is a finding of its own
        return "other"


def _check_modality(
    payload: CasePayload, channel: int, volume: Volume, guessed: str
) -> Iterator[Finding]:
    declared = _declared(payload, channel)
    if declared is not None and declared != guessed:
        looks = "CT in Hounsfield units" if guessed == "ct" else "something else than CT"
        yield payload.place.finding(
            Code.MODALITY,
            f"channel {channel} looks like {looks}",
            file=volume.path,
            found=guessed,
            expected=f"{declared}, as dataset.json says",
        )
    if declared == guessed == "ct":
        yield from check_ct_extent(payload.place, volume)


def _declared(payload: CasePayload, channel: int) -> str | None:
    declared = payload.case.modality
    complete = len(payload.case.images) == payload.channels == len(declared)
    return declared[channel] if complete else None

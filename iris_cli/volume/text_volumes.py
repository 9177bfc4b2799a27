"""NRRD and MetaImage volumes: verified voxels, and their place in RAS+ millimetres.

Both formats say LPS+; the change to RAS+ is one of signs only, so it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iris_cli.errors import DataRefused
from iris_cli.volume.grid import Grid
from iris_cli.volume.nifti import (
    assumed_note,
    located_grid,
    straightened,
    three_axes,
    unlocated,
)
from iris_cli.volume.payload import (
    FIX_DAMAGED,
    InflatedFile,
    Packing,
    check_claim,
    opened,
    read_claimed,
)
from iris_cli.volume.text_headers import MAX_HEADER_BYTES, UNIT_MM, Claim, parse_meta, parse_nrrd

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class TextHeader:
    """A header after the checks that need no voxel."""

    claim: Claim
    grid: Grid
    assumed_spacing: bool
    notes: tuple[str, ...]


def read_claim_of_text(path: Path) -> Claim:
    """What a header says, before it is held against its voxels."""
    with opened(path) as (file, _):
        block = file.read(MAX_HEADER_BYTES)
    return parse_nrrd(block, path) if path.suffix.lower() == ".nrrd" else parse_meta(block, path)


def read_text_header(path: Path, assume_spacing_xyz: tuple[float, ...] | None) -> TextHeader:
    """Header and geometry only."""
    claim = read_claim_of_text(path)
    shape_xyz = three_axes(list(claim.sizes_xyz), path)
    if claim.components != 1:
        raise DataRefused(
            f"every voxel holds {claim.components} numbers",
            file=path,
            found=f"shape (x, y, z) {shape_xyz} with {claim.components} components",
            expected="one number per voxel",
            fix="save every component as a volume of its own",
        )
    with opened(claim.data_file) as (_, size):
        check_claim(claim.data_file, claim.voxel_bytes, _stored(claim, size), claim.packing)
    grid, assumed, notes = _geometry(path, claim, shape_xyz, assume_spacing_xyz)
    return TextHeader(claim, grid, assumed, claim.notes + notes)


def read_text_volume(
    path: Path, assume_spacing_xyz: tuple[float, ...] | None
) -> tuple[TextHeader, npt.NDArray[Any]]:
    """Header and stored array (z, y, x) in native byte order, verified to the last byte."""
    header = read_text_header(path, assume_spacing_xyz)
    claim = header.claim
    with opened(claim.data_file) as (file, _):
        file.seek(claim.offset)
        packing = claim.packing
        if packing is Packing.ZLIB:  # MetaIO takes a gzip stream for a zlib stream, too
            packing = Packing.GZIP if file.read(2) == b"\x1f\x8b" else Packing.ZLIB
            file.seek(claim.offset)
        stored = read_claimed(
            InflatedFile(file, claim.data_file, packing), claim.voxel_bytes, claim.data_file
        )
    array = stored.view(claim.dtype).reshape(header.grid.shape_zyx)
    return header, array.astype(claim.dtype.newbyteorder("="), copy=False)


def _stored(claim: Claim, size: int) -> int:
    """Bytes of the file that are voxels; refuses a length in the header that is not so."""
    stored = size - claim.offset
    if claim.stored_bytes is not None and claim.stored_bytes != stored:
        raise DataRefused(
            "the compressed data have another length than the header says",
            file=claim.data_file,
            found=f"{stored} bytes",
            expected=f"{claim.stored_bytes} bytes",
            fix=FIX_DAMAGED,
        )
    return stored


def _geometry(
    path: Path,
    claim: Claim,
    shape_xyz: tuple[int, int, int],
    assume_spacing_xyz: tuple[float, ...] | None,
) -> tuple[Grid, bool, tuple[str, ...]]:
    if claim.affine_lps is None:
        if assume_spacing_xyz is None:
            raise unlocated(path, "no spacing and no directions")
        grid = Grid.from_spacing(shape_xyz[::-1], assume_spacing_xyz)
        return grid, True, (assumed_note(assume_spacing_xyz),)
    affine = LPS_TO_RAS @ claim.affine_lps
    affine[:3] *= UNIT_MM[claim.unit]
    grid, notes = straightened(located_grid(shape_xyz[::-1], affine, path))
    return grid, False, notes

"""Where a header puts a volume, and whether that can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from iris_cli.dataset.raw import RawDataset
from iris_cli.preparation.codes import Code
from iris_cli.preparation.findings import Finding, Place
from iris_cli.preparation.measure import CaseFacts
from iris_cli.volume.reading import Volume

LARGEST_EDGE_MM = 3000.0
"""No scanner has a longer field of view; whole bodies of tall people are 2 m."""

LARGEST_UNIT_EDGE_MM = 1000.0
"""The same where voxels are 1 x 1 x 1 mm: a lost header shows from here on."""

SMALLEST_CT_EDGE_MM = 20.0
"""A patient's CT is larger; a smaller one has micrometres or metres for millimetres."""

OUTLIER, UNITS = 8.0, 100.0
"""Ratio of a case's voxel edge (geometric mean) to its set's median: odd; another unit."""

CASES_FOR_A_MEDIAN = 3

# How the notes of the readers begin (volume.nifti, volume.text_volumes).
_NOTES = {
    "sform and qform disagree": Code.SFORM_QFORM,
    "the qform is not usable": Code.SFORM_QFORM,
    "sform and pixdim disagree": Code.SFORM_PIXDIM,
    "the axes are not perpendicular": Code.SHEARED,
    "the axes were not quite perpendicular": Code.AXES_REPAIRED,
}


def check_geometry(place: Place, volume: Volume) -> Iterator[Finding]:
    """What the header of one file says: notes of the reader, lost affines, impossible extents."""
    for note in volume.notes:
        code = next((c for words, c in _NOTES.items() if note.startswith(words)), Code.READER_NOTE)
        yield place.finding(code, note, file=volume.path)
    if _is_identity(volume):
        yield place.finding(
            Code.UNIT_AFFINE,
            "the affine is the identity: was the header lost?",
            file=volume.path,
            found="voxels of 1 x 1 x 1 mm at the origin",
        )
    longest = max(volume.grid.extent_mm_zyx)
    limit = LARGEST_UNIT_EDGE_MM if _has_unit_voxels(volume) else LARGEST_EDGE_MM
    if longest > limit:
        yield _odd_extent(place, volume, f"at most {limit:g} mm")


def check_ct_extent(place: Place, volume: Volume) -> Iterator[Finding]:
    """A CT (declared, and by its voxels) that is too small for a patient."""
    if max(volume.grid.extent_mm_zyx) < SMALLEST_CT_EDGE_MM:
        yield _odd_extent(place, volume, f"at least {SMALLEST_CT_EDGE_MM:g} mm on the longest edge")


def check_spacings(raw: RawDataset, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Cases whose voxels are of another order of magnitude than those of the set."""
    if len(facts) < CASES_FOR_A_MEDIAN:
        return
    edges = {fact.case: float(np.prod(fact.spacing_zyx_mm)) ** (1 / 3) for fact in facts}
    middle = float(np.median(list(edges.values())))
    for fact in facts:
        factor = max(edges[fact.case] / middle, middle / edges[fact.case])
        if factor < OUTLIER:
            continue
        far = factor >= UNITS
        yield Place(raw.name, fact.case).finding(
            Code.SPACING_UNITS if far else Code.SPACING_OUTLIER,
            "the voxels are far from those of the set" + (": another unit?" if far else ""),
            file=raw.case(fact.case).images[0],
            found="spacing (x, y, z) "
            + " x ".join(f"{edge:.4g}" for edge in fact.spacing_zyx_mm[::-1])
            + f" mm, {factor:.3g} times the set's",
            expected=f"about {middle:.4g} mm, the median edge of the set",
        )


def _odd_extent(place: Place, volume: Volume, expected: str) -> Finding:
    return place.finding(
        Code.ODD_EXTENT,
        "no scan has such a field of view",
        file=volume.path,
        found=" x ".join(f"{edge:.4g}" for edge in volume.grid.extent_mm_zyx[::-1])
        + " mm (x, y, z)",
        expected=expected,
    )


def _has_unit_voxels(volume: Volume) -> bool:
    return bool(np.allclose(volume.grid.spacing_xyz, 1.0, atol=1e-6))


def _is_identity(volume: Volume) -> bool:
    """Axes along the patient's, of 1 mm each, from the origin: what writers without header give.

    The signs of x and y do not count: the identity of LPS formats is one too.
    """
    affine = volume.native.grid.affine
    return not affine[:3, 3].any() and bool(np.array_equal(np.abs(affine[:3, :3]), np.eye(3)))

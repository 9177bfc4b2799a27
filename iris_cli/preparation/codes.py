"""What can be wrong with a raw data set: one short word for each, and what follows from it.

The words are what `--accept` takes, what tables and JSON show, and what docs/data-checks.md lists
(a test compares the two). Once published a word keeps its meaning: scripts are written with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from iris_cli.errors import UsageError
from iris_cli.files.schema import nearest


class Verdict(StrEnum):
    """What a finding does to its set.

    REFUSED: iris would learn or score something else than meant; `--accept` says that it is meant.
    IMPOSSIBLE: iris cannot work with the case at all. WARNED: said and recorded.
    """

    REFUSED = "refused"
    IMPOSSIBLE = "refused, cannot be accepted"
    WARNED = "warned"


class Code(StrEnum):
    """What can be found, in the order of docs/data-checks.md."""

    NO_CASES = "no-cases"
    CASE_TWICE = "case-twice"
    NAMES_ALIKE = "names-alike"
    RESERVED_NAME = "reserved-name"
    ODD_FILE_NAME = "odd-file-name"
    OTHER_ENDING = "other-ending"
    CASE_COUNT = "case-count"
    MISSING_IMAGE = "missing-image"
    MISSING_CHANNEL = "missing-channel"
    EXTRA_CHANNEL = "extra-channel"
    CHANNEL_TWICE = "channel-twice"
    MISSING_LABEL = "missing-label"
    LABEL_WITHOUT_IMAGE = "label-without-image"

    SUBJECT_ACROSS_ROLES = "subject-across-roles"
    SUBJECTS_ALIKE = "subjects-alike"
    IMAGE_ACROSS_ROLES = "image-across-roles"
    IMAGE_TWICE = "image-twice"
    LABEL_TWICE = "label-twice"
    SAME_CHANNELS = "same-channels"
    IMAGE_IS_LABEL = "image-is-label"

    UNREADABLE = "unreadable"
    CHECK_FAILED = "check-failed"
    NOT_3D = "not-3d"

    NO_POSITION = "no-position"
    BAD_GEOMETRY = "bad-geometry"
    SFORM_QFORM = "sform-qform"
    SFORM_PIXDIM = "sform-pixdim"
    SHEARED = "sheared"
    AXES_REPAIRED = "axes-repaired"
    UNIT_AFFINE = "unit-affine"
    SPACING_UNITS = "spacing-units"
    SPACING_OUTLIER = "spacing-outlier"
    ODD_EXTENT = "odd-extent"
    READER_NOTE = "reader-note"

    CHANNEL_GRID = "channel-grid"
    GRID_DIFFERENT = "grid-different"
    GRID_FLIPPED = "grid-flipped"
    GRID_ROUNDING = "grid-rounding"
    GRID_REORIENTED = "grid-reoriented"

    MANY_NAN = "many-nan"
    NAN = "nan"
    CONSTANT_IMAGE = "constant-image"
    MODALITY = "modality"

    NON_INTEGER_LABELS = "non-integer-labels"
    UNDECLARED_VALUE = "undeclared-value"
    EMPTY_LABEL = "empty-label"
    CLASS_NEVER_SEEN = "class-never-seen"
    UNANNOTATED_PRESENT = "unannotated-present"
    SIDES_SWAPPED = "sides-swapped"


@dataclass(frozen=True)
class Rule:
    """What a code means, what it does, and what to do about it."""

    verdict: Verdict
    meaning: str
    todo: str


_NO, _REFUSED, _WARNED = Verdict.IMPOSSIBLE, Verdict.REFUSED, Verdict.WARNED

RULES: Mapping[Code, Rule] = MappingProxyType(
    {
        Code.NO_CASES: Rule(_NO, "The set has no image.", "put the images into imagesTr"),
        Code.CASE_TWICE: Rule(
            _NO, "One case name stands in imagesTr and in imagesTs.", "rename or remove one of them"
        ),
        Code.NAMES_ALIKE: Rule(
            _REFUSED,
            "Case names that differ only by upper and lower case or by how accents are encoded: "
            "they are one file on some disks.",
            "rename one of them",
        ),
        Code.RESERVED_NAME: Rule(
            _NO,
            "A case of a set with several channels is called `<name>@<number>`, which is the name "
            "of a further channel in the preprocessed store.",
            "rename the case",
        ),
        Code.ODD_FILE_NAME: Rule(
            _REFUSED,
            "An image whose name does not say which channel it is; accepted, it is left out.",
            "rename the file, or correct channel_names in dataset.json",
        ),
        Code.OTHER_ENDING: Rule(
            _REFUSED,
            "Volumes that do not end as dataset.json says; accepted, they are left out.",
            "convert them, or correct file_ending in dataset.json",
        ),
        Code.CASE_COUNT: Rule(
            _WARNED,
            "numTraining of dataset.json is not the number of training cases: files may be "
            "missing.",
            "bring the missing files, or correct numTraining",
        ),
        Code.MISSING_IMAGE: Rule(_NO, "A case without image.", "add the file, or remove the case"),
        Code.MISSING_CHANNEL: Rule(
            _NO, "A case without one of the channels.", "add the file, or remove the case"
        ),
        Code.EXTRA_CHANNEL: Rule(
            _REFUSED,
            "An image of a channel that dataset.json does not name; accepted, it is left out.",
            "remove the file, or add the channel to channel_names",
        ),
        Code.CHANNEL_TWICE: Rule(
            _NO, "Two files are the same channel of one case.", "remove one of them"
        ),
        Code.MISSING_LABEL: Rule(
            _REFUSED,
            "A training or validation case without label map; accepted, the case counts as "
            "unlabelled, whatever its declared role.",
            'add it, or give the case the role "unlabelled" in "iris".roles',
        ),
        Code.LABEL_WITHOUT_IMAGE: Rule(
            _REFUSED,
            "A label map without image; accepted, it is left out.",
            "add the image, or remove the label map",
        ),
        Code.SUBJECT_ACROSS_ROLES: Rule(
            _REFUSED,
            "One subject has cases that are scored and others that are trained on, or is both "
            "validated and tested on.",
            "correct `roles` or `subjects` in dataset.json",
        ),
        Code.SUBJECTS_ALIKE: Rule(
            _WARNED,
            "Subjects whose names differ only by case or encoding: probably one, whose cases may "
            "then be on both sides of a split.",
            "write the subject alike in dataset.json",
        ),
        Code.IMAGE_ACROSS_ROLES: Rule(
            _REFUSED,
            "The same voxels in cases of different roles, in one set or in two, or in a set that "
            "only validation opens and another one.",
            'give them one role in dataset.json and list them as one subject under "iris".subjects,'
            " or remove the copies",
        ),
        Code.IMAGE_TWICE: Rule(
            _WARNED,
            "The same voxels under several names; for the split they are one subject.",
            'list them as one subject under "iris".subjects, or remove the copies',
        ),
        Code.LABEL_TWICE: Rule(
            _WARNED,
            "The same label map in cases of different subjects: a copy under a wrong name?",
            "check which image it belongs to",
        ),
        Code.SAME_CHANNELS: Rule(
            _WARNED,
            "Two channels of a case hold the same voxels: one may be a copy by mistake.",
            "check the files of the case",
        ),
        Code.IMAGE_IS_LABEL: Rule(
            _REFUSED,
            "Image and label map hold the same voxels: the answer stands in the image.",
            "put the image in place of the copy of the label map",
        ),
        Code.UNREADABLE: Rule(
            _NO,
            "A file that is cut, damaged, of another format, or may not be read.",
            "copy or export the file again",
        ),
        Code.CHECK_FAILED: Rule(
            _NO,
            "The check of the case itself failed: killed, out of memory, over the time limit.",
            "use fewer workers or more memory; run the same line again",
        ),
        Code.NOT_3D: Rule(_NO, "A 2-D image, or several frames.", "save one 3-D volume for a case"),
        Code.NO_POSITION: Rule(
            _NO,
            "The header gives no affine (neither sform nor qform, no spacing).",
            "correct the header, for instance by exporting the volume again",
        ),
        Code.BAD_GEOMETRY: Rule(
            _NO,
            "Spacing zero or not finite, axes that span no space, an impossible quaternion.",
            "correct the header, for instance by exporting the volume again",
        ),
        Code.SFORM_QFORM: Rule(
            _WARNED,
            "sform and qform put the volume in different places; iris takes the sform. Programs "
            "that take the qform see another one.",
            "make them equal, or look at the case in a viewer",
        ),
        Code.SFORM_PIXDIM: Rule(
            _WARNED,
            "sform and pixdim give different voxel edges; iris takes the sform.",
            "correct the header",
        ),
        Code.SHEARED: Rule(
            _WARNED,
            "The axes are not perpendicular; the volume is resampled as it lies.",
            "nothing, where the scan was tilted (gantry) or warped",
        ),
        Code.AXES_REPAIRED: Rule(
            _WARNED, "Axes perpendicular but for rounding; repaired on reading.", "nothing"
        ),
        Code.UNIT_AFFINE: Rule(
            _WARNED,
            "The affine is the identity: voxels of 1 mm at the origin, as written by programs that "
            "lost the header.",
            "check the voxel edges with the source of the data",
        ),
        Code.SPACING_UNITS: Rule(
            _REFUSED,
            "Voxels a hundred times larger or smaller than those of the set: millimetres, metres "
            "and micrometres taken for each other.",
            "correct the spacing or the unit in the header",
        ),
        Code.SPACING_OUTLIER: Rule(
            _WARNED,
            "Voxels more than eight times larger or smaller (edge) than those of the set.",
            "check the voxel edges with the source of the data",
        ),
        Code.ODD_EXTENT: Rule(
            _WARNED,
            "A field of view that no scan has: above 3 m, a metre of voxels of exactly 1 mm, or a "
            "CT below 2 cm.",
            "correct the spacing or the unit in the header",
        ),
        Code.READER_NOTE: Rule(
            _WARNED, "What the reader assumed, such as an unknown unit.", "correct the header"
        ),
        Code.CHANNEL_GRID: Rule(
            _NO,
            "The channels of a case are not on one grid.",
            "resample the channels to one grid outside iris",
        ),
        Code.GRID_DIFFERENT: Rule(
            _NO,
            "The label map is not on the grid of its image.",
            "resample one of them outside iris, or correct its header",
        ),
        Code.GRID_FLIPPED: Rule(
            _NO,
            "The label map is not on the grid of its image, but would be after exchanging or "
            "turning round axes: its header, or its voxels, were flipped alone.",
            "write the repaired label maps with --repair DIR, look at them, and put them in place",
        ),
        Code.GRID_ROUNDING: Rule(
            _WARNED,
            "Grids that differ by less than a tenth of a voxel; the image's is used.",
            "nothing",
        ),
        Code.GRID_REORIENTED: Rule(
            _WARNED,
            "The label map is stored with other axes than its image. iris follows the headers, "
            "which put both in one place.",
            "look at the case in a viewer, once",
        ),
        Code.MANY_NAN: Rule(
            _NO,
            "More than 1 % of the voxels are NaN or infinite.",
            "repair the image, or leave the case out",
        ),
        Code.NAN: Rule(
            _WARNED, "Voxels that are NaN or infinite; the smallest value replaces them.", "nothing"
        ),
        Code.CONSTANT_IMAGE: Rule(
            _WARNED, "Every voxel has the same value.", "export the image again, or leave it out"
        ),
        Code.MODALITY: Rule(
            _WARNED,
            "The voxels do not look like the declared modality (CT is in Hounsfield units).",
            "correct the modality in dataset.json, or rescale the image",
        ),
        Code.NON_INTEGER_LABELS: Rule(
            _NO,
            "A label map with values that are not whole numbers.",
            "give the label map, not a probability map; resample labels by nearest neighbour",
        ),
        Code.UNDECLARED_VALUE: Rule(
            _NO,
            "A label map with values that dataset.json does not declare.",
            "declare them under `labels`, or correct the label map",
        ),
        Code.EMPTY_LABEL: Rule(
            _WARNED,
            "A label map without a voxel of any class.",
            'nothing where it is true; else list the classes under "iris".not_annotated',
        ),
        Code.CLASS_NEVER_SEEN: Rule(
            _WARNED,
            "A class without a voxel in any training or validation label map.",
            "check its value in dataset.json",
        ),
        Code.UNANNOTATED_PRESENT: Rule(
            _WARNED,
            "A class is listed as not annotated in a case whose label map has voxels of it; they "
            "are left out all the same.",
            'correct "iris".not_annotated or the label map',
        ),
        Code.SIDES_SWAPPED: Rule(
            _REFUSED,
            "A class that is called left lies to the right of its partner (or a pair lies the "
            "other way round than in the other cases): image or label map were mirrored, or the "
            "names are exchanged.",
            "look at the case in a viewer; correct its header, or exchange the values",
        ),
    }
)


def read_codes(words: Sequence[str]) -> frozenset[Code]:
    """The codes that `--accept` names; raises UsageError with the nearest for an unknown one."""
    known = [code.value for code in Code]
    for word in words:
        if word not in known:
            guess = nearest(word, known)
            raise UsageError(
                f"--accept knows no finding {word!r}",
                expected="a word from the column `code` of the report",
                fix=f"did you mean {guess!r}?" if guess else "see docs/data-checks.md",
            )
        rule = RULES[Code(word)]
        if rule.verdict is Verdict.IMPOSSIBLE:
            raise UsageError(
                f"{word!r} cannot be accepted: iris cannot work with such a case",
                found=rule.meaning,
                fix=rule.todo,
            )
    return frozenset(Code(word) for word in words)

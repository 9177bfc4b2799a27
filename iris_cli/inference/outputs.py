"""What is written of a case, and under which names.

OUT/<case>.nii.gz, OUT/.iris/<case>.json, and where they are asked for
OUT/probabilities/<case>/<value>_<class>.nii.gz, OUT/<case>/<class>.nii.gz (one mask for each class)
and OUT/previews/<case>.png.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris_cli.inference.class_masks import MASK_WRITE_BYTES
from iris_cli.inference.own_tokens import Comparison
from iris_cli.inference.postprocess import AS_DECIDED, Cleaning
from iris_cli.inference.probabilities import PROBABILITIES, WRITE_BYTES, ProbabilityType

OUTPUT_ENDINGS = (".nii.gz", ".nrrd", ".mha")
PREVIEWS = "previews"


@dataclass(frozen=True)
class Outputs:
    """What to write beside what is always written.

    ending: of volumes, one of OUTPUT_ENDINGS. probabilities: their type, None for none. cleaning:
    parts that are taken away. previews: a picture of every case. multilabel: a mask of every class,
    overlaps kept. check_tokens: compare tokens of every class with those of the references, not
    only as far as that costs little.
    """

    ending: str = OUTPUT_ENDINGS[0]
    probabilities: ProbabilityType | None = None
    cleaning: Cleaning = AS_DECIDED
    previews: bool = False
    multilabel: bool = False
    check_tokens: bool = False

    @property
    def comparison(self) -> Comparison:
        return Comparison.ALL if self.check_tokens else Comparison.CHEAP

    def parameters(self) -> dict[str, Any]:
        """What of it a result depends on, for the receipt; empty for what is always written."""
        asked: dict[str, Any] = {}
        if self.probabilities:
            asked["probabilities"] = self.probabilities
        if self.multilabel:
            asked["multilabel"] = True
        if self.check_tokens:
            asked["check_tokens"] = True
        return asked | self.cleaning.parameters()

    @property
    def write_voxel(self) -> int:
        """Bytes of memory for each voxel while the largest file beside the labels is written."""
        probabilities = WRITE_BYTES[self.probabilities] if self.probabilities else 0
        return max(probabilities, MASK_WRITE_BYTES if self.multilabel else 0)


PLAIN = Outputs()


def probability_folder(output: Path, case: str) -> Path:
    """Where the probabilities of a case are. output: the file of its label map."""
    return output.parent / PROBABILITIES / case


def preview_file(output: Path, case: str) -> Path:
    """The picture of a case. output: the file of its label map."""
    return output.parent / PREVIEWS / f"{case}.png"


def mask_folder(output: Path, case: str) -> Path:
    """Where the masks of a case are. output: the file of its label map."""
    return output.parent / case

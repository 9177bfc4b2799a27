"""From a decision to the files of a case, and what its receipt says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from iris_cli.errors import IrisError
from iris_cli.execution.receipts import Receipt
from iris_cli.execution.stages import stage
from iris_cli.inference.case import Prediction
from iris_cli.inference.class_masks import ClassMasks, mask_file
from iris_cli.inference.outputs import Outputs, mask_folder, preview_file, probability_folder
from iris_cli.inference.postprocess import clean
from iris_cli.inference.predictor import Predictor
from iris_cli.inference.probabilities import ProbabilityStore, probability_file
from iris_cli.inference.quality import Likeness, quality_flags
from iris_cli.inference.statistics import ClassStatistics, measure
from iris_cli.inference.streaming import MakeLabels, OnScores
from iris_cli.volume.reading import AssumedSpacing, NativeGeometry, Volume, read_image, read_labels
from iris_cli.volume.scores import Box
from iris_cli.volume.writing import write_labels

DIGITS = 6
"""Of volumes and intensities in receipts."""


class Products:
    """The files of one case.

    output: of the label map; the others lie in folders beside it. folder: of what is in work.
    """

    def __init__(self, case: str, output: Path, folder: Path, wanted: Outputs) -> None:
        self._case, self._output, self._folder, self._wanted = case, output, folder, wanted
        self._store: ProbabilityStore | None = None
        self._masks: ClassMasks | None = None

    def listen(self, make: MakeLabels) -> OnScores | None:
        """For `predictor.Sweep`: a new attempt begins."""
        self.close()
        told: list[OnScores] = []
        if self._wanted.probabilities is not None:
            self._store = ProbabilityStore(self._folder, self._wanted.probabilities)
            told.append(self._store.add)
        if self._wanted.multilabel:
            self._masks = ClassMasks()
            told.append(self._masks.add)
        return _all_of(told) if told else None

    def close(self) -> None:
        """Give back what the logits of the last attempt took."""
        if self._store is not None:
            self._store.close()
        self._store = self._masks = None

    def write(self, predictor: Predictor, volume: Volume, prediction: Prediction) -> dict[str, Any]:
        """Publish the files. returns: what they are, for the content of the receipt.

        Parts of the labels that are not wanted become background in `prediction` itself.
        """
        names, labels = predictor.names, prediction.labels
        spacing = volume.grid.spacing_zyx
        removed = {}
        if self._wanted.cleaning:
            with stage("taking parts away", volume.path):
                removed = {"removed": clean(labels, spacing, names, self._wanted.cleaning)}
        with stage("measuring the classes", volume.path):
            measured = measure(labels, volume.array, spacing, list(names))
        found = {name: measured[value] for value, name in names.items()}
        likeness = _likeness(predictor, prediction)
        with stage("writing the label map", self._output):
            write_labels(self._output, labels, volume.native, class_names=names)
        return {
            "output": {
                "file": self._output.name,
                "sha256": output_hash(self._output, volume.native.assumed_spacing_xyz),
                "voxels": {name: one.voxels for name, one in found.items()},
                "confidence": {n: round(c, 3) for n, c in prediction.confidence.items()},
                **removed,
                **self._write_probabilities(names, volume.native),
                **self._write_masks(names, volume),
            },
            "classes": {name: _rounded(asdict(one)) for name, one in found.items()},
            "likeness": {name: asdict(one) for name, one in likeness.items()},
            "quality": _unusual(predictor, prediction, found, likeness),
        }

    def _write_probabilities(
        self, names: Mapping[int, str], native: NativeGeometry
    ) -> dict[str, dict[str, str]]:
        """Publish one class after the other. returns: hash by file name."""
        if self._store is None:
            return {}
        folder, hashes = probability_folder(self._output, self._case), {}
        for value, name in names.items():
            path = folder / probability_file(value, name, self._wanted.ending)
            with stage("writing probabilities", path):
                self._store.write(path, value, native)
                hashes[path.name] = probability_hash(path, native.assumed_spacing_xyz)
        return {"probabilities": hashes}

    def _write_masks(
        self, names: Mapping[int, str], volume: Volume
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """Publish one class after the other. returns: hash and voxels by file name."""
        if self._masks is None:
            return {}
        folder, said = mask_folder(self._output, self._case), {}
        for value, name in names.items():
            path = folder / mask_file(name, self._wanted.ending)
            mask, only = self._masks.mask(value, volume.grid.shape_zyx), {1: name}
            with stage("writing the mask of a class", path):
                if self._wanted.cleaning:
                    clean(mask, volume.grid.spacing_zyx, only, self._wanted.cleaning)
                write_labels(path, mask, volume.native, class_names=only)
                sha256 = output_hash(path, volume.native.assumed_spacing_xyz)
            said[path.name] = {"sha256": sha256, "voxels": int(mask.sum(dtype=int))}
        return {"masks": said}


def _all_of(told: Sequence[OnScores]) -> OnScores:
    def tell(box: Box, value: int, logits: Tensor) -> None:
        for one in told:
            one(box, value, logits)

    return tell


def output_hash(path: Path, assumed: AssumedSpacing) -> str:
    """Hash of the voxels and grid of a label map. assumed: spacing in mm it does not give."""
    return read_labels(path, assume_spacing=assumed).content_hash()


def probability_hash(path: Path, assumed: AssumedSpacing) -> str:
    """Hash of the voxels and grid of the probabilities of a class."""
    return read_image(path, assume_spacing=assumed).content_hash()


def are_there(content: Mapping[str, Any], case: str, output: Path, assumed: AssumedSpacing) -> bool:
    """Whether all volumes that the content of a receipt names are on the disk as it says."""
    said = content["output"]
    folder, masks = probability_folder(output, case), mask_folder(output, case)
    try:
        return (
            bool(output_hash(output, assumed) == said["sha256"])
            and all(
                probability_hash(folder / Path(name).name, assumed) == sha256
                for name, sha256 in said.get("probabilities", {}).items()
            )
            and all(
                output_hash(masks / Path(name).name, assumed) == mask["sha256"]
                for name, mask in said.get("masks", {}).items()
            )
        )
    except (IrisError, OSError):
        return False


def planned_files(
    wanted: Outputs, names: Mapping[int, str], case: str, output: Path
) -> Iterator[Path]:
    """All files that a case gets. names: label value -> class. output: of the label map."""
    yield output
    if wanted.previews:
        yield preview_file(output, case)
    for value, name in names.items():
        if wanted.probabilities is not None:
            file = probability_file(value, name, wanted.ending)
            yield probability_folder(output, case) / file
        if wanted.multilabel:
            yield mask_folder(output, case) / mask_file(name, wanted.ending)


def files_of(receipt: Receipt, output: Path) -> Iterator[Path]:
    """All files that a receipt names; what else lies beside them is somebody else's."""
    said = receipt.content.get("output")
    if not isinstance(said, dict):
        return
    if isinstance(said.get("file"), str):
        yield output.with_name(Path(said["file"]).name)
    if receipt.run.get("preview"):
        yield preview_file(output, receipt.case)
    for key, folder in (("probabilities", probability_folder), ("masks", mask_folder)):
        for name in said.get(key) or ():
            yield folder(output, receipt.case) / Path(name).name


def _likeness(predictor: Predictor, prediction: Prediction) -> dict[str, Likeness]:
    usual = predictor.task.header.token_distances
    return {
        name: Likeness.of(distance, usual.get(name, ()))
        for name, distance in prediction.token_distances.items()
    }


def _unusual(
    predictor: Predictor,
    prediction: Prediction,
    found: Mapping[str, ClassStatistics],
    likeness: Mapping[str, Likeness],
) -> dict[str, dict[str, str]]:
    references, sure = predictor.task.header.reference_volumes, prediction.confidence
    flags = {
        name: quality_flags(one, sure.get(name), references.get(name), likeness.get(name))
        for name, one in found.items()
    }
    return {name: said for name, said in flags.items() if said}


def _rounded(found: dict[str, Any]) -> dict[str, Any]:
    del found["voxels"]  # they stand in the output
    return {
        key: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for key, value in found.items()
    }

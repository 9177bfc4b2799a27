"""From two folders of label maps to one summary.

`summary.json` has nnU-Net v2's keys with their meaning there (nnunetv2/evaluation):
`metric_per_case` (per label value, or region as "(1, 2)"), `mean` over cases, `foreground_mean`
over classes. As there, what is not a number is written as NaN. Beside them stands the key `iris`,
strict JSON, with what is quoted: the headline Dice. It differs from nnU-Net's mean in one point: a
class that the truth of a case does not show gives no Dice of 0 or nan but counts for a false
positive rate (the part of such cases in which some voxel got the class). Classes that were not
contoured in a case are not scored there.
"""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iris_cli.dataset.classes import ClassLabel
from iris_cli.errors import DataRefused, UsageError
from iris_cli.evaluation.metrics import METRICS, Overlap, compute_overlaps
from iris_cli.evaluation.statistics import CONFIDENCE, SAMPLES, TableMeans, table_means
from iris_cli.execution.jobs import CaseJob, CaseResult, run_cases
from iris_cli.execution.progress import Progress
from iris_cli.files.publish import publish_text, remove_leftovers
from iris_cli.files.schema import nearest
from iris_cli.volume.grid import GridMatch
from iris_cli.volume.reading import (
    VOLUME_ENDINGS,
    AssumedSpacing,
    Volume,
    is_volume,
    read_labels,
    volume_name,
)

FORMAT = "iris-summary-1"


@dataclass(frozen=True)
class ScoredFiles:
    """One case to score: its two files, its subject, and the classes nobody contoured in it."""

    case: str
    prediction: Path
    truth: Path
    subject: str
    not_annotated: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CaseScore:
    """The overlaps of one case; a class that is not scored is missing.

    truth_values, predicted_values: what the two label maps hold, whatever is scored.
    """

    files: ScoredFiles
    overlaps: Mapping[str, Overlap]
    notes: tuple[str, ...] = ()
    truth_values: frozenset[int] = frozenset()
    predicted_values: frozenset[int] = frozenset()


@dataclass(frozen=True)
class EvaluationPayload:
    """What a worker needs to score one case."""

    files: ScoredFiles
    classes: tuple[ClassLabel, ...]
    ignore_value: int | None
    absent_is_background: bool = True
    assume_spacing: AssumedSpacing = None
    predicted_as: Mapping[str, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Summary:
    """Scores of all cases and what was left out.

    missing: cases of the truth without prediction; failed: case -> reason.
    """

    classes: tuple[ClassLabel, ...]
    scores: tuple[CaseScore, ...]
    missing: tuple[str, ...] = ()
    failed: Mapping[str, str] | None = None
    seed: int = 0

    @property
    def exit_code(self) -> int:
        """0, or 3 where some cases could not be scored."""
        return 3 if self.failed or self.missing else 0

    def dice(self) -> TableMeans:
        """Headline Dice, per class and over classes, with intervals over subjects."""
        table = np.full((len(self.scores), len(self.classes)), math.nan)
        for row, score in enumerate(self.scores):
            for column, label in enumerate(self.classes):
                overlap = score.overlaps.get(label.name)
                if overlap is not None and overlap.n_ref > 0:
                    table[row, column] = overlap.dice
        return table_means(table, [score.files.subject for score in self.scores], seed=self.seed)

    def to_json(self) -> dict[str, Any]:
        """nnU-Net's three keys and `iris`; NaN in the former, null in the latter."""
        per_case = [self._case_json(score) for score in self.scores]
        keys = [class_key(label) for label in self.classes]
        mean = {
            key: {
                name: _nanmean([case["metrics"][key][name] for case in per_case])
                for name in METRICS
            }
            for key in keys
        }
        foreground = {
            name: float(np.mean([mean[key][name] for key in keys])) if keys else math.nan
            for name in METRICS
        }
        return {
            "foreground_mean": foreground,
            "iris": self._iris_json(),
            "mean": mean,
            "metric_per_case": per_case,
        }

    def to_csv(self) -> str:
        """One row per case and scored class."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["case", "subject", "class", "label", *METRICS])
        for score in self.scores:
            for label in self.classes:
                overlap = score.overlaps.get(label.name)
                if overlap is not None:
                    values = [_csv_number(get(overlap)) for get in METRICS.values()]
                    names = [score.files.case, score.files.subject, label.name, class_key(label)]
                    writer.writerow([*names, *values])
        return buffer.getvalue()

    def _case_json(self, score: CaseScore) -> dict[str, Any]:
        metrics = {}
        for label in self.classes:
            overlap = score.overlaps.get(label.name)
            metrics[class_key(label)] = {
                name: math.nan if overlap is None else get(overlap) for name, get in METRICS.items()
            }
        return {
            "metrics": metrics,
            "prediction_file": str(score.files.prediction),
            "reference_file": str(score.files.truth),
        }

    def _iris_json(self) -> dict[str, Any]:
        means = self.dice()
        subjects = {score.files.subject for score in self.scores}
        notes = {score.files.case: list(score.notes) for score in self.scores if score.notes}
        return {
            "format": FORMAT,
            "headline_dice": means.headline.to_json(),
            "classes": {
                label.name: {"dice": interval.to_json(), **self._absence(label)}
                for label, interval in zip(self.classes, means.columns, strict=True)
            },
            "interval": {
                "confidence": CONFIDENCE,
                "method": "percentile bootstrap over subjects",
                "samples": SAMPLES,
                "seed": self.seed,
            },
            "cases": len(self.scores),
            "subjects": len(subjects),
            "missing": list(self.missing),
            "failed": dict(self.failed or {}),
            "notes": notes,
        }

    def _absence(self, label: ClassLabel) -> dict[str, Any]:
        scored = [s.overlaps[label.name] for s in self.scores if label.name in s.overlaps]
        absent = [overlap for overlap in scored if overlap.n_ref == 0]
        wrong = sum(overlap.n_pred > 0 for overlap in absent)
        return {
            "label": class_key(label),
            "cases_with_class": len(scored) - len(absent),
            "cases_without_class": len(absent),
            "false_positive_rate": wrong / len(absent) if absent else None,
            "cases_not_annotated": len(self.scores) - len(scored),
        }


def class_key(label: ClassLabel) -> str:
    """nnU-Net's key of a class in a summary: "3", or "(1, 2)" for a region."""
    return str(label.values) if label.is_region else str(label.values[0])


def evaluate_folders(
    predictions: Path,
    truth: Path,
    classes: Sequence[ClassLabel],
    *,
    ignore_value: int | None = None,
    subjects: Mapping[str, str] | None = None,
    not_annotated: Mapping[str, frozenset[str]] | None = None,
    absent_is_background: bool = True,
    assume_spacing: AssumedSpacing = None,
    predicted_as: Mapping[str, tuple[int, ...]] | None = None,
    cases: Sequence[str] | None = None,
    seed: int = 0,
    workers: int = 0,
    progress: Progress | None = None,
) -> Summary:
    """Score every label map of `truth` (or of `cases`) against the prediction of the same name.

    classes: what is scored; their values are looked for in both folders' label maps, but for
    classes of `predicted_as`, which have other values in the predictions.
    ignore_value: voxels of the truth that count nowhere. subjects: case -> subject, default the
    case itself. not_annotated: case -> classes that are not scored in it. absent_is_background:
    False where a class without a voxel in the truth was not contoured there. assume_spacing: mm,
    for files of either folder that do not say where their voxels are.
    raises DataRefused where no case could be scored, UsageError for a folder or case that is not
    there.
    """
    found, missing = pair_files(predictions, truth, cases, subjects or {}, not_annotated or {})
    if not found:
        raise DataRefused(
            "no label map has a prediction of the same name",
            file=predictions,
            found=f"missing: {', '.join(missing[:10])}" if missing else "no label maps",
            expected=f"files named as those in {truth}",
            fix="check the two folders",
        )
    payloads = [
        EvaluationPayload(
            files, tuple(classes), ignore_value, absent_is_background, assume_spacing, predicted_as
        )
        for files in found
    ]
    jobs = [CaseJob(payload.files.case, payload) for payload in payloads]
    run = run_cases(jobs, evaluate_case, workers=workers, progress=progress, label="evaluate")
    scores, failed = [], {}
    for files, outcome in zip(found, run.outcomes, strict=True):
        if outcome.result is None:
            failed[files.case] = str((outcome.error or {}).get("problem", "failed"))
        else:
            scores.append(_score(files, outcome.result.receipt))
    if not scores:
        run.raise_for_failures()
    return Summary(tuple(classes), tuple(scores), missing, failed, seed)


def pair_files(
    predictions: Path,
    truth: Path,
    cases: Sequence[str] | None,
    subjects: Mapping[str, str],
    not_annotated: Mapping[str, frozenset[str]],
) -> tuple[list[ScoredFiles], tuple[str, ...]]:
    """Files of both folders by case name, whatever their endings, and the cases without one."""
    predicted, labelled = _volumes(predictions), _volumes(truth)
    wanted = sorted(labelled) if cases is None else sorted(set(cases))
    unknown = [case for case in wanted if case not in labelled]
    if unknown:
        guess = nearest(unknown[0], list(labelled))
        raise UsageError(
            f"case {unknown[0]!r} has no label map",
            file=truth,
            expected=f"one of {len(labelled)} label maps",
            fix=f"did you mean {guess!r}?" if guess else "check the list of cases",
        )
    found = [
        ScoredFiles(
            case,
            predicted[case],
            labelled[case],
            subjects.get(case, case),
            not_annotated.get(case, frozenset()),
        )
        for case in wanted
        if case in predicted
    ]
    return found, tuple(case for case in wanted if case not in predicted)


def evaluate_case(payload: EvaluationPayload) -> CaseResult:
    """Score one case; for `execution.run_cases`."""
    files = payload.files
    truth = read_labels(files.truth, assume_spacing=payload.assume_spacing)
    prediction = read_labels(files.prediction, assume_spacing=payload.assume_spacing)
    notes = _check_geometry(prediction, truth)
    overlaps = compute_overlaps(
        prediction.array,
        truth.array,
        {c.name: c.values for c in payload.classes if c.name not in files.not_annotated},
        ignore_value=payload.ignore_value,
        predicted_as=payload.predicted_as,
    )
    counts = {
        name: [o.tp, o.fp, o.fn, o.tn]
        for name, o in overlaps.items()
        if o.n_ref > 0 or payload.absent_is_background
    }
    return CaseResult(
        "done",
        {
            "overlaps": counts,
            "notes": notes,
            "truth_values": np.unique(truth.array).tolist(),
            "predicted_values": np.unique(prediction.array).tolist(),
        },
    )


def write_summary(path: Path, summary: Summary) -> Path:
    """Publish summary.json and, beside it, the same numbers per case as CSV."""
    text = json.dumps(summary.to_json(), indent=4, sort_keys=True, ensure_ascii=False)
    table = table_path(path)
    for target in (path, table):
        remove_leftovers(target.parent, target.name)
    publish_text(table, summary.to_csv())
    return publish_text(path, text + "\n")


def table_path(path: Path) -> Path:
    """Where the CSV of a summary stands."""
    return path.with_suffix(".csv")


def require_folder(folder: Path) -> None:
    """Raises UsageError where there is no such folder."""
    if not folder.is_dir():
        raise UsageError("no such folder", file=folder, fix="check the path")


def _volumes(folder: Path) -> dict[str, Path]:
    require_folder(folder)
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file() or not is_volume(path):
            continue
        other = found.setdefault(volume_name(path), path)
        if other != path:
            raise DataRefused(
                f"two files for case {volume_name(path)!r}",
                file=path,
                found=f"{other.name} and {path.name}",
                expected=f"one file ending in {', '.join(VOLUME_ENDINGS)}",
                fix="remove one of them",
            )
    return found


def _check_geometry(prediction: Volume, truth: Volume) -> list[str]:
    match = prediction.grid.compare(truth.grid)
    if match is GridMatch.DIFFERENT:
        raise DataRefused(
            "prediction and truth do not lie on one grid",
            file=prediction.path,
            found=_describe(prediction),
            expected=f"{_describe(truth)} as in {truth.path}",
            fix="predict the image that the label map belongs to, or resample one of them",
        )
    if match is GridMatch.ROUNDING:
        return ["the grids of prediction and truth differ by rounding"]
    return []


def _describe(volume: Volume) -> str:
    grid = volume.grid
    spacing = " x ".join(f"{edge:.6g}" for edge in grid.spacing_zyx)
    origin = ", ".join(f"{value:.6g}" for value in grid.affine[:3, 3])
    return f"shape (z, y, x) {grid.shape_zyx}, spacing {spacing} mm, origin ({origin}) mm"


def _score(files: ScoredFiles, receipt: Mapping[str, Any]) -> CaseScore:
    overlaps = {name: Overlap(*counts) for name, counts in receipt["overlaps"].items()}
    return CaseScore(
        files,
        overlaps,
        tuple(receipt["notes"]),
        frozenset(receipt["truth_values"]),
        frozenset(receipt["predicted_values"]),
    )


def _nanmean(values: Sequence[float]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is nan, as it should
        return float(np.nanmean(values)) if values else math.nan


def _csv_number(value: float) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else repr(value)

"""`iris demo`: the whole way on generated phantoms, offline, or on a public data set.

References are encoded into a task, the other cases are predicted and evaluated, and one picture
per case is drawn. A rerun in the same folder goes on where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from iris_cli.dataset.phantoms import phantom_name, write_phantom_dataset
from iris_cli.dataset.raw import Case, RawDataset, read_raw_dataset
from iris_cli.errors import DataRefused, UsageError
from iris_cli.execution.progress import Progress
from iris_cli.execution.signals import StopRequest
from iris_cli.files.download import OnProgress, download
from iris_cli.report.overlay import Overlay, draw_overlay
from iris_cli.volume.reading import read_image, read_labels
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from iris_cli.workflows.evaluate import EvaluateReport, evaluate
from iris_cli.workflows.predict import PredictReport, PredictSettings, predict

REFERENCE_SEEDS = (1, 2, 3)
QUERY_SEEDS = (4, 5, 6, 7)
REFERENCES = 3
QUERIES = 10


@dataclass(frozen=True)
class PublicSet:
    """A public archive: where it is, its checksum, and the converter for it."""

    url: str
    checksum: str
    converter: str
    licence: str


PUBLIC_SETS: Mapping[str, PublicSet] = MappingProxyType(
    {
        # The checksum is the one MONAI publishes for its mirror of the Decathlon.
        "hippocampus": PublicSet(
            "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar",
            "md5:9d24dba78a72977dbd1d2e110310f31b",
            "msd",
            "CC BY-SA 4.0",
        )
    }
)


@dataclass(frozen=True)
class DemoReport:
    """What the demo made, and where."""

    folder: Path
    task: Path
    prediction: PredictReport
    evaluation: EvaluateReport
    pictures: tuple[Path, ...]


def run_demo(
    folder: Path,
    *,
    data: str | None = None,
    source: PublicSet | None = None,
    model: str | None = None,
    device: str = "cpu",
    on_stage: Callable[[str], None] = lambda stage: None,
    on_download: OnProgress | None = None,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> DemoReport:
    """Run the demo in `folder`.

    data: None for phantoms, or a name of `PUBLIC_SETS`. source: another place to get it from.
    on_stage: called with one sentence before each stage.
    raises UsageError for an unknown set, EnvironmentProblem where a download does not finish.
    """
    if data is None:
        on_stage("generating torso phantoms (CT-like, no patient data)")
        raw_folder, references, queries = _phantoms(folder)
    else:
        raw_folder, references, queries = _public(folder, data, source, on_stage, on_download)
    raw = read_raw_dataset(raw_folder, strict=False)
    cases = [raw.case(name) for name in queries]
    on_stage(f"encoding a task from {len(references)} references: {', '.join(references)}")
    task = folder / f"{data or 'torso'}.task.pt"
    encode_task(
        ReferenceSource(raw_folder, cases=tuple(references)), task, model=model, device=device
    )
    on_stage(f"segmenting {len(cases)} other cases, all classes in one pass")
    prediction = predict(
        [case.images[0] for case in cases],
        folder / "predictions",
        task=task,
        settings=PredictSettings(model=model, device=device, workers=_workers(device)),
        progress=progress,
        stop=stop,
    )
    prediction.run.raise_for_failures()
    on_stage("comparing with the truth")
    evaluation = evaluate(folder / "predictions", _truth_folder(cases), cases=queries)
    on_stage("drawing one picture per case")
    pictures = tuple(_draw(folder, raw, case, evaluation) for case in cases)
    return DemoReport(folder, task, prediction, evaluation, pictures)


def _phantoms(folder: Path) -> tuple[Path, list[str], list[str]]:
    raw = folder / "raw" / "Dataset901_Torso"
    if not (raw / "dataset.json").exists():  # written last
        write_phantom_dataset(raw, REFERENCE_SEEDS, queries=QUERY_SEEDS)
    names = ([phantom_name(seed) for seed in seeds] for seeds in (REFERENCE_SEEDS, QUERY_SEEDS))
    references, queries = names
    return raw, references, queries


def _public(
    folder: Path,
    data: str,
    source: PublicSet | None,
    on_stage: Callable[[str], None],
    on_download: OnProgress | None,
) -> tuple[Path, list[str], list[str]]:
    from dataset_conversion.registry import convert

    public = source or PUBLIC_SETS.get(data)
    if public is None:
        raise UsageError(
            f"there is no demo data {data!r}", expected="one of " + ", ".join(PUBLIC_SETS)
        )
    raw = folder / "raw" / data
    if not raw.exists():
        on_stage(f"downloading {public.url} (licence of the data: {public.licence})")
        archive = folder / public.url.rpartition("/")[2]
        download(public.url, archive, checksum=public.checksum, on_progress=on_download)
        on_stage("converting it into a raw data set")
        convert(public.converter, archive, raw)
    references, queries = _split(read_raw_dataset(raw, strict=False))
    return raw, references, queries


def _split(raw: RawDataset) -> tuple[list[str], list[str]]:
    """The first cases as references, the next as queries; no subject is on both sides."""
    labelled = [case for case in raw.cases if case.label is not None]
    first: dict[str, Case] = {}
    for case in labelled:
        first.setdefault(case.subject, case)
    chosen = list(first.values())
    if len(chosen) <= REFERENCES:
        raise DataRefused(
            "too few labelled subjects for a demo",
            file=raw.folder,
            found=str(len(chosen)),
            expected=f"more than {REFERENCES}",
        )
    queries = chosen[REFERENCES : REFERENCES + QUERIES]
    return [case.name for case in chosen[:REFERENCES]], [case.name for case in queries]


def _truth_folder(cases: Sequence[Case]) -> Path:
    label = cases[0].label
    if label is None:
        raise DataRefused("a demo case has no label map", file=cases[0].images[0])
    return label.parent


def _workers(device: str) -> int:
    """One worker per core, at most four: a phantom needs about one gigabyte."""
    return min(4, os.cpu_count() or 1) if device == "cpu" else 0


def _draw(folder: Path, raw: RawDataset, case: Case, evaluation: EvaluateReport) -> Path:
    image = read_image(case.images[0])
    prediction = read_labels(folder / "predictions" / f"{case.name}.nii.gz")
    truth = read_labels(_truth_folder([case]) / f"{case.name}.nii.gz")
    scores = next(s for s in evaluation.summary.scores if s.files.case == case.name)
    dice = [overlap.dice for overlap in scores.overlaps.values() if overlap.n_ref]
    overlay = Overlay(
        title=f"{case.name}: mean Dice {sum(dice) / max(len(dice), 1):.3f}",
        image=image.array,
        prediction=prediction.array,
        truth=truth.array,
        spacing_zyx=image.grid.spacing_zyx,
        class_names={label.value: label.name for label in raw.classes},
    )
    return draw_overlay(folder / "pictures" / f"{case.name}.png", overlay)

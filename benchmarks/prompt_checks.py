"""Does the prompt matter? python benchmarks/prompt_checks.py DATA WORK [--model M]

Two checks of METHOD.md 8 on the hippocampus set (DATA is a folder of sets in the form images/ +
labels/ + info.json): references are the first three fully contoured training cases, queries the
validation list.

swapped: anterior and posterior are exchanged in the references' label maps; the output must then
hold the posterior part under the anterior's value and the other way round.
ball: the references' masks are replaced by a ball of the hippocampus' volume whose centre is at
least 10 mm from the organ; the output must not be the hippocampus.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from iris_cli.evaluation.metrics import compute_metrics
from iris_cli.model.model import load_model
from iris_cli.volume.reading import read_labels, volume_name
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from iris_cli.workflows.predict import PredictSettings, predict

RESULTS = Path(__file__).parent / "results" / "prompt_checks.md"
REFERENCES = 3
DISTANCE_MM = 10.0
SWAPPED_AT_LEAST, BALL_BELOW = 0.75, 0.2

Labels = npt.NDArray[np.uint8]
Change = Callable[[Labels, Sequence[float]], Labels]


def main() -> None:
    """Run both checks, print a table and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", help="name or folder; default: the model that ships")
    arguments = parser.parse_args()
    source = arguments.data / "hippocampus"
    lists = json.loads((arguments.data / "splits.json").read_text())["sets"]["hippocampus"]
    references, queries = lists["train"][:REFERENCES], lists["validate"]

    swapped = _predict(source, references, queries, _swap, "swapped", arguments)
    ball = _predict(source, references, queries, ball_beside, "ball", arguments)
    truths = {name: _labels(source / "labels", name) for name in queries}
    rows = [
        ("posterior under the anterior's value", _dice(swapped, truths, [1], [2])),
        ("anterior under the posterior's value", _dice(swapped, truths, [2], [1])),
        ("hippocampus in the ball's output", _dice(ball, truths, [1], [1, 2])),
    ]
    text = _table(rows, load_model(arguments.model).card.fingerprint)
    sys.stdout.write(text)
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(text)


def _swap(labels: Labels, _: Sequence[float]) -> Labels:
    swapped: Labels = np.array([0, 2, 1], np.uint8)[labels]
    return swapped


def ball_beside(labels: Labels, spacing_mm: Sequence[float]) -> Labels:
    """A ball of the foreground's volume, its centre at least 10 mm from the foreground.

    Of all such centres the one is taken from which the ball sticks out of the volume least; the
    part over the foreground, if any, is cut off.
    """
    edge = np.asarray(spacing_mm)
    organ = labels > 0
    radius = (3 * organ.sum() * edge.prod() / (4 * np.pi)) ** (1 / 3)
    far = ndimage.distance_transform_edt(~organ, sampling=edge) >= DISTANCE_MM
    if not far.any():
        raise SystemExit(f"no voxel is {DISTANCE_MM:g} mm from the foreground")
    centres = np.argwhere(far)
    margins = np.minimum(centres, np.array(labels.shape) - 1 - centres) * edge
    centre = centres[int(np.argmax(np.minimum(margins, radius).sum(axis=1)))]
    offset = (np.indices(labels.shape).reshape(3, -1).T - centre) * edge
    inside = (np.linalg.norm(offset, axis=1) <= radius).reshape(labels.shape)
    ball: Labels = (inside & ~organ).astype(np.uint8)
    return ball


def _predict(
    source: Path,
    references: Sequence[str],
    queries: Sequence[str],
    change: Change,
    check: str,
    arguments: argparse.Namespace,
) -> dict[str, Labels]:
    """Output (z, y, x) of every query, given references with changed label maps."""
    folder = arguments.work / "prompt" / check
    folder.mkdir(parents=True, exist_ok=True)
    pairs = []
    for name in references:
        image = nib.load(_file(source / "labels", name))
        labels = np.asarray(image.dataobj).astype(np.uint8)
        changed = change(labels, [float(s) for s in image.header.get_zooms()[:3]])
        nib.save(nib.Nifti1Image(changed, image.affine), folder / f"{name}.nii.gz")
        pairs.append((_file(source / "images", name), folder / f"{name}.nii.gz"))
    encoded = encode_task(
        ReferenceSource(pairs=tuple(pairs)), folder / "check.task.pt", model=arguments.model
    )
    predicted = predict(
        [_file(source / "images", name) for name in queries],
        folder / "predictions",
        task=encoded.path,
        settings=PredictSettings(model=arguments.model),
    )
    predicted.run.raise_for_failures()
    return {name: _labels(folder / "predictions", name) for name in queries}


def _dice(
    found: dict[str, Labels],
    truths: dict[str, Labels],
    values: Sequence[int],
    true_values: Sequence[int],
) -> float:
    """Mean over queries of the Dice between an output value and classes of the truth."""
    return float(
        np.mean(
            [
                compute_metrics(np.isin(found[n], values), np.isin(truths[n], true_values)).dice
                for n in truths
            ]
        )
    )


def _labels(folder: Path, name: str) -> Labels:
    found: Labels = read_labels(_file(folder, name)).array
    return found


def _file(folder: Path, name: str) -> Path:
    found = [path for path in folder.glob(f"{name}*") if volume_name(path) == name]
    if len(found) != 1:
        raise SystemExit(f"{folder}: {len(found)} files of {name}")
    return found[0]


def _table(rows: Sequence[tuple[str, float]], fingerprint: str) -> str:
    bars = (f">= {SWAPPED_AT_LEAST}", f">= {SWAPPED_AT_LEAST}", f"< {BALL_BELOW}")
    today = datetime.datetime.now(tz=datetime.UTC).date()
    lines = [
        f"\n## {today}, model {fingerprint[:12]}, hippocampus, {REFERENCES} references",
        "",
        "| check | Dice | bar |",
        "|---|---:|---|",
        *(f"| {name} | {dice:.3f} | {bar} |" for (name, dice), bar in zip(rows, bars, strict=True)),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

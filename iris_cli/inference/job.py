"""One case of a folder: its label map, and the receipt that proves it.

A case is done when OUT/.iris/<case>.json speaks of these inputs (voxels of the query, task, model,
parameters) and the label map on the disk has the content that the receipt names. The voxels of a
query whose file has the size and time that the receipt saw are taken to be those it saw; the output
is always read.
"""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iris_cli.errors import EnvironmentProblem, IrisError
from iris_cli.execution.jobs import CaseResult
from iris_cli.execution.receipts import Receipt, matches, read_receipt, write_receipt
from iris_cli.files.publish import remove_leftovers
from iris_cli.inference.case import Prediction, kept_classes, predict_volume
from iris_cli.inference.memory import NO_LIMITS, Limits, Means, case_of, in_file, ladder
from iris_cli.inference.streaming import How
from iris_cli.model.model import Model, load_model
from iris_cli.network.precision import Precision
from iris_cli.task.task_file import Task, TaskClass, read_task
from iris_cli.volume.reading import AssumedSpacing, Volume, read_grid, read_image, read_labels
from iris_cli.volume.writing import write_labels

HIDDEN = ".iris"
OUTPUT_ENDING = ".nii.gz"
# Counts up when iris begins to give other labels for the same inputs.
INFERENCE_VERSION = 2


@dataclass(frozen=True)
class PredictPayload:
    """All that `predict_case` needs, picklable.

    model: name or folder, None for the default. classes: names to keep, None for all. precision: of
    the computation. skip_empty: see `streaming.How`. limits: of memory.
    """

    case: str
    query: Path
    output: Path
    task: Path
    model: str | None = None
    classes: tuple[str, ...] | None = None
    device: str = "cpu"
    precision: Precision = "fp32"
    skip_empty: bool = False
    window_batch: int = 1
    limits: Limits = NO_LIMITS
    assume_spacing: AssumedSpacing = None

    @property
    def receipt(self) -> Path:
        return self.output.parent / HIDDEN / f"{self.case}.json"


def predict_case(payload: PredictPayload) -> CaseResult:
    """Segment one query, or keep what is there; for `execution.run_cases`.

    raises DataRefused where the query cannot be used, EnvironmentProblem where the output cannot be
    written; nothing is left half written, and nothing of other inputs.
    """
    started = time.perf_counter()
    model, task = load_payload(payload)
    remove_leftovers(payload.output.parent, payload.output.name)
    remove_leftovers(payload.receipt.parent, payload.receipt.name)
    kept = _kept(payload, model, task)
    if kept is not None:
        return CaseResult("kept", kept.model_dump(mode="json"))
    # What is there is of other inputs: were this case to fail, it would pass for its result.
    _remove(payload.receipt)
    _remove(payload.output)
    source = file_state(payload.query)  # before reading
    volume = read_image(payload.query, assume_spacing=payload.assume_spacing)
    sweep = _Sweep(payload, model, task, volume)
    prediction = sweep.run()
    names = {entry.value: entry.name for entry in _entries(task, payload)}
    write_labels(payload.output, prediction.labels, volume.native, class_names=names)
    assumed = volume.native.assumed_spacing_xyz
    receipt = Receipt(
        case=payload.case,
        content={
            "inputs": _inputs(payload, model, task, volume.content_hash(), assumed),
            "output": {
                "sha256": _output_hash(payload, assumed),
                "voxels": prediction.voxels,
                "confidence": {n: round(c, 3) for n, c in prediction.confidence.items()},
            },
            "flags": list(prediction.flags),
            "statistics": prediction.statistics,
            "windows": asdict(prediction.windows),
        },
        run={
            "source": source,
            "seconds": round(time.perf_counter() - started, 3),
            "peak_memory_mb": peak_memory_mb(),
            "predicted_memory_mb": round(sweep.need.ram / 2**20, 1),
            "memory_steps": sweep.means.said(sweep.first),
            "device": payload.device,
            "versions": _versions(),
        },
    )
    write_receipt(payload.receipt, receipt)
    return CaseResult("done", receipt.model_dump(mode="json"))


class _Sweep:
    """The labels of one query, by means that fit the memory it may take.

    raises EnvironmentProblem where it fits by none.
    """

    def __init__(self, payload: PredictPayload, model: Model, task: Task, volume: Volume) -> None:
        self._payload, self._model, self._task, self._volume = payload, model, task, volume
        self.first = Means(window_batch=payload.window_batch)
        self._case = case_of(
            model, task, volume.grid, volume.array.nbytes, payload.device, payload.precision
        )
        self._limits = payload.limits.with_free_memory_of(payload.device)
        self.means, self.need = self._case.fit(self.first, self._limits)

    def run(self) -> Prediction:
        """Where the device runs out of memory all the same, one rung further down, once more."""
        rungs = [*ladder(self.first, cuda=self._case.cuda)]
        while True:
            try:
                return self._try(self.means)
            except torch.OutOfMemoryError as error:
                below = rungs[rungs.index(self.means) + 1 :]
                if not below:
                    raise EnvironmentProblem(
                        "the device has not enough memory for this query",
                        found=str(error).partition(".")[0],
                        fix="use a device with more memory, or --device cpu",
                    ) from error
                self.means = below[0]
            torch.cuda.empty_cache()

    def _try(self, means: Means) -> Prediction:
        payload, folder = self._payload, self._payload.output.parent / HIDDEN
        how = How(
            device=payload.device,
            precision=payload.precision,
            skip_empty=payload.skip_empty,
            means=means,
            make_labels=functools.partial(in_file, folder) if means.labels_in_file else np.zeros,
        )
        return predict_volume(
            self._model, self._task, self._volume, classes=payload.classes, how=how
        )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            "what an earlier run left cannot be removed",
            file=path,
            found=error.strerror,
            fix="choose another output folder",
        ) from error


def file_state(path: Path) -> list[int] | None:
    """Size and modification time (ns) of a file, None where it cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return None  # reading it will say what is wrong
    return [status.st_size, status.st_mtime_ns]


def _entries(task: Task, payload: PredictPayload) -> list[TaskClass]:
    header = task.header
    return [header.classes[index] for index in kept_classes(header, payload.classes)]


def load_payload(payload: PredictPayload) -> tuple[Model, Task]:
    """Model and task of a case; the last ones stay loaded in this process."""
    state = file_state(payload.task)
    return _load_once(payload.task, tuple(state or ()), payload.model, payload.device)


@functools.lru_cache(maxsize=1)
def _load_once(
    path: Path, state: tuple[int, ...], model: str | None, device: str
) -> tuple[Model, Task]:
    """`state` makes a changed task file another one."""
    task = read_task(path)
    return load_model(model, device=device), task


def _inputs(
    payload: PredictPayload, model: Model, task: Task, query: str, assumed: AssumedSpacing
) -> dict[str, Any]:
    """assumed: spacing in mm that the query itself does not give, None where it does."""
    return {
        "query": query,
        "assumed_spacing_xyz": assumed,
        "task": task.fingerprint(),
        "model": model.card.fingerprint,
        "parameters": {
            "inference": INFERENCE_VERSION,
            "classes": [entry.name for entry in _entries(task, payload)],
            "precision": payload.precision,
            "skip_empty": payload.skip_empty,
        },
    }


def _kept(payload: PredictPayload, model: Model, task: Task) -> Receipt | None:
    """The receipt of a case that need not be computed again, else None."""
    receipt = read_receipt(payload.receipt)
    if receipt is None or not payload.output.exists():
        return None
    try:
        state = file_state(payload.query)
        if state is not None and state == receipt.run.get("source"):
            query = receipt.content["inputs"]["query"]
            native = read_grid(payload.query, assume_spacing=payload.assume_spacing)
        else:
            volume = read_image(payload.query, assume_spacing=payload.assume_spacing)
            query, native = volume.content_hash(), volume.native
        assumed = native.assumed_spacing_xyz
        if not matches(receipt, _inputs(payload, model, task, query, assumed)):
            return None
        written = _output_hash(payload, assumed)
        return receipt if written == receipt.content["output"]["sha256"] else None
    except (IrisError, KeyError, TypeError):
        return None  # a receipt that proves nothing, or an output that cannot be read


def _output_hash(payload: PredictPayload, assumed: AssumedSpacing) -> str:
    return read_labels(payload.output, assume_spacing=assumed).content_hash()


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far, None where the system does not tell."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _versions() -> dict[str, str]:
    import importlib.metadata

    names = ("iris-segmentation", "torch", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found

"""One case of a folder: its label map, and the receipt that proves it.

A case is done when OUT/.iris/<case>.json speaks of these inputs (voxels of the query, task, model,
parameters) and the label map on the disk has the content that the receipt names. The voxels of a
query whose file has the size and time that the receipt saw are taken to be those it saw; the output
is always read.
"""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iris_cli.errors import EnvironmentProblem, IrisError
from iris_cli.execution.jobs import CaseResult
from iris_cli.execution.receipts import Receipt, matches, read_receipt, write_receipt
from iris_cli.execution.stages import stage
from iris_cli.files.publish import remove_leftovers
from iris_cli.inference.case import kept_classes
from iris_cli.inference.memory import NO_LIMITS, Limits
from iris_cli.inference.outputs import PLAIN, Outputs
from iris_cli.inference.predictor import Predictor, Sweep
from iris_cli.inference.products import Products, are_there, files_of
from iris_cli.model.model import Model, load_model
from iris_cli.network.precision import Precision
from iris_cli.task.task_file import Task, TaskClass, read_task
from iris_cli.volume.reading import AssumedSpacing, read_grid, read_image

HIDDEN = ".iris"
# Counts up when iris begins to give other labels for the same inputs.
INFERENCE_VERSION = 2


@dataclass(frozen=True)
class PredictPayload:
    """All that `predict_case` needs, picklable.

    parts: fingerprints of the tasks that `task` was made of. joint: they are decoded together.
    model: name or folder, None for the default. classes: names to keep, None for all. precision: of
    the computation. skip_empty: see `streaming.How`. limits: of memory.
    outputs: what to write.
    """

    case: str
    query: Path
    output: Path
    task: Path
    parts: tuple[str, ...] = ()
    joint: bool = False
    model: str | None = None
    classes: tuple[str, ...] | None = None
    device: str = "cpu"
    precision: Precision = "fp32"
    skip_empty: bool = False
    window_batch: int = 1
    limits: Limits = NO_LIMITS
    assume_spacing: AssumedSpacing = None
    outputs: Outputs = PLAIN

    @property
    def receipt(self) -> Path:
        return self.output.parent / HIDDEN / f"{self.case}.json"


def predict_case(payload: PredictPayload) -> CaseResult:
    """Segment one query, or keep what is there; for `execution.run_cases`.

    raises DataRefused where the query cannot be used, EnvironmentProblem where the output cannot be
    written; nothing is left half written, and nothing of other inputs.
    """
    started = time.perf_counter()
    with stage("loading task and model", payload.task):
        predictor = predictor_of(payload)
    model, task = predictor.model, predictor.task
    remove_leftovers(payload.output.parent, payload.output.name)
    remove_leftovers(payload.receipt.parent, payload.receipt.name)
    kept = _kept(payload, model, task)
    if kept is not None:
        return CaseResult("kept", kept.model_dump(mode="json"))
    # What is there is of other inputs: were this case to fail, it would pass for its result.
    _remove_earlier(payload)
    source = file_state(payload.query)  # before reading
    with stage("reading the query", payload.query):
        volume = read_image(payload.query, assume_spacing=payload.assume_spacing)
    folder = payload.receipt.parent
    products = Products(payload.case, payload.output, folder, payload.outputs)
    with contextlib.closing(products):
        sweep = Sweep(predictor, volume, folder, products.listen, payload.outputs.write_voxel)
        prediction = sweep.run()
        made = products.write(predictor, volume, prediction)
    assumed = volume.native.assumed_spacing_xyz
    receipt = Receipt(
        case=payload.case,
        content={
            "inputs": _inputs(payload, model, task, volume.content_hash(), assumed),
            **made,
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


def _remove_earlier(payload: PredictPayload) -> None:
    receipt = read_receipt(payload.receipt)
    content = {} if receipt is None else receipt.content
    for path in files_of(content, payload.case, payload.output):
        _remove(path)
    _remove(payload.receipt)  # last, as it names the files


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


def predictor_of(payload: PredictPayload) -> Predictor:
    """Model and task of a case; the last ones stay loaded in this process."""
    state = file_state(payload.task)
    model, task = _load_once(payload.task, tuple(state or ()), payload.model, payload.device)
    return Predictor(
        model,
        task,
        classes=payload.classes,
        device=payload.device,
        precision=payload.precision,
        skip_empty=payload.skip_empty,
        window_batch=payload.window_batch,
        limits=payload.limits,
    )


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
    several = {"tasks": list(payload.parts), "joint": payload.joint} if payload.parts else {}
    return {
        "query": query,
        "assumed_spacing_xyz": assumed,
        "task": task.fingerprint(),
        **several,
        "model": model.card.fingerprint,
        "parameters": {
            "inference": INFERENCE_VERSION,
            "classes": [entry.name for entry in _entries(task, payload)],
            "precision": payload.precision,
            "skip_empty": payload.skip_empty,
            **payload.outputs.parameters(),
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
        there = are_there(receipt.content, payload.case, payload.output, assumed)
        return receipt if there else None
    except (IrisError, KeyError, TypeError):
        return None  # a receipt that proves nothing, or an output that cannot be read


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

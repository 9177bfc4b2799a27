"""One case of a folder: its label map, and the receipt that proves it.

A case is done when OUT/.iris/<case>.json speaks of these inputs (voxels of the query, task, model,
parameters) and the label map on the disk has the content that the receipt names. The voxels of a
query whose files are, to the file system, those that the receipt saw are taken to be those it saw;
where they are not, the voxels decide. The output is always read.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iris_cli.errors import DataRefused, IrisError
from iris_cli.execution.announced import Announced
from iris_cli.execution.jobs import CaseResult
from iris_cli.execution.overlap import OwnTime, Steps, in_steps
from iris_cli.execution.receipts import Receipt, matches, read_receipt, write_receipt
from iris_cli.execution.stages import stage
from iris_cli.files.publish import remove_leftovers
from iris_cli.files.state import file_state
from iris_cli.inference.case import kept_classes
from iris_cli.inference.earlier import forget_note, make_way, remove_half_notes
from iris_cli.inference.memory import NO_LIMITS, Limits
from iris_cli.inference.outputs import PLAIN, Outputs
from iris_cli.inference.predictor import Predictor, Sweep
from iris_cli.inference.products import Products, are_there, planned_files
from iris_cli.model.model import Model, load_model
from iris_cli.network.precision import Precision
from iris_cli.task.task_file import Task, TaskClass, read_task
from iris_cli.volume.reading import AssumedSpacing, read_grid, read_image
from iris_cli.volume.state import data_files, volume_state

HIDDEN = ".iris"
# Counts up when iris begins to give other labels for the same inputs.
INFERENCE_VERSION = 2


@dataclass(frozen=True)
class PredictPayload:
    """All that `predict_case` needs, picklable.

    fingerprint: of the content that `task` has to have, None for any. parts: fingerprints of the
    tasks that `task` was made of. joint: they are decoded together. model: name or folder, None for
    the default. classes: names to keep, None for all. precision: of the computation. any_precision:
    a case that is done in another one is done. skip_empty: see `streaming.How`. limits: of memory.
    outputs: what to write.
    """

    case: str
    query: Path
    output: Path
    task: Path
    fingerprint: str | None = None
    parts: tuple[str, ...] = ()
    joint: bool = False
    model: str | None = None
    classes: tuple[str, ...] | None = None
    device: str = "cpu"
    precision: Precision = "fp32"
    any_precision: bool = False
    skip_empty: bool = False
    window_batch: int = 1
    limits: Limits = NO_LIMITS
    assume_spacing: AssumedSpacing = None
    outputs: Outputs = PLAIN

    @property
    def receipt(self) -> Path:
        return self.output.parent / HIDDEN / f"{self.case}.json"


@in_steps
def predict_case(payload: PredictPayload) -> Steps:
    """Segment one query, or keep what is there; for `execution.run_cases`.

    raises DataRefused where the query cannot be used, EnvironmentProblem where the output cannot be
    written. Nothing is left half written, and what an earlier run left stays, with its receipt,
    until there is a new result to take its place.
    """
    own = OwnTime()
    with stage("loading task and model", payload.task):
        predictor = predictor_of(payload)
    model, task = predictor.model, predictor.task
    remove_leftovers(payload.output.parent, payload.output.name)
    remove_leftovers(payload.receipt.parent, payload.receipt.name)
    remove_half_notes(payload.receipt)
    kept = _kept(payload, model, task)
    if kept is not None:
        forget_note(payload.receipt)
        return CaseResult("kept", kept.model_dump(mode="json"))
    source = volume_state(payload.query)  # before reading
    with stage("reading the query", payload.query):
        volume = read_image(payload.query, assume_spacing=payload.assume_spacing)
    with own.paused():
        yield
    folder = payload.receipt.parent
    products = Products(payload.case, payload.output, folder, payload.outputs)
    with contextlib.closing(products):
        sweep = Sweep(predictor, volume, folder, products.listen, payload.outputs.write_voxel)
        prediction = sweep.run()
        with own.paused():
            yield
        planned = tuple(
            planned_files(payload.outputs, predictor.names, payload.case, payload.output)
        )
        spared = data_files(payload.query)
        make_way(payload.receipt, payload.case, payload.output, planned, spared)
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
            "preview": payload.outputs.previews,
            "seconds": round(own.seconds, 3),
            "peak_memory_mb": peak_memory_mb(),
            "predicted_memory_mb": round(sweep.need.ram / 2**20, 1),
            "memory_steps": sweep.means.said(sweep.first),
            "device": payload.device,
            "versions": _versions(),
        },
    )
    write_receipt(payload.receipt, receipt)
    forget_note(payload.receipt)
    return CaseResult("done", receipt.model_dump(mode="json"))


def claim_preview(payload: PredictPayload) -> None:
    """Note in the receipt that the picture of the case is ours, before it is drawn."""
    receipt = read_receipt(payload.receipt)
    if receipt is not None and not receipt.run.get("preview"):
        run = {**receipt.run, "preview": True}
        write_receipt(payload.receipt, receipt.model_copy(update={"run": run}))


def _entries(task: Task, payload: PredictPayload) -> list[TaskClass]:
    header = task.header
    return [header.classes[index] for index in kept_classes(header, payload.classes)]


def predictor_of(payload: PredictPayload) -> Predictor:
    """Model and task of a case; the last ones stay loaded in this process.

    raises DataRefused where the task file holds another task than the run began with.
    """
    state = file_state(payload.task)
    model, task = _load_once(payload.task, tuple(state or ()), payload.model, payload.device)
    found = task.fingerprint()
    if payload.fingerprint not in (None, found):
        raise DataRefused(
            "the task file was replaced while the run was going",
            file=payload.task,
            found=f"fingerprint {found[:12]}",
            expected=f"fingerprint {str(payload.fingerprint)[:12]}, as when the run began",
            fix="run the same line again, which does the cases left with the new task",
        )
    return Predictor(
        model,
        task,
        classes=payload.classes,
        device=payload.device,
        precision=payload.precision,
        skip_empty=payload.skip_empty,
        window_batch=payload.window_batch,
        limits=payload.limits,
        comparison=payload.outputs.comparison,
    )


@functools.lru_cache(maxsize=1)
def _load_once(
    path: Path, state: tuple[str | int, ...], model: str | None, device: str
) -> tuple[Model, Task]:
    """`state` makes a changed task file another one."""
    task = read_task(path)
    return load_model(model, device=device), task


def inputs_of_line(payload: PredictPayload, model: Model, task: Task) -> dict[str, Any]:
    """What the results of all cases of a line depend on, whatever their queries are.

    Without the precision where any will do; JSON values only.
    """
    inputs = _inputs_of_all(payload, model, task)
    if payload.any_precision:
        del inputs["parameters"]["precision"]
    return inputs


def is_of_line(receipt: Receipt | None, line: Mapping[str, Any]) -> bool:
    """Whether a receipt is of a case of this line (`inputs_of_line`), whatever its query was."""
    if receipt is None:
        return False
    said = receipt.content.get("inputs", {})
    own = {key: said.get(key) for key in ("query", "assumed_spacing_xyz")}
    computed = {"precision": said.get("parameters", {}).get("precision")}
    return matches(
        receipt, {**own, **line, "parameters": {**computed, **line.get("parameters", {})}}
    )


def cases_left(announced: Announced, folder: Path) -> set[str]:
    """The cases of a list without a receipt of its line in `folder` (OUT/.iris)."""
    receipts = ((case, read_receipt(folder / f"{case}.json")) for case in announced.cases)
    return {case for case, receipt in receipts if not is_of_line(receipt, announced.inputs)}


def _inputs(
    payload: PredictPayload, model: Model, task: Task, query: str, assumed: AssumedSpacing
) -> dict[str, Any]:
    """assumed: spacing in mm that the query itself does not give, None where it does."""
    own = {"query": query, "assumed_spacing_xyz": assumed}
    return {**own, **_inputs_of_all(payload, model, task)}


def _inputs_of_all(payload: PredictPayload, model: Model, task: Task) -> dict[str, Any]:
    several = {"tasks": list(payload.parts), "joint": payload.joint} if payload.parts else {}
    return {
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
        state = volume_state(payload.query)
        if state is not None and state == receipt.run.get("source"):
            query = receipt.content["inputs"]["query"]
            native = read_grid(payload.query, assume_spacing=payload.assume_spacing)
        else:
            volume = read_image(payload.query, assume_spacing=payload.assume_spacing)
            query, native = volume.content_hash(), volume.native
        assumed = native.assumed_spacing_xyz
        inputs = _inputs(payload, model, task, query, assumed)
        if payload.any_precision:
            inputs["parameters"]["precision"] = receipt.content["inputs"]["parameters"]["precision"]
        if not matches(receipt, inputs):
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

"""`iris predict`: label maps for a folder, a file or a list of volumes, by one task.

Every case has its receipt in OUT/.iris; a rerun computes what has no matching one and nothing else,
and any number of processes may run the same line on one folder.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iris_cli.dataset.queries import FoundQueries, QueryVolume, search_files, search_queries
from iris_cli.errors import DataRefused, EnvironmentProblem, IrisError, UsageError
from iris_cli.execution.announced import ANNOUNCED, Announced, announce, withdraw_finished
from iris_cli.execution.dask_engine import DaskEngine
from iris_cli.execution.failures import FAILURES, noted
from iris_cli.execution.jobs import CaseJob, RunSummary, run_cases
from iris_cli.execution.kept_workers import KeptWorkers
from iris_cli.execution.parts import WHOLE, Part, Share, run_part
from iris_cli.execution.progress import Progress
from iris_cli.execution.receipts import read_receipt
from iris_cli.execution.schedule import Rules
from iris_cli.execution.signals import StopRequest
from iris_cli.inference.case import RECIPES as QUERY_RECIPES
from iris_cli.inference.case import kept_classes
from iris_cli.inference.class_masks import check_mask_files
from iris_cli.inference.job import (
    HIDDEN,
    PredictPayload,
    cases_left,
    inputs_of_line,
    is_of_line,
    predict_case,
    predictor_of,
)
from iris_cli.inference.legend import SharedLegend, read_legend
from iris_cli.inference.memory import NO_LIMITS, Limits, Means, case_of
from iris_cli.inference.outputs import PLAIN, PREVIEWS, Outputs
from iris_cli.inference.probabilities import PROBABILITIES
from iris_cli.inference.products import planned_files
from iris_cli.inference.sliding import Decoding
from iris_cli.inference.statistics_file import write_statistics
from iris_cli.inference.windows import window_starts
from iris_cli.model.model import Model, read_card
from iris_cli.network.precision import Precision, choose_precision
from iris_cli.task.combining import Grouping
from iris_cli.task.encoding import RECIPES
from iris_cli.task.task_file import Task, TaskClass, read_task
from iris_cli.volume.reading import AssumedSpacing, is_volume, read_grid
from iris_cli.volume.state import data_files
from iris_cli.workflows.combined import TaskOfCall, own_model, task_of_call, under_fingerprint
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from iris_cli.workflows.previews import predict_and_draw

REFERENCES_TASK = "references.task.pt"
REFERENCES_CHANNEL = 0
NAMED_CASES = 3
"""Named for every kind of flag at the end; all of them stand in the receipts."""
READ_BYTES = 4
"""Of a voxel in memory, where nothing but its header was read: float32, or less."""


@dataclass(frozen=True)
class PredictSettings:
    """How to predict.

    model: name or folder, None for the task's own where it ships, else the default. grouping: of
    the classes of several tasks. renumber: label values 1..n in the order of the tasks. classes:
    names to keep, None for all. precision: auto, fp32, bf16 or fp16. skip_empty: leave out windows
    without anything bright in or around them. limits: of the memory of one case. workers: processes
    of one thread each, 0 works in this one. devices: of the workers, in turn, in place of `device`.
    dask: a cluster that does the cases in place of workers (`DaskEngine`), None for none.
    case_timeout_s: longest time of one case, with workers.
    assume_spacing: mm, for files without position. outputs: what to write. part: the share of the
    cases to work on first. only_failed: of these those that an earlier run noted as failed. strict:
    the first failed case ends the run.
    """

    model: str | None = None
    grouping: Grouping = Grouping.APART
    renumber: bool = False
    classes: tuple[str, ...] | None = None
    device: str = "cpu"
    precision: str = "auto"
    skip_empty: bool = False
    window_batch: int = 1
    limits: Limits = NO_LIMITS
    workers: int = 0
    devices: tuple[str, ...] = ()
    dask: str | None = None
    case_timeout_s: float | None = None
    assume_spacing: AssumedSpacing = None
    outputs: Outputs = PLAIN
    part: Part = WHOLE
    only_failed: bool = False
    strict: bool = False

    @property
    def precision_of_all(self) -> Precision:
        """One for all cases, whichever device each of them meets; see `choose_precision`."""
        devices = self.devices or (self.device,)
        found = {choose_precision(self.precision, device) for device in devices}
        return found.pop() if len(found) == 1 else "fp32"

    @property
    def overlap(self) -> bool:
        """Whether reading and writing overlap with computing where there are no workers.

        Where memory is counted, one case is in it at a time; where the first failure ends the run,
        no other case has been begun.
        """
        return self.limits.ram is None and not self.strict


@dataclass(frozen=True)
class PredictReport:
    """What became of every case; receipts are in the outcomes' results.

    share: what was taken of the cases. notes: what should be said about the choice of the inputs.
    parts: fingerprints of the tasks that `task` was made of.
    """

    run: RunSummary
    output: Path
    task: Task
    classes: tuple[TaskClass, ...]
    share: Share
    notes: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return self.run.exit_code

    def case_rows(self) -> list[dict[str, Any]]:
        """One row per case for a table."""
        rows = []
        for outcome in self.run.outcomes:
            receipt = {} if outcome.result is None else outcome.result.receipt
            content = receipt.get("content", {})
            rows.append(
                {
                    "case": outcome.name,
                    "status": outcome.status,
                    "seconds": round(outcome.seconds, 1),
                    "windows": content.get("windows", {}).get("all"),
                    "classes found": sum(
                        voxels > 0
                        for voxels in content.get("output", {}).get("voxels", {}).values()
                    ),
                    "flags": len(content.get("flags", ())),
                }
            )
        return rows

    def flags(self) -> dict[str, list[str]]:
        """Case -> what the user should look at."""
        results = [(o.name, o.result.receipt) for o in self.run.outcomes if o.result is not None]
        return {
            name: list(receipt["content"]["flags"])
            for name, receipt in results
            if receipt["content"]["flags"]
        }

    def quality(self) -> dict[str, dict[str, dict[str, str]]]:
        """Case -> class -> what is unusual about it -> the numbers (`inference.quality`)."""
        results = [(o.name, o.result.receipt) for o in self.run.outcomes if o.result is not None]
        found = {name: receipt["content"].get("quality", {}) for name, receipt in results}
        return {name: classes for name, classes in found.items() if classes}

    def quality_summary(self) -> list[str]:
        """A line for every kind of flag and class: in how many cases, and the first of them."""
        cases: dict[tuple[str, str], list[str]] = {}
        for case, classes in self.quality().items():
            for name, flags in classes.items():
                for kind in flags:
                    cases.setdefault((kind, name), []).append(case)
        return [
            f"{name}: {kind} in {self._counted(found)}"
            for (kind, name), found in sorted(cases.items())
        ]

    def flag_summary(self) -> list[str]:
        """A line for every flag of a whole case: in how many cases, and the first of them."""
        cases: dict[str, list[str]] = {}
        for case, flags in self.flags().items():
            for flag in flags:
                cases.setdefault(flag, []).append(case)
        return [f"{flag}, in {self._counted(found)}" for flag, found in cases.items()]

    def _counted(self, found: Sequence[str]) -> str:
        """found: names of cases."""
        named = ", ".join(found[:NAMED_CASES]) + (", ..." if len(found) > NAMED_CASES else "")
        return f"{len(found)} of {len(self.run.outcomes)} cases ({named})"

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "output": str(self.output),
            "task": self.task.fingerprint(),
            "tasks": list(self.parts) or [self.task.fingerprint()],
            "classes": {entry.name: entry.value for entry in self.classes},
            "cases": self.case_rows(),
            "flags": self.flags(),
            "quality": self.quality(),
            "part": self.share.to_json(),
            "ended_by": self.run.ended_by.name if self.run.ended_by else None,
            "notes": list(self.notes),
            "failed": {outcome.name: outcome.error for outcome in self.run.failed},
            "exit_code": self.exit_code,
        }


@dataclass(frozen=True)
class CaseEstimate:
    """What one case would take; `problem` where not even its header can be read.

    volume_mb, writing_mb: of memory_mb, its voxels and labels, and what writing takes beside them.
    """

    case: str
    windows: int = 0
    seconds: float = 0.0
    memory_mb: float = 0.0
    volume_mb: float = 0.0
    writing_mb: float = 0.0
    problem: str | None = None


@dataclass(frozen=True)
class PredictEstimate:
    """What a run would do, from headers and the time of one window; nothing was written."""

    cases: tuple[CaseEstimate, ...]
    classes: tuple[TaskClass, ...]
    task: Task
    seconds_per_window: float
    workers: int
    overlap: bool = False
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return sum(case.seconds for case in self.cases) / max(1, self.workers)

    @property
    def memory_mb(self) -> float:
        """Of the largest cases: one in each worker; or one that is computed, and beside it the
        volumes of one that is read and one that is written, and what writing takes."""
        largest = sorted((case.memory_mb for case in self.cases), reverse=True)
        if self.overlap and self.workers <= 0:
            beside = sorted((case.volume_mb for case in self.cases), reverse=True)
            writing = max((case.writing_mb for case in self.cases), default=0.0)
            overlapping = len([case for case in self.cases if case.memory_mb]) > 1
            return sum(largest[:1]) + sum(beside[1:3]) + (writing if overlapping else 0.0)
        return sum(largest[: max(1, self.workers)])

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "classes": {entry.name: entry.value for entry in self.classes},
            "modality": self.task.header.modality,
            "spacing_mm": self.task.header.spacing_mm,
            "seconds_per_window": self.seconds_per_window,
            "seconds": self.seconds,
            "memory_mb": self.memory_mb,
            "cases": [vars(case) for case in self.cases],
            "notes": list(self.notes),
        }


def predict(
    inputs: Path | Sequence[Path],
    output: Path,
    *,
    task: Path | Sequence[Path] | None = None,
    references: ReferenceSource | None = None,
    settings: PredictSettings | None = None,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
    kept: KeptWorkers | None = None,
) -> PredictReport:
    """Segment every volume of `inputs` into `output`.

    inputs: a folder, a volume, a text file that lists volumes, or several of these.
    task: one or more task files, worked over one encoding of each query; or references, which are
    encoded first, into OUT/.iris/references.task.pt, and used under their fingerprint.
    kept: workers of an earlier call, with the model they have loaded.
    A case that fails does not end the run: it is in the report, whose exit code is 3 then (4 where
    nothing could be done because of the data).
    raises UsageError where an output would replace a query or stand among the queries, and for
    options that the profile of the model cannot serve, DataRefused for a task of another model or
    an OUT whose labels.json gives a value or name of this task another meaning, Stopped on a signal
    with everything so far saved.
    """
    settings = settings or PredictSettings()
    if settings.dask is not None:
        DaskEngine(settings.dask, output)  # refuses what it cannot use before anything is read
    prepared = _prepare(inputs, output, task, references, settings, output / HIDDEN)
    legend = _legend_of(prepared.classes)
    with SharedLegend(output, legend, output / HIDDEN / "lines") as shared:
        run, share = _run(prepared, output, settings, progress, stop, kept)
        write_statistics(output, output / HIDDEN)
        shared.finish(lambda: _others(prepared, output, run))
    parts = prepared.payloads[0].parts
    return PredictReport(run, output, prepared.task, prepared.classes, share, prepared.notes, parts)


def _run(
    prepared: _Prepared,
    output: Path,
    settings: PredictSettings,
    progress: Progress | None,
    stop: StopRequest | None,
    kept: KeptWorkers | None,
) -> tuple[RunSummary, Share]:
    hidden = output / HIDDEN
    failures = hidden / FAILURES
    engine = None if settings.dask is None else DaskEngine(settings.dask, hidden.absolute())
    payloads = [p if engine is None else _for_elsewhere(p) for p in prepared.payloads]

    def run(jobs: Sequence[CaseJob], waits: bool) -> RunSummary:
        return run_cases(
            jobs,
            predict_and_draw if settings.outputs.previews else predict_case,
            workers=settings.workers,
            overlap=settings.overlap,
            timeout_s=settings.case_timeout_s,
            progress=progress,
            label="predict" if waits else "predict, left by others",
            claims=hidden / "claims",
            rules=Rules(strict=settings.strict, waits=waits, failures=failures),
            assign=functools.partial(_on_device, settings.devices) if settings.devices else None,
            engine=engine,
            kept=kept,
            stop=stop,
        )

    if not settings.only_failed:  # those say themselves that they are left
        announce(hidden / ANNOUNCED, prepared.announced)
    summary, share = run_part(
        [CaseJob(payload.case, payload) for payload in payloads],
        settings.part,
        run,
        is_done=lambda job: _is_done(job.payload, prepared.announced.inputs),
        failed=lambda: noted(failures),
        only_failed=settings.only_failed,
    )
    withdraw_finished(hidden / ANNOUNCED, lambda announced: _is_left(announced, hidden))
    return summary, share


def _is_left(announced: Announced, hidden: Path) -> bool:
    """Whether a case of a list may still be done: its file is there, and it has not failed."""
    left = cases_left(announced, hidden) - noted(hidden / FAILURES).keys()
    return any(Path(announced.cases[case]).exists() for case in left)


def _for_elsewhere(payload: PredictPayload) -> PredictPayload:
    """With paths that mean the same in a process of another working folder."""
    model = payload.model
    if model is not None and Path(model).exists():
        model = str(Path(model).absolute())
    return replace(
        payload,
        query=payload.query.absolute(),
        output=payload.output.absolute(),
        task=payload.task.absolute(),
        model=model,
    )


def _on_device(devices: Sequence[str], payload: PredictPayload, worker: int) -> PredictPayload:
    return replace(payload, device=devices[worker % len(devices)])


def dry_run(
    inputs: Path | Sequence[Path],
    output: Path,
    *,
    task: Path | Sequence[Path] | None = None,
    references: ReferenceSource | None = None,
    settings: PredictSettings | None = None,
) -> PredictEstimate:
    """What `predict` would do, how long it would take, and how much memory; writes nothing.

    Times one window on this machine as it is now; memory follows from shapes
    (`inference.memory`), on top of what this process holds.
    """
    import tempfile

    settings = settings or PredictSettings()
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepare(inputs, output, task, references, settings, Path(folder))
    seconds = _time_window(prepared, settings)
    mine = settings.part.of(prepared.payloads)
    if settings.only_failed:
        failed = noted(output / HIDDEN / FAILURES)
        mine = [payload for payload in mine if payload.case in failed]
    cases = [_estimate(payload, prepared, seconds) for payload in mine]
    return PredictEstimate(
        tuple(cases),
        prepared.classes,
        prepared.task,
        seconds,
        settings.workers,
        settings.overlap,
        prepared.notes,
    )


@dataclass(frozen=True)
class _Prepared:
    """All checks passed: what would be run."""

    payloads: tuple[PredictPayload, ...]
    model: Model
    task: Task
    classes: tuple[TaskClass, ...]
    notes: tuple[str, ...]

    @functools.cached_property
    def announced(self) -> Announced:
        """All of it, whoever does which part."""
        return Announced(
            inputs=inputs_of_line(self.payloads[0], self.model, self.task),
            cases={p.case: os.path.abspath(p.query) for p in self.payloads},
        )


def _prepare(
    inputs: Path | Sequence[Path],
    output: Path,
    task: Path | Sequence[Path] | None,
    references: ReferenceSource | None,
    settings: PredictSettings,
    hidden: Path,
) -> _Prepared:
    if (not task) == (references is None):
        raise UsageError(
            "predicting needs a task or references",
            found="both" if task else "neither",
            fix="give -t TASK, or --refs REFS in its place",
        )
    if output.exists() and not output.is_dir():
        raise UsageError("the output is a folder", file=output, found="a file")
    _refuse_input_folder(inputs, output)
    if references is not None:
        # Looked for first, so that a refusal of the inputs comes before anything is written.
        for query in _find(inputs, REFERENCES_CHANNEL).queries:
            _target(query, output, settings.outputs)
        check_options(settings, read_card(settings.model).profile)
        # No classes are picked here: the group stays whole, so that --classes means the same
        # with a task and with references.
        encoded = hidden / REFERENCES_TASK
        encode_task(
            references,
            encoded,
            model=settings.model,
            device=settings.device,
            precision=settings.precision,
            channel=REFERENCES_CHANNEL,
            assume_spacing=settings.assume_spacing,
            reuse=True,
        )
        task = under_fingerprint(encoded, hidden)
    assert task is not None
    files = [task] if isinstance(task, Path) else list(task)
    first = read_task(files[0]).header
    name = settings.model or own_model(first, files[0])
    found = _find(inputs, first.channel)
    used = task_of_call(files, hidden, grouping=settings.grouping, renumber=settings.renumber)
    payloads = tuple(_payload(query, output, used, name, settings) for query in found.queries)
    loaded = predictor_of(payloads[0])
    model, header = loaded.model, loaded.task.header
    # What the profile makes of it, so that receipts say what was computed in.
    precision = RECIPES[model.card.profile].precision(payloads[0].precision, settings.device)
    used_as = loaded.task.fingerprint()
    payloads = tuple(replace(p, precision=precision, fingerprint=used_as) for p in payloads)
    kept = kept_classes(header, settings.classes)
    classes = tuple(header.classes[index] for index in kept)
    check_outputs(output, classes, settings, model.card.profile)
    _refuse_outputs_on_queries(payloads, loaded.names)
    notes = (*found.notes, *_made_anew(payloads, used_as))
    return _Prepared(payloads, model, loaded.task, classes, notes)


def _made_anew(payloads: Sequence[PredictPayload], task: str) -> Iterator[str]:
    """What is said of results in OUT that another task made. task: fingerprint of this one."""
    receipts = (read_receipt(payload.receipt) for payload in payloads)
    inputs = (receipt.content.get("inputs", {}) for receipt in receipts if receipt is not None)
    others = sum(said.get("task", task) != task for said in inputs)
    if others:
        yield (
            f"{others} of {len(payloads)} cases here are of another task: they are made anew, and "
            "their files that this line does not ask for are removed"
        )


def check_outputs(
    output: Path, classes: Sequence[TaskClass], settings: PredictSettings, profile: str
) -> None:
    """Whether these outputs of these classes can be made by this profile and written to OUT.

    raises UsageError and DataRefused where they cannot.
    """
    check_options(settings, profile)
    outputs, names = settings.outputs, [entry.name for entry in classes]
    outputs.cleaning.check(names)
    if outputs.multilabel:
        check_mask_files(names)
    read_legend(output, _legend_of(classes))


def check_options(settings: PredictSettings, profile: str) -> None:
    """Refuse options that a profile cannot serve, whatever the classes are (UsageError)."""
    outputs = settings.outputs
    asked = {
        "--skip-empty": settings.skip_empty,
        "--probabilities": outputs.probabilities is not None,
        "--multilabel": outputs.multilabel,
        "--check-tokens": outputs.check_tokens,
    }
    QUERY_RECIPES[profile].check([option for option, given in asked.items() if given])


def _legend_of(classes: Sequence[TaskClass]) -> dict[int, str]:
    return {entry.value: entry.name for entry in classes}


def _refuse_outputs_on_queries(
    payloads: Sequence[PredictPayload], names: Mapping[int, str]
) -> None:
    """Refuse a query that lies where any case of this call is written."""
    queries = {
        file.resolve(): payload.query for payload in payloads for file in data_files(payload.query)
    }
    for payload in payloads:
        for path in planned_files(payload.outputs, names, payload.case, payload.output):
            if path.resolve() in queries:
                raise _replaces(queries[path.resolve()])


def _refuse_input_folder(inputs: Path | Sequence[Path], output: Path) -> None:
    for path in [inputs] if isinstance(inputs, Path) else inputs:
        if path.is_dir() and path.resolve() == output.resolve():
            raise UsageError(
                "the output folder is the input folder",
                file=output,
                expected="a folder of its own, as label maps are volumes too",
                fix="choose another output folder",
            )


def _is_done(payload: PredictPayload, line: Mapping[str, Any]) -> bool:
    """Whether a case has a label map of this line, by its receipt; neither voxels are read."""
    return payload.output.exists() and is_of_line(read_receipt(payload.receipt), line)


def _others(prepared: _Prepared, output: Path, run: RunSummary) -> bool:
    """Whether OUT holds volumes that are no output of this line, or of a case that failed in it."""
    done = {outcome.name for outcome in run.outcomes if outcome.result is not None}
    tried = {outcome.name for outcome in run.outcomes}
    elsewhere = [payload for payload in prepared.payloads if payload.case not in tried]
    line = prepared.announced.inputs
    done |= {payload.case for payload in elsewhere if _is_done(payload, line)}
    own = {payload.output.name for payload in prepared.payloads if payload.case in done}
    return any(
        is_volume(path) and not path.name.startswith(".") and path.name not in own
        for path in output.iterdir()
    )


def _find(inputs: Path | Sequence[Path], channel: int) -> FoundQueries:
    paths = [inputs] if isinstance(inputs, Path) else list(inputs)
    if not paths:
        raise UsageError("there is nothing to segment", fix="give a folder, a file or a list")
    files = [path for path in paths if is_volume(path) and not path.is_dir()]
    found = [search_queries(path, channel=channel) for path in paths if path not in files]
    if files:
        distinct = {path.resolve(): path for path in reversed(files)}
        found.append(search_files(sorted(distinct.values()), channel=channel))
    by_name: dict[str, QueryVolume] = {}
    for query in (query for one in found for query in one.queries):
        other = by_name.setdefault(query.name, query)
        if other is not query and other.path.resolve() != query.path.resolve():
            raise DataRefused(
                f"two volumes would have the output {query.name!r}",
                file=query.path,
                found=f"{other.path} and {query.path}",
                fix="rename one of them, or segment them one after the other",
            )
    queries = sorted(by_name.values(), key=lambda query: query.name)
    return FoundQueries(tuple(queries), tuple(note for one in found for note in one.notes))


def _payload(
    query: QueryVolume, output: Path, task: TaskOfCall, model: str | None, settings: PredictSettings
) -> PredictPayload:
    return PredictPayload(
        case=query.name,
        query=query.path,
        output=_target(query, output, settings.outputs),
        task=task.path,
        parts=task.parts,
        joint=task.joint,
        model=model,
        classes=settings.classes,
        device=settings.device,
        precision=settings.precision_of_all,
        # Nodes that choose differently would undo each other's cases.
        any_precision=settings.precision == "auto",
        skip_empty=settings.skip_empty,
        window_batch=settings.window_batch,
        limits=settings.limits,
        assume_spacing=settings.assume_spacing,
        outputs=settings.outputs,
    )


def _target(query: QueryVolume, output: Path, outputs: Outputs) -> Path:
    reserved = {PREVIEWS: outputs.previews, PROBABILITIES: outputs.probabilities is not None}
    if query.name in reserved and (reserved[query.name] or outputs.multilabel):
        raise UsageError(
            f"a case cannot be named {query.name!r} here: a folder of the outputs has that name",
            file=query.path,
            fix="rename the volume, or leave out --previews, --probabilities and --multilabel",
        )
    target = output / f"{query.name}{outputs.ending}"
    if target.resolve() in {file.resolve() for file in data_files(query.path)}:
        raise _replaces(query.path)
    return target


def _replaces(query: Path) -> UsageError:
    return UsageError(
        "the output would replace the volume itself",
        file=query,
        fix="choose another output folder",
    )


def _time_window(prepared: _Prepared, settings: PredictSettings) -> float:
    """Seconds of one window: the faster of two, the first also pays for allocation."""
    edge = prepared.model.card.patch
    image = np.random.default_rng(0).normal(size=(1, edge, edge, edge)).astype(np.float32)
    decode = Decoding(
        prepared.model.network,
        [torch.from_numpy(stage) for stage in prepared.task.tokens],
        prepared.task.header.groups,
        settings.device,
        prepared.payloads[0].precision,
    )
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        for found in decode(image)[0]:
            found.logits().cpu()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _estimate(payload: PredictPayload, prepared: _Prepared, seconds: float) -> CaseEstimate:
    try:
        native = read_grid(payload.query, assume_spacing=payload.assume_spacing).canonical_grid
    except IrisError as error:
        return CaseEstimate(payload.case, problem=error.problem)
    model, task = prepared.model, prepared.task
    working = native.working(task.header.spacing_mm)
    windows = len(window_starts(working.shape_zyx, (model.card.patch,) * 3))
    stored = READ_BYTES * math.prod(native.shape_zyx)
    case = case_of(
        model,
        task,
        native,
        stored,
        payload.device,
        payload.precision,
        write_voxel=payload.outputs.write_voxel,
    )
    first = Means(window_batch=payload.window_batch)
    try:
        _, memory = case.fit(first, payload.limits.with_free_memory_of(payload.device))
    except EnvironmentProblem as error:
        return CaseEstimate(payload.case, windows, problem=str(error.problem))
    return CaseEstimate(
        payload.case,
        windows,
        windows * seconds,
        memory.ram / 2**20,
        (case.native_bytes + case.label_bytes) / 2**20,
        case.writing_bytes / 2**20,
    )

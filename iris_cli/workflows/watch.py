"""`iris predict --watch`: every volume that arrives in a folder, once, as soon as it is whole.

A file is taken for whole when its size and time have not changed for a while and it can be opened.
What is in it decides the prediction as of any file; one that fails is tried again when it changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iris_cli.dataset.layout import list_volumes
from iris_cli.errors import DataRefused, EnvironmentProblem, IrisError, UsageError
from iris_cli.execution.progress import Progress
from iris_cli.execution.signals import StopRequest
from iris_cli.execution.supervisor import wait_for
from iris_cli.volume.reading import volume_ending, volume_name
from iris_cli.workflows.encode_task import ReferenceSource
from iris_cli.workflows.predict import PredictReport, PredictSettings, check_outputs, predict
from iris_cli.workflows.predictor import load_predictor

QUIET_S = 5.0
"""A file that has not changed for so long is whole."""

LOOKS_PER_QUIET = 4
"""How often a folder is looked at while a file has to keep still."""

State = tuple[tuple[int, int], ...]
"""Size and time (ns) of the files of a volume."""


@dataclass(frozen=True)
class Watched:
    """What to watch, and who hears of it.

    folder: of queries. quiet_s: seconds a file has to keep still. on_report: told what became of
    the files that were taken together. on_refused: told of a file that is no query, and why.
    """

    folder: Path
    quiet_s: float
    on_report: Callable[[PredictReport], None]
    on_refused: Callable[[Path, IrisError], None]


@dataclass
class Arrivals:
    """The volumes of a folder that have kept still and were not taken yet.

    quiet_s: seconds they have to keep still.
    """

    folder: Path
    quiet_s: float
    _since: dict[Path, tuple[State, float]] = field(default_factory=dict)
    _taken: dict[Path, State] = field(default_factory=dict)

    def take(self, now: float) -> list[Path]:
        """Volumes that are whole at `now` (seconds of a clock that only grows); each once.

        raises EnvironmentProblem where the folder has gone or may not be read.
        """
        found = []
        try:
            volumes = list_volumes(self.folder)
        except FileNotFoundError:
            raise EnvironmentProblem("the watched folder has gone", file=self.folder) from None
        for path in volumes:
            state = _state(path)
            if state is None or self._taken.get(path) == state:
                continue
            before, since = self._since.setdefault(path, (state, now))
            if before != state:
                self._since[path] = (state, now)
            elif now - since >= self.quiet_s and _opens(path):
                self._taken[path] = state
                del self._since[path]
                found.append(path)
        return found

    def twin(self, path: Path) -> Path | None:
        """Another volume of this name that was taken before: both would have one output."""
        name = volume_name(path)
        return next((p for p in self._taken if p != path and volume_name(p) == name), None)


def watch(
    watched: Watched,
    output: Path,
    *,
    tasks: Sequence[Path] = (),
    references: ReferenceSource | None = None,
    settings: PredictSettings | None = None,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> None:
    """Segment what arrives until a signal comes; the model stays loaded without workers.

    raises Stopped (exit 75) on a signal with everything so far saved, UsageError where there is no
    such folder or the output is that folder, and as `predict` does for tasks that cannot be used.
    """
    settings, stop = settings or PredictSettings(), stop or StopRequest()
    _refuse_early(watched, output, tasks, references, settings)
    arrivals = Arrivals(watched.folder, watched.quiet_s)

    def run(paths: Sequence[Path]) -> None:
        report = predict(
            paths,
            output,
            task=tasks,
            references=references,
            settings=settings,
            progress=progress,
            stop=stop,
        )
        watched.on_report(report)

    with stop:
        while True:
            stop.raise_if_requested("every file that was taken is done")
            paths = _without_twins(arrivals, watched, arrivals.take(time.monotonic()))
            if paths:
                _run_each(paths, watched, run)
            else:
                wait_for([], stop, watched.quiet_s / LOOKS_PER_QUIET)


def _without_twins(arrivals: Arrivals, watched: Watched, paths: Sequence[Path]) -> list[Path]:
    kept = []
    for path in paths:
        twin = arrivals.twin(path)
        if twin is None:
            kept.append(path)
            continue
        problem = DataRefused(
            "another volume of this name was there before", found=str(twin), fix="rename one"
        )
        watched.on_refused(path, problem)
    return kept


def _run_each(
    paths: Sequence[Path], watched: Watched, run: Callable[[Sequence[Path]], None]
) -> None:
    """All together; where one is refused by its name, one after the other."""
    try:
        run(paths)
    except (UsageError, DataRefused) as error:
        if len(paths) == 1:
            watched.on_refused(paths[0], error)
            return
        for path in paths:
            _run_each([path], watched, run)


def _refuse_early(
    watched: Watched,
    output: Path,
    tasks: Sequence[Path],
    references: ReferenceSource | None,
    settings: PredictSettings,
) -> None:
    """What no file that arrives can change."""
    if not watched.folder.is_dir():
        raise UsageError("there is no such folder to watch", file=watched.folder)
    if output.resolve() == watched.folder.resolve():
        raise UsageError(
            "the output folder is the watched one", file=output, fix="choose another output folder"
        )
    if bool(tasks) == (references is not None):
        raise UsageError(
            "watching needs tasks or references",
            found="both" if tasks else "neither",
            fix="give -t TASK, or --refs REFS in its place",
        )
    if tasks:
        loaded = load_predictor(
            tasks,
            model=settings.model,
            grouping=settings.grouping,
            renumber=settings.renumber,
            classes=settings.classes,
            device=settings.device,
            precision=settings.precision,
        )
        check_outputs(output, loaded.entries, settings.outputs)


def _state(path: Path) -> State | None:
    """Of the file; of a header with its voxels in another file, of both."""
    files = [path]
    if volume_ending(path) == ".mhd":
        files = sorted(path.parent.glob(f"{volume_name(path)}.*raw"), key=str) + files
    try:
        return tuple((s.st_size, s.st_mtime_ns) for s in (file.stat() for file in files))
    except OSError:
        return None  # gone meanwhile


def _opens(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return bool(file.read(1))
    except OSError:
        return False

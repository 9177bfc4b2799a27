"""`iris predict --watch`: every volume that arrives in a folder, once, as soon as it is whole.

A file is taken for whole when its size and time have not changed for a while and it can be opened.
What is in it decides the prediction as of any file; one that fails is tried again when it changes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iris_cli.dataset.layout import list_volumes, split_channel
from iris_cli.errors import DataRefused, EnvironmentProblem, IrisError, UsageError
from iris_cli.execution.kept_workers import KeptWorkers
from iris_cli.execution.progress import Progress
from iris_cli.execution.signals import StopRequest
from iris_cli.execution.supervisor import wait_for
from iris_cli.model.model import read_card
from iris_cli.volume.reading import volume_name
from iris_cli.volume.state import VolumeState, volume_state
from iris_cli.workflows.encode_task import ReferenceSource
from iris_cli.workflows.predict import (
    REFERENCES_CHANNEL,
    PredictReport,
    PredictSettings,
    check_options,
    check_outputs,
    predict,
)
from iris_cli.workflows.predictor import load_predictor

QUIET_S = 5.0
"""A file that has not changed for so long is whole."""

LOOKS_PER_QUIET = 4
"""How often a folder is looked at while a file has to keep still."""


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

    quiet_s: seconds they have to keep still. channel: whose files give cases their names.
    """

    folder: Path
    quiet_s: float
    channel: int = 0
    _since: dict[Path, tuple[VolumeState, float]] = field(default_factory=dict)
    _taken: dict[Path, VolumeState] = field(default_factory=dict)
    # With the volume that was there before.
    _refused: dict[Path, tuple[VolumeState, Path]] = field(default_factory=dict)

    def take(self, now: float) -> list[Path]:
        """Volumes that are whole at `now` (seconds of a clock that only grows); each once.

        raises EnvironmentProblem where the folder has gone or may not be read.
        """
        found = []
        try:
            volumes = list_volumes(self.folder)
        except FileNotFoundError:
            raise EnvironmentProblem("the watched folder has gone", file=self.folder) from None
        self._forget({*volumes})
        for path in volumes:
            state = volume_state(path)
            if state is None or state in (self._taken.get(path), self._refusal_of(path)):
                continue
            before, since = self._since.setdefault(path, (state, now))
            if before != state:
                self._since[path] = (state, now)
            elif now - since >= self.quiet_s and _opens(path):
                self._taken[path] = state
                del self._since[path]
                found.append(path)
        return found

    def refuse_twin(self, path: Path) -> Path | None:
        """Give back a taken volume where one of its case was taken before it, which is returned.

        It is not taken again before it changes, or the other one goes.
        """
        case = self.case_of(path)
        before = itertools.takewhile(lambda taken: taken != path, self._taken)
        twin = next((taken for taken in before if self.case_of(taken) == case), None)
        if twin is not None:
            self._refused[path] = (self._taken.pop(path), twin)
        return twin

    def case_of(self, path: Path) -> str:
        """The name of the output of a volume, whatever arrives together with it."""
        name = volume_name(path)
        parts = split_channel(name)
        return parts[0] if parts is not None and parts[1] == self.channel else name

    def _refusal_of(self, path: Path) -> VolumeState | None:
        return self._refused[path][0] if path in self._refused else None

    def _forget(self, there: Collection[Path]) -> None:
        """Drop what is known of volumes that have gone."""
        self._since = {path: seen for path, seen in self._since.items() if path in there}
        self._taken = {path: state for path, state in self._taken.items() if path in there}
        self._refused = {
            path: (state, twin)
            for path, (state, twin) in self._refused.items()
            if path in there and twin in there
        }


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
    """Segment what arrives until a signal comes; the model stays loaded, in workers too.

    raises Stopped (exit 75) on a signal with everything so far saved, UsageError where there is no
    such folder or the output is that folder, and as `predict` does for tasks that cannot be used.
    """
    settings, stop = settings or PredictSettings(), stop or StopRequest()
    channel = _refuse_early(watched, output, tasks, references, settings)
    arrivals = Arrivals(watched.folder, watched.quiet_s, channel)
    kept = KeptWorkers()

    def run(paths: Sequence[Path]) -> None:
        report = predict(
            paths,
            output,
            task=tasks,
            references=references,
            settings=settings,
            progress=progress,
            stop=stop,
            kept=kept,
        )
        watched.on_report(report)

    with stop, kept:
        while True:
            stop.raise_if_requested("every file that was taken is done")
            paths = _without_twins(arrivals, watched, arrivals.take(time.monotonic()))
            for some in _named_alike(arrivals, paths):
                _run_each(some, watched, run)
            if not paths:
                wait_for([], stop, watched.quiet_s / LOOKS_PER_QUIET)


def _without_twins(arrivals: Arrivals, watched: Watched, paths: Sequence[Path]) -> list[Path]:
    kept = []
    for path in paths:
        twin = arrivals.refuse_twin(path)
        if twin is None:
            kept.append(path)
            continue
        problem = DataRefused(
            "another volume of this name was there before", found=str(twin), fix="rename one"
        )
        watched.on_refused(path, problem)
    return kept


def _named_alike(arrivals: Arrivals, paths: Sequence[Path]) -> list[list[Path]]:
    """Volumes that lose a channel from their name, and the others.

    Together they would all keep it: the name of a case would hang on what arrives with it.
    """
    cut = [path for path in paths if arrivals.case_of(path) != volume_name(path)]
    others = [path for path in paths if path not in cut]
    return [some for some in (cut, others) if some]


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
) -> int:
    """What no file that arrives can change. returns: the channel of the volumes."""
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
    if not tasks:
        check_options(settings, read_card(settings.model).profile)
        return REFERENCES_CHANNEL
    loaded = load_predictor(
        tasks,
        model=settings.model,
        grouping=settings.grouping,
        renumber=settings.renumber,
        classes=settings.classes,
        device=settings.device,
        precision=settings.precision,
    )
    check_outputs(output, loaded.entries, settings, loaded.model.card.profile)
    return loaded.task.header.channel


def _opens(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return bool(file.read(1))
    except OSError:
        return False

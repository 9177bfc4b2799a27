"""Forms whose source has to be looked at before it is known which sets it holds.

A folder of several sets, or an archive that is extracted for the time of the conversion. Each set
is converted by the runner as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from dataset_conversion.runner import (
    ConversionReport,
    PlannedConversion,
    plan_conversion,
    run_conversion,
)
from dataset_conversion.scan import Deviation, PublicSet, Refused
from iris_cli.dataset.building import TransferMode
from iris_cli.errors import DataRefused, UsageError
from iris_cli.execution.jobs import RunSummary
from iris_cli.execution.progress import Progress
from iris_cli.execution.signals import StopRequest


@dataclass(frozen=True)
class Member:
    """One set of a source, and the raw folder it becomes; origin: its archive, where it has one."""

    converter: PublicSet
    source: Path
    target: Path
    origin: Path | None = None


@dataclass(frozen=True)
class Members:
    """The sets of a source; `left_out` says what else was there, `refused` what is damaged."""

    sets: tuple[Member, ...]
    left_out: tuple[Deviation, ...] = ()
    refused: tuple[Refused, ...] = ()


OpenSource = Callable[[Path, Path, TransferMode], AbstractContextManager[Members]]
"""(source, target, mode) to the sets, whose files are there until the block ends."""


@dataclass(frozen=True)
class SetFamily:
    """A form of data, and how its sets are found."""

    name: str
    summary: str
    open: OpenSource

    def plan(self, source: Path, *, split: str | None = None) -> PlannedConversion:
        """What would be made of the one set of a source; files appear for a moment at most.

        raises UsageError where the source holds several sets.
        """
        with self.open(source, source, TransferMode.COPY) as members:
            if len(members.sets) != 1:
                raise UsageError(
                    "this source holds several sets",
                    file=source,
                    found=", ".join(member.target.name for member in members.sets[:10]),
                    fix="plan them one by one",
                )
            member = members.sets[0]
            return plan_conversion(member.converter, member.source, split=split)

    def run(
        self,
        source: Path,
        target: Path,
        *,
        mode: TransferMode = TransferMode.COPY,
        split: str | None = None,
        workers: int = 0,
        progress: Progress | None = None,
        stop: StopRequest | None = None,
    ) -> ConversionReport:
        """Convert each set of the source; one report for all of them.

        Of several sets one that is refused fails as a case does: the others go on.
        """
        with self.open(source, target, mode) as members:
            reports, refused = [], list(members.refused)
            for member in members.sets:
                try:
                    report = run_conversion(
                        member.converter,
                        member.source,
                        member.target,
                        mode=mode,
                        split=split,
                        workers=workers,
                        progress=progress,
                        stop=stop,
                        origin=member.origin,
                    )
                except (DataRefused, UsageError) as error:
                    refused.append(Refused(member.target.name, error))
                else:
                    reports.append(report)
            if refused and not reports:
                raise refused[0].error
            return _one_report(reports, members.left_out, refused)


def _one_report(
    reports: Sequence[ConversionReport],
    left_out: Sequence[Deviation],
    refused: Sequence[Refused],
) -> ConversionReport:
    several = len(reports) + len(refused) > 1
    outcomes = [outcome for report in reports for outcome in report.run.outcomes]
    deviations = [
        replace(deviation, message=f"{folder.name}: {deviation.message}") if several else deviation
        for report in reports
        for folder in report.folders
        for deviation in report.deviations
    ]
    return ConversionReport(
        tuple(folder for report in reports for folder in report.folders),
        (*left_out, *deviations),
        RunSummary((*(one.outcome for one in refused), *outcomes)),
    )

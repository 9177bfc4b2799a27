"""Running a converter: scan, split, one job per case, dataset.json last.

    <set>/imagesTr, labelsTr, imagesTs, labelsTs     cases, each under its name whole or not at all
    <set>/dataset.json                               written last: without it, it is no data set
    <set>/conversion.json                            facts of the set, and every deviation
    <set>/splits_final.json                          with --split subject-5fold
    <set>/.iris/convert.json, .iris/convert/*.json   what is converted here, receipts of cases

A killed run goes on when the same line is run again. A case that fails is named at the end, with
exit code 3, and is no part of the set; the others are done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_conversion.case_conversion import (
    ENDING,
    RECEIPTS,
    ConvertPayload,
    Extracted,
    convert_case,
    remove_outputs,
)
from dataset_conversion.facts import SetFacts
from dataset_conversion.raw_set import Split
from dataset_conversion.scan import Deviation, FoundCase, PublicSet, Refused, Scan
from dataset_conversion.source_tree import SourceTree, natural_key
from dataset_conversion.splits import SplitCases, folds, split_cases
from iris_cli.dataset.building import TransferMode
from iris_cli.dataset.dataset_json import FILE_NAME, Role, write_dataset_json
from iris_cli.dataset.layout import check_case_name
from iris_cli.errors import DataRefused, UsageError
from iris_cli.execution.jobs import CaseJob, RunSummary, run_cases
from iris_cli.execution.progress import Progress
from iris_cli.execution.receipts import read_receipt
from iris_cli.execution.signals import StopRequest
from iris_cli.files.publish import publish_json, published_json, remove_leftovers
from iris_cli.files.schema import read_json

MARK = Path(".iris/convert.json")
REPORT = "conversion.json"
SPLITS_FINAL = "splits_final.json"
_DEFAULT_ROLE: dict[Split, Role] = {Split.TRAINING: "train", Split.TEST: "test"}


@dataclass(frozen=True)
class PlannedConversion:
    """What would be made: the cases with their roles, and how they deviate from the set."""

    facts: SetFacts
    cases: tuple[FoundCase, ...]
    deviations: tuple[Deviation, ...]
    has_folds: bool = False
    refused: tuple[Refused, ...] = ()

    def rows(self) -> list[dict[str, str]]:
        """One row per case for a table."""
        return [
            {
                "case": case.name,
                "subject": case.person,
                "folder": f"images{case.split}",
                "role": role_of(case),
                "channels": str(len(case.images)),
                "label map": "yes" if case.label is not None else "no",
            }
            for case in self.cases
        ]


@dataclass(frozen=True)
class ConversionReport:
    """What was made: the folders, what deviates, and the outcome of every case."""

    folders: tuple[Path, ...]
    deviations: tuple[Deviation, ...]
    run: RunSummary

    @property
    def exit_code(self) -> int:
        return self.run.exit_code


def plan_conversion(
    converter: PublicSet, source: Path, *, split: str | None = None
) -> PlannedConversion:
    """Find the cases by name; nothing is written and no volume is opened.

    raises DataRefused where nothing of the set is in the source.
    """
    tree = SourceTree(source)
    scan = converter.scan(tree)
    _refuse_bad_scan(scan, source)
    split_up: SplitCases = split_cases(scan.cases, split, scan.facts)
    cases = sorted(split_up.cases, key=lambda case: natural_key(case.name))
    deviations = [
        *_counted(scan),
        *(Deviation(f"also in other sets: {text}") for text in scan.facts.duplicates),
        *scan.deviations,
        *split_up.deviations,
        *(Deviation(f"{one.error.problem}: not converted", (one.name,)) for one in scan.refused),
        *_left_over(tree),
    ]
    return PlannedConversion(
        scan.facts, tuple(cases), tuple(deviations), split_up.has_folds, scan.refused
    )


def run_conversion(
    converter: PublicSet,
    source: Path,
    target: Path,
    *,
    mode: TransferMode = TransferMode.COPY,
    split: str | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
    origin: Path | None = None,
) -> ConversionReport:
    """Convert `source` into the raw folder `target`; goes on where a killed run ended.

    origin: the archive that `source` is the extracted content of.
    raises UsageError where `target` holds something else, DataRefused where the source is not
    this set, EnvironmentProblem for a disk that is full or may not be read or written, Stopped.
    """
    planned = plan_conversion(converter, source, split=split)
    _claim_target(target, planned.facts.name, origin or source)
    left = _forget_other_cases(target, planned.cases)
    extracted = None if origin is None else Extracted(origin, source)
    jobs = [
        CaseJob(case.name, ConvertPayload(target, case, planned.facts, mode, extracted))
        for case in planned.cases
    ]
    run = run_cases(
        jobs,
        convert_case,
        workers=workers,
        progress=progress,
        label=f"converting {planned.facts.name}",
        claims=target / RECEIPTS / "claims",
        stop=stop,
    )
    deviations = (*planned.deviations, *left, *_found_in_cases(run, planned.facts))
    done = {outcome.name for outcome in run.outcomes if outcome.result is not None}
    _write_descriptions(target, planned, [c for c in planned.cases if c.name in done], deviations)
    outcomes = (*(refused.outcome for refused in planned.refused), *run.outcomes)
    return ConversionReport((target,) if done else (), deviations, RunSummary(outcomes))


def role_of(case: FoundCase) -> Role:
    """The role of a case in dataset.json."""
    return case.role or _DEFAULT_ROLE[case.split]


def _refuse_bad_scan(scan: Scan, source: Path) -> None:
    if not scan.cases and scan.refused:
        raise scan.refused[0].error
    if not scan.cases:
        raise DataRefused(
            f"nothing here looks like {scan.facts.title}",
            file=source,
            found="; ".join(map(str, scan.deviations)) or None,
            expected=scan.facts.layout,
            fix="give the folder of the extracted archive",
        )
    names = [check_case_name(case.name, file=source) for case in scan.cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataRefused(
            "two cases have one name", file=source, found=", ".join(twice[:10]), fix="rename one"
        )


def _counted(scan: Scan) -> list[Deviation]:
    """How many cases are there, where the archive is known to hold another number."""
    labelled = sum(case.label is not None for case in scan.cases)
    counts = {"labelled": labelled, "unlabelled": len(scan.cases) - labelled}
    return [
        Deviation(f"{counts[kind]} {kind} cases found, the archive holds {expected}")
        for kind, expected in (scan.facts.expected or {}).items()
        if counts[kind] != expected
    ]


def _left_over(tree: SourceTree) -> list[Deviation]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in tree.skipped.items():
        by_reason.setdefault(f"files skipped: {reason}", []).append(name)
    if unmatched := tree.unmatched():
        by_reason["volumes that this converter does not use"] = unmatched
    return [Deviation(reason, tuple(names)) for reason, names in by_reason.items()]


def _found_in_cases(run: RunSummary, facts: SetFacts) -> list[Deviation]:
    """What the receipts of the cases say, with the cases by message."""
    by_message: dict[str, list[str]] = {}
    for outcome in run.outcomes:
        if outcome.result is None:
            continue
        for change in outcome.result.receipt["changes"]:
            by_message.setdefault(change, []).append(outcome.name)
        for name in outcome.result.receipt["absent"]:
            by_message.setdefault(f"no voxel of {name}", []).append(outcome.name)
    return [Deviation(message, tuple(names)) for message, names in by_message.items()]


def _claim_target(target: Path, name: str, source: Path) -> None:
    """Make the folder ours, or find that it is ours already, made of the same source."""
    mark, ours = target / MARK, {"set": name, "source": str(source.resolve())}
    found = read_json(mark) if mark.is_file() else None
    if isinstance(found, dict) and found.get("set") == name:
        if found.get("source", ours["source"]) != ours["source"]:
            raise UsageError(
                "the target holds the conversion of another source",
                file=target,
                found=found["source"],
                expected=ours["source"],
                fix="choose another folder with -o, or remove this one",
            )
        if found != ours:
            publish_json(mark, ours)
        return
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(
            "the target exists already, and is no conversion of this set",
            file=target,
            fix="remove it, or choose another folder with -o",
        )
    publish_json(mark, ours)


def _forget_other_cases(target: Path, cases: Sequence[FoundCase]) -> list[Deviation]:
    """Remove what an earlier run made of cases that are no more, its folds and dataset.json."""
    for name in (FILE_NAME, SPLITS_FINAL):
        (target / name).unlink(missing_ok=True)
    remove_leftovers(target, FILE_NAME, SPLITS_FINAL, REPORT)
    remove_leftovers((target / MARK).parent, MARK.name)
    left = []
    names = {case.name for case in cases}
    for path in published_json(target / RECEIPTS):
        receipt = read_receipt(path)
        if receipt is not None and receipt.case not in names:
            remove_outputs(target, receipt)
            path.unlink(missing_ok=True)
            left.append(receipt.case)
    return [Deviation("the source has these cases no more: removed", tuple(left))] if left else []


def _write_descriptions(
    target: Path,
    planned: PlannedConversion,
    done: Sequence[FoundCase],
    deviations: Sequence[Deviation],
) -> None:
    if not done:
        return
    facts = planned.facts
    publish_json(
        target / REPORT,
        {
            "facts": facts.to_json(),
            "deviations": [{"message": d.message, "cases": list(d.cases)} for d in deviations],
        },
    )
    if planned.has_folds:
        publish_json(target / SPLITS_FINAL, folds(done))
    order = facts.regions_class_order
    write_dataset_json(
        target,
        channel_names={str(i): channel for i, channel in enumerate(facts.channels)},
        labels=facts.labels,
        num_training=sum(case.split is Split.TRAINING for case in done),
        file_ending=ENDING,
        regions_class_order=None if order is None else list(order),
        iris=_section(facts, done),
        extra={"name": facts.name, "description": facts.title},
    )


def _section(facts: SetFacts, cases: Sequence[FoundCase]) -> Mapping[str, Any]:
    """The section "iris" of dataset.json: only what says more than its default."""
    section: dict[str, Any] = {
        "case_modality": {c.name: c.modality for c in cases if c.modality},
        "subjects": {c.name: c.person for c in cases if c.person != c.name},
        "roles": {c.name: role_of(c) for c in cases if role_of(c) != _DEFAULT_ROLE[c.split]},
        "not_annotated": {c.name: list(c.not_annotated) for c in cases if c.not_annotated},
        "mirror_pairs": [list(pair) for pair in facts.mirror_pairs],
        "absent_means": "" if facts.absent_means == "background" else facts.absent_means,
        "licence": facts.licence,
        "source": facts.page,
        "citation": facts.citation,
    }
    return {key: value for key, value in section.items() if value}

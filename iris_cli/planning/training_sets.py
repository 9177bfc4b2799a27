"""The sets of a plan as training takes them: stores, case lists, what is held out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from iris_cli.dataset.dataset_json import FILE_NAME
from iris_cli.dataset.raw import Case, RawDataset, read_raw_dataset
from iris_cli.planning.plan import PER_CASE, ChannelPlan, Plan, SetPlan
from iris_cli.preparation.preprocess import GUESS
from iris_cli.preparation.store import view_name
from iris_cli.training.settings import (
    CaseDeclared,
    CaseForTraining,
    LabelTable,
    SetForTraining,
)


def read_trained_raw(plan: Plan, workspace: Path) -> dict[str, RawDataset]:
    """The raw sets of a plan whose dataset.json is still there, by name.

    Training itself needs the store alone: where images or label maps are gone a case is what
    dataset.json says of it, and else what it was when it was planned.
    raises DataRefused where one contradicts itself.
    """
    found = {}
    for name, planned in plan.sets.items():
        folder = plan.raw_folder(workspace, name)
        if (folder / FILE_NAME).is_file():
            known = planned.roles if planned.declared is None else planned.declared.roles
            found[name] = read_raw_dataset(folder, strict=False, known=known)
    return found


def sets_for_training(
    plan: Plan, workspace: Path, raw: Mapping[str, RawDataset] | None = None
) -> tuple[SetForTraining, ...]:
    """One entry per set to which the plan gives cases to train on.

    Cases are the plan's, so nothing else in a store folder is trained on; a set without any is
    held out as a whole. raw: raw sets by name, whose word on their cases the store has to have.
    """
    return tuple(
        SetForTraining(
            name=name,
            store=plan.store_folder(workspace, name),
            cases=_cases(planned, raw.get(name) if raw else None),
            weight=planned.weight,
            pairing=planned.pairing,
            held_out_classes=planned.held_out_classes,
            symmetric=planned.symmetric,
            mirror_pairs=planned.mirror_pairs,
            table=LabelTable(
                classes=planned.classes,
                ignore_value=planned.ignore_value,
                absent_is_background=planned.absent_means == "background",
            ),
        )
        for name, planned in plan.sets.items()
        if planned.train or planned.unlabelled
    )


def modality_of(case: Case, channel: ChannelPlan) -> str:
    """By which a channel of a case is normalised: `ct`, `other`, or `guess`."""
    if channel.modality != PER_CASE:
        return channel.modality
    return case.modality[channel.index] or GUESS


def _cases(planned: SetPlan, raw: RawDataset | None) -> tuple[CaseForTraining, ...]:
    by_name = {case.name: case for case in raw.cases} if raw else {}
    return tuple(
        CaseForTraining(
            view=view_name(case, channel.index),
            labels=labels,
            declared=_declared(by_name[case], channel) if case in by_name else None,
        )
        for cases, labels in ((planned.train, True), (planned.unlabelled, False))
        for case in cases
        for channel in planned.channels
    )


def _declared(case: Case, channel: ChannelPlan) -> CaseDeclared:
    return CaseDeclared(
        subject=case.subject,
        modality=modality_of(case, channel),
        not_annotated=tuple(sorted(case.not_annotated)),
    )

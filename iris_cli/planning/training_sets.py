"""The sets of a plan as training takes them: stores, case lists, what is held out."""

from __future__ import annotations

from pathlib import Path

from iris_cli.planning.plan import Plan, SetPlan
from iris_cli.preparation.store import view_name
from iris_cli.training.settings import CaseForTraining, LabelTable, SetForTraining


def sets_for_training(plan: Plan, workspace: Path) -> tuple[SetForTraining, ...]:
    """One entry per set to which the plan gives cases to train on.

    Cases are the plan's, so nothing else in a store folder is trained on; a set without any is
    held out as a whole.
    """
    return tuple(
        SetForTraining(
            name=name,
            store=plan.store_folder(workspace, name),
            cases=_cases(planned),
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


def _cases(planned: SetPlan) -> tuple[CaseForTraining, ...]:
    return tuple(
        CaseForTraining(view=view_name(case, channel.index), labels=labels)
        for cases, labels in ((planned.train, True), (planned.unlabelled, False))
        for case in cases
        for channel in planned.channels
    )

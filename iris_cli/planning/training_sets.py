"""The sets of a plan as training takes them: stores, case lists, what is held out."""

from __future__ import annotations

from pathlib import Path

from iris_cli.planning.plan import Plan
from iris_cli.preparation.store import view_name
from iris_cli.training.settings import CaseForTraining, SetForTraining


def sets_for_training(plan: Plan, workspace: Path) -> tuple[SetForTraining, ...]:
    """One entry per set; cases are the plan's, so nothing else in a store folder is trained on."""
    return tuple(
        SetForTraining(
            name=name,
            store=plan.store_folder(workspace, name),
            cases=tuple(
                CaseForTraining(view=view_name(case, channel.index), labels=labels)
                for cases, labels in ((planned.train, True), (planned.unlabelled, False))
                for case in cases
                for channel in planned.channels
            ),
            weight=planned.weight,
            pairing=planned.pairing,
            held_out_classes=planned.held_out_classes,
            symmetric=planned.symmetric,
            mirror_pairs=planned.mirror_pairs,
        )
        for name, planned in plan.sets.items()
    )

"""The memory bank of a run as it travels with its model: what the plan knows of every class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from iris_cli.model.bank import Bank, BankEntry
from iris_cli.planning.plan import PER_CASE, Plan, SetPlan


def bank_of_run(plan: Plan, state: Mapping[str, Any]) -> Bank:
    """state: `MemoryBank.state` as checkpoints hold it under `bank`."""
    entries = tuple(
        BankEntry(
            name=name,
            episodes=count,
            modality=_modality(planned),
            spacing_mm=planned.spacing_mm,
            licence=planned.licence,
        )
        for name, count in zip(state["names"], state["counts"], strict=True)
        for planned in (plan.sets[name.partition("/")[0]],)
    )
    return Bank(entries, tuple(state["tokens"]))


def _modality(planned: SetPlan) -> Literal["ct", "other"] | None:
    found = {channel.modality for channel in planned.channels}
    only = found.pop() if len(found) == 1 else PER_CASE
    return "ct" if only == "ct" else "other" if only == "other" else None

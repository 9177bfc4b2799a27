"""A task from the memory bank of a model, without references."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from iris_cli.dataset.classes import Modality
from iris_cli.errors import UsageError
from iris_cli.model.bank import Bank, BankEntry
from iris_cli.model.card import ModelCard
from iris_cli.task.task_file import BankSource, ModelRecord, Task, TaskClass, TaskHeader

# Two sets are worked alike where their spacings differ by less than this part (CONTRACT.md, Grid).
SPACING_TOLERANCE = 1e-3


def task_from_bank(
    card: ModelCard,
    bank: Bank,
    values: Sequence[int],
    *,
    modality: Modality | None = None,
    channel: int = 0,
) -> Task:
    """The entries of a bank as the classes of one task, in their order.

    bank: the picked entries. values: label value of each. modality: as the queries are; None takes
    the entries'. A class is called by its name alone where no other has the same.
    raises UsageError where entries were learned at different modalities or working spacings, or an
    entry was fed by both modalities and none is given.
    """
    _check_twice(bank.entries, values)
    used = _modality(bank.entries, modality)
    spacing, *others = (entry.spacing_mm for entry in bank.entries)
    if not all(math.isclose(other, spacing, rel_tol=SPACING_TOLERANCE) for other in others):
        raise _different(bank.entries, "working spacings")
    names = Counter(entry.class_name for entry in bank.entries)
    classes = tuple(
        TaskClass(
            name=entry.class_name if names[entry.class_name] == 1 else entry.name,
            value=value,
        )
        for entry, value in zip(bank.entries, values, strict=True)
    )
    licences = sorted({entry.licence for entry in bank.entries if entry.licence})
    header = TaskHeader(
        model=ModelRecord(name=card.name, version=card.version, fingerprint=card.fingerprint),
        profile=card.profile,
        spacing_mm=spacing,
        spacing_reason=f"{spacing:.4g} mm: as the model was trained on these classes",
        channel=channel,
        modality=used,
        classes=classes,
        groups=(tuple(range(len(classes))),),
        stages=tuple((stage.shape[1], stage.shape[2]) for stage in bank.tokens),
        bank=tuple(BankSource(name=e.name, episodes=e.episodes) for e in bank.entries),
        licence="; ".join(licences)[:2000] or None,
    )
    return Task(header, tuple(stage.numpy() for stage in bank.tokens))


def _check_twice(entries: Sequence[BankEntry], values: Sequence[int]) -> None:
    for what, items in (("class", [e.name for e in entries]), ("label value", list(values))):
        twice = [item for item, count in Counter(items).items() if count > 1]
        if twice:
            raise UsageError(
                f"one {what} is given twice",
                found=", ".join(str(item) for item in twice),
                fix=f"give every {what} once",
            )


def _modality(entries: Sequence[BankEntry], wanted: Modality | None) -> Modality:
    known: set[Modality] = {e.modality for e in entries if e.modality is not None}
    if len(known) > 1:
        raise _different(entries, "modalities")
    of_entries = next(iter(known), None)
    if of_entries is not None and wanted not in (None, of_entries):
        raise UsageError(
            f"these classes were learned from images of modality {of_entries}",
            found=f"--modality {wanted}",
            fix="leave --modality out, or encode a task from references",
        )
    used = of_entries or wanted
    if used is None:
        raise UsageError(
            "the sets of these classes hold images of both modalities",
            found=", ".join(entry.name for entry in entries),
            fix="say with --modality what the images to segment are: ct or other",
        )
    return used


def _different(entries: Sequence[BankEntry], what: str) -> UsageError:
    return UsageError(
        f"classes that were learned at different {what} cannot be one task",
        found="; ".join(
            f"{e.name}: {e.modality or 'both modalities'}, {e.spacing_mm:.4g} mm" for e in entries
        ),
        expected="one modality and one working spacing",
        fix="encode a task for each of them",
    )

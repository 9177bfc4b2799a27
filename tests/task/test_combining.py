"""Several tasks as one, a task as several, other names."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from iris_cli.errors import DataRefused, UsageError
from iris_cli.task.combining import Grouping, NamedTask, combine, rename, split
from iris_cli.task.task_file import (
    BankSource,
    ModelRecord,
    ReferenceVolumes,
    Task,
    TaskClass,
    TaskHeader,
)

STAGES = ((3, 4), (3, 8))


def make(names: dict[str, int], seed: int = 0, **changes: Any) -> Task:
    values: dict[str, Any] = {
        "model": ModelRecord(name="tiny", version="1", fingerprint="f" * 64),
        "profile": "iris-1",
        "spacing_mm": 1.5,
        "modality": "ct",
        "classes": tuple(
            TaskClass(name=name, value=value, references=1, crops=1, voxels=9, coverage=1)
            for name, value in names.items()
        ),
        "groups": (tuple(range(len(names))),),
        "stages": STAGES,
    }
    random = np.random.default_rng(seed)
    tokens = [random.normal(size=(len(names), *stage)).astype(np.float32) for stage in STAGES]
    return Task(TaskHeader(**(values | changes)), tuple(tokens))


A = NamedTask("a", make({"liver": 1, "spleen": 2}, expected_quality={"liver": 0.9}, licence="X"))
SMALL = ReferenceVolumes(volumes_ml=(3.0,))
B = NamedTask(
    "b",
    make(
        {"kidney": 7},
        seed=1,
        warnings=("small",),
        licence="Y",
        reference_volumes={"kidney": SMALL},
        token_distances={"kidney": (0.1, 0.2)},
    ),
)


def table(task: Task) -> dict[str, int]:
    return {entry.name: entry.value for entry in task.header.classes}


def test_tasks_stay_groups_of_their_own_with_their_tokens() -> None:
    both = combine([A, B])
    assert table(both) == {"liver": 1, "spleen": 2, "kidney": 7}
    assert both.header.groups == ((0, 1), (2,))
    for stage, one, two in zip(both.tokens, A.task.tokens, B.task.tokens, strict=True):
        np.testing.assert_array_equal(stage, np.concatenate([one, two]))
    assert both.header.licence == "X; Y"
    assert both.header.warnings == ("small",)
    assert both.header.expected_quality == {"liver": 0.9}
    assert both.header.reference_volumes == {"kidney": SMALL}


def test_joint_makes_one_group_and_another_fingerprint() -> None:
    joint = combine([A, B], grouping=Grouping.JOINT)
    assert joint.header.groups == ((0, 1, 2),)
    assert joint.fingerprint() != combine([A, B]).fingerprint()


def test_split_undoes_combine() -> None:
    parts = split(combine([A, B]))
    for part, one in zip(parts, (A, B), strict=True):
        assert table(part) == table(one.task)
        assert part.header.expected_quality == one.task.header.expected_quality
        assert part.header.reference_volumes == one.task.header.reference_volumes
        for mine, theirs in zip(part.tokens, one.task.tokens, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_classes_of_a_bank_keep_their_entries_beside_those_of_references() -> None:
    bank = make(
        {"bone": 9},
        bank=(BankSource(name="Set/bone", episodes=5),),
        classes=(TaskClass(name="bone", value=9),),
    )
    both = combine([A, NamedTask("bank", bank)])
    assert [entry.name for entry in both.header.bank] == ["Set/bone"]
    first, second = split(both)
    assert first.header.bank == ()
    assert second.header.bank == bank.header.bank


@pytest.mark.parametrize(
    ("names", "what"),
    [({"liver": 5}, "class name 'liver'"), ({"kidney": 2}, "label value 2")],
)
def test_conflicts_name_both_tasks_and_can_be_renumbered(names: dict[str, int], what: str) -> None:
    other = NamedTask("other", make(names, seed=2))
    with pytest.raises(DataRefused, match=f"'a' and 'other' both have the {what}"):
        combine([A, other])
    found = table(combine([A, other], renumber=True))
    assert list(found.values()) == [1, 2, 3]
    expected = ["liver@a", "spleen", "liver@other"] if "liver" in names else [*A_NAMES, "kidney"]
    assert list(found) == expected


A_NAMES = ("liver", "spleen")


@pytest.mark.parametrize(
    ("changes", "what", "fix"),
    [
        (
            {"model": ModelRecord(name="big", version="2", fingerprint="e" * 64)},
            "model",
            "--model",
        ),
        ({"profile": "mass-1"}, "profile", "encode"),
        ({"spacing_mm": 0.8}, "working spacing", "--spacing"),
        ({"channel": 1}, "channel", "--channel"),
        ({"modality": "other"}, "modality", "--modality"),
    ],
)
def test_tasks_that_want_another_query_are_refused(
    changes: dict[str, Any], what: str, fix: str
) -> None:
    other = NamedTask("b", make({"kidney": 7}, **changes))
    with pytest.raises(DataRefused, match=f"'a' and 'b' differ in their {what}") as refused:
        combine([A, other])
    assert fix in str(refused.value.fix)


def test_a_renamed_copy_of_a_model_is_the_same_model() -> None:
    copy = ModelRecord(name="other", version="7", fingerprint="f" * 64)
    assert table(combine([A, NamedTask("b", make({"kidney": 7}, model=copy))]))["kidney"] == 7
    near = ModelRecord(name="tiny", version="1", fingerprint="f" * 63 + "e")
    with pytest.raises(DataRefused, match="differ in their model") as refused:
        combine([A, NamedTask("b", make({"kidney": 7}, model=near))])
    assert "tiny 1 (fff" in str(refused.value.found)


def test_rename_changes_names_and_values_and_nothing_else() -> None:
    changed = rename(A.task, {"liver": "hepar"}, {"spleen": 11})
    assert table(changed) == {"hepar": 1, "spleen": 11}
    assert changed.header.expected_quality == {"hepar": 0.9}
    assert rename(changed, {"hepar": "liver"}, {"spleen": 2}).fingerprint() == A.task.fingerprint()
    with pytest.raises(UsageError, match="no class 'livr'"):
        rename(A.task, {"livr": "x"})
    with pytest.raises(DataRefused, match="name 'spleen'"):
        rename(A.task, {"liver": "spleen"})
    with pytest.raises(DataRefused, match="value 2"):
        rename(A.task, {}, {"liver": 2})


def test_what_goes_by_class_name_goes_by_the_new_one() -> None:
    twin = NamedTask("twin", make({"kidney": 7}, seed=4))
    both = combine([B, twin], renumber=True)
    assert both.header.reference_volumes == {"kidney@b": SMALL}
    assert both.header.token_distances == {"kidney@b": (0.1, 0.2)}
    assert rename(B.task, {"kidney": "ren"}).header.reference_volumes == {"ren": SMALL}


def test_two_tasks_of_one_name_cannot_tell_their_classes_apart() -> None:
    twin = dataclasses.replace(A, task=make({"liver": 3}, seed=5))
    with pytest.raises(DataRefused, match="one name"):
        combine([A, twin], renumber=True)

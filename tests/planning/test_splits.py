"""Splits go by subject and are the same on every machine."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_cli.dataset.raw import Case, Role
from iris_cli.planning.splits import Split, split_cases


def case(name: str, subject: str | None = None, role: Role = "train") -> Case:
    return Case(name, (), None, subject or name, role, (None,))


def split(cases: list[Case], *, seed: int = 0, hashes: dict[str, str] | None = None) -> Split:
    return split_cases(cases, set_name="set", seed=seed, image_hashes=hashes)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), min_size=1, max_size=60, unique=True)
)
def test_no_subject_is_on_both_sides_and_no_case_is_lost(pairs: list[tuple[int, int]]) -> None:
    cases = [case(f"{s}_{i}", f"subject {s}") for s, i in pairs]
    made = split(cases)
    assert sorted([*made.train, *made.validate]) == sorted(c.name for c in cases)
    subjects = {c.name: c.subject for c in cases}
    train = {subjects[name] for name in made.train}
    validate = {subjects[name] for name in made.validate}
    assert not train & validate
    total = len(train | validate)
    assert len(validate) == (max(1, round(total / 5)) if total >= 4 else 0)


def test_the_order_of_cases_changes_nothing_and_the_seed_does() -> None:
    cases = [case(f"c{i}") for i in range(40)]
    assert split(cases) == split(cases[::-1])
    assert split(cases).validate != split(cases, seed=1).validate
    # Pinned: a split may never change with a new version.
    assert split(cases[:10]).validate == ("c5", "c9")


def test_one_more_subject_moves_at_most_one_other() -> None:
    cases = [case(f"c{i}") for i in range(31)]
    before, after = set(split(cases[:30]).validate), set(split(cases).validate)
    assert len(before - after) <= 1


def test_declared_roles_are_taken_as_they_are() -> None:
    roles: list[Role] = ["train", "validate", "test", "unlabelled"]
    cases = [case(f"{role}_{i}", role=role) for role in roles for i in range(6)]
    made = split(cases)
    assert made.reason == "roles of dataset.json"
    assert made.train == tuple(f"train_{i}" for i in range(6))
    assert made.test == tuple(f"test_{i}" for i in range(6))
    assert made.validate == tuple(f"validate_{i}" for i in range(6))


def test_test_and_unlabelled_cases_are_never_split() -> None:
    cases = [case(f"c{i}") for i in range(10)]
    cases += [case("held", role="test"), case("free", role="unlabelled")]
    made = split(cases)
    assert made.test == ("held",)
    assert made.unlabelled == ("free",)


@pytest.mark.parametrize("role", ["test", "unlabelled"])
def test_one_declared_role_does_not_switch_validation_off(role: Role) -> None:
    made = split([case(f"c{i}") for i in range(5)] + [case("c5", role=role)])
    assert len(made.validate) == 1
    assert len(made.train) == 4
    assert (made.test, made.unlabelled) == ((("c5",), ()) if role == "test" else ((), ("c5",)))
    assert "no case is declared `validate`: 1 of 5 subjects" in made.reason
    assert f"as declared: 1 {role}" in made.reason


def test_cases_with_the_same_image_stay_on_one_side() -> None:
    cases = [case(f"c{i}") for i in range(10)]
    assert split(cases).validate == ("c5", "c9")
    # c0 and c5 are copies; c2 is a copy of c7, which is of subject c1.
    cases[7] = case("c7", "c1")
    hashes = {c.name: c.name for c in cases} | {"c5": "x", "c0": "x", "c7": "y", "c2": "y"}
    for seed in range(20):
        made = split(cases, seed=seed, hashes=hashes)
        for group in ({"c0", "c5"}, {"c1", "c2", "c7"}):
            assert group <= set(made.train) or group <= set(made.validate)
        assert "counted as one subject: c0 and c5, c2 and c7" in made.reason
        assert "of 7 subjects" in made.reason


def test_too_few_subjects_are_counted_after_copies_are_merged() -> None:
    cases = [case(f"c{i}") for i in range(4)]
    assert len(split(cases).validate) == 1
    made = split(cases, hashes=dict.fromkeys(("c0", "c1"), "x"))
    assert made.validate == ()
    assert "3 training subjects" in made.reason


def test_subjects_with_unlabelled_cases_do_not_validate() -> None:
    """Their images are trained on by pseudo tasks."""
    cases = [case(f"c{i}", f"s{i}") for i in range(5)]
    # s1 has an unlabelled case; an unlabelled case of another subject is a copy of c2.
    free = [case("free_1", "s1", "unlabelled"), case("free_2", role="unlabelled")]
    hashes = {c.name: c.name for c in cases} | {"free_1": "free_1", "free_2": "c2"}
    for seed in range(20):
        made = split([*cases, *free], seed=seed, hashes=hashes)
        assert len(made.validate) == 1
        assert not {"c1", "c2"} & set(made.validate)
    everywhere = [case(f"u{i}", f"s{i}", "unlabelled") for i in range(5)]
    made = split([*cases, *everywhere])
    assert (made.validate, len(made.train)) == ((), 5)
    assert "every subject has unlabelled cases" in made.reason

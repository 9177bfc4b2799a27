from __future__ import annotations

from pathlib import Path

import pytest

from iris_cli.errors import DataRefused
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.settings import CaseForTraining, SetForTraining
from tests.training.stores import balls, whole, write_view


def test_the_named_views_are_taken_and_no_other_is_opened(tmp_path: Path) -> None:
    store = tmp_path / "s"
    for role in ("train", "validate", "test"):
        write_view(store, role, role=role)
    write_view(store, "bare", role="unlabelled", labelled=False)
    for role in ("validate", "test"):
        (store / f"{role}.json").write_text("opened")
    views = tuple(CaseForTraining(view=name) for name in ("bare", "train"))
    (found,) = read_catalogue([SetForTraining(name="s", store=store, cases=views)]).sets
    assert [case.name for case in found.cases] == ["bare", "train"]
    assert not found.cases[0].classes


def test_a_test_case_named_for_training_is_refused(tmp_path: Path) -> None:
    write_view(tmp_path / "s", "a", role="test")
    wanted = SetForTraining(name="s", store=tmp_path / "s", cases=(CaseForTraining(view="a"),))
    with pytest.raises(DataRefused, match="test case"):
        read_catalogue([wanted])


def test_a_held_out_class_takes_every_class_that_shares_its_values_with_it(tmp_path: Path) -> None:
    item = balls(tmp_path, held_out_classes=("left",))
    (found,) = read_catalogue([item]).sets
    # `both` is the region of left and right.
    assert found.class_names == ("bar", "right")
    assert all(case.held_out == ((1,),) for case in found.cases)


@pytest.mark.parametrize(
    "change", [{"held_out_classes": ("lefd",)}, {"mirror_pairs": (("left", "rihgt"),)}]
)
def test_a_mistyped_class_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(DataRefused, match="has no class"):
        read_catalogue([balls(tmp_path, **change)])


def test_classes_that_are_not_annotated_are_no_classes_of_that_case(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write_view(store, "a", not_annotated=("left",))
    write_view(store, "b", seed=1)
    (found,) = read_catalogue([whole(store)]).sets
    assert not found.cases[0].annotated(["left"])
    assert found.cases[1].annotated(["left", "right"])
    assert found.holders["left"] == (1,)


def test_labels_that_may_not_be_used_offer_no_class(tmp_path: Path) -> None:
    item = balls(tmp_path, cases=1)
    item = item.model_copy(update={"cases": (CaseForTraining(view="case_0", labels=False),)})
    (found,) = read_catalogue([item]).sets
    assert found.class_names == ()
    # Its held-out class still keeps pseudo tasks away.
    assert found.cases[0].held_out == ((3,),)


def test_the_fingerprint_knows_voxels_tables_and_cases(tmp_path: Path) -> None:
    first = read_catalogue([balls(tmp_path / "a")]).fingerprint()
    assert read_catalogue([balls(tmp_path / "b")]).fingerprint() == first
    assert read_catalogue([balls(tmp_path / "c", cases=3)]).fingerprint() != first
    assert read_catalogue([balls(tmp_path / "d", held_out_classes=())]).fingerprint() != first
    changed = balls(tmp_path / "e")
    write_view(changed.store, "case_0", seed=77)
    assert read_catalogue([changed]).fingerprint() != first


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    item = balls(tmp_path)
    with pytest.raises(DataRefused, match="one name"):
        read_catalogue([item, item])


def test_a_set_without_cases_and_a_run_without_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="no case to train on"):
        read_catalogue([balls(tmp_path).model_copy(update={"cases": ()})])
    with pytest.raises(DataRefused, match="no set to train on"):
        read_catalogue([])


def test_the_fingerprint_knows_the_whole_record_of_a_view(tmp_path: Path) -> None:
    def fingerprint(name: str, **record: object) -> str:
        write_view(tmp_path / name / "s", "a", **record)  # type: ignore[arg-type]
        return read_catalogue([whole(tmp_path / name / "s")]).fingerprint()

    plain = fingerprint("plain")
    assert fingerprint("same") == plain
    assert fingerprint("ignored", ignore_value=3) != plain
    assert fingerprint("hidden", not_annotated=("absent",)) != plain


def test_the_fingerprint_knows_the_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = read_catalogue([balls(tmp_path, cases=1)])
    before = catalogue.fingerprint()
    monkeypatch.setattr("iris_cli.training.catalogue.SAMPLER_VERSION", 999)
    assert catalogue.fingerprint() != before

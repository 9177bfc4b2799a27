"""Every converter on a miniature of its archive; a new set is one line in `MINIATURES`."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from dataset_conversion.registry import CONVERTERS, find_converter, plan, run
from dataset_conversion.runner import ConversionReport
from dataset_conversion.scan import PublicSet
from iris_cli.dataset.raw import RawDataset, read_raw_dataset
from iris_cli.preparation.findings import Severity
from iris_cli.preparation.integrity import check_datasets
from tests.dataset.nnunet_check import nnunet_complaints
from tests.dataset_conversion.favourite_sets import FAVOURITE_SETS
from tests.dataset_conversion.miniature import Miniature, Truth, read_canonical
from tests.dataset_conversion.paper_sets import PAPER_SETS

MINIATURES: tuple[Miniature, ...] = (*PAPER_SETS, *FAVOURITE_SETS)


@dataclass(frozen=True)
class Converted:
    miniature: Miniature
    source: Path
    folder: Path
    truths: dict[str, Truth]
    report: ConversionReport
    raw: RawDataset


@pytest.fixture(scope="module", params=range(len(MINIATURES)), ids=lambda n: f"{n}-{MINIATURES[n]}")
def converted(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    miniature = MINIATURES[request.param]
    folder = tmp_path_factory.mktemp(miniature.name)
    truths = dict(miniature.build(folder / "source"))
    report = run(miniature.name, folder / "source", folder / "raw")
    raw = read_raw_dataset(folder / "raw")
    return Converted(miniature, folder / "source", folder / "raw", truths, report, raw)


def _facts(converted: Converted) -> Any:
    converter = find_converter(converted.miniature.name)
    assert isinstance(converter, PublicSet)
    return converter.facts


def test_cases_subjects_roles_and_folders(converted: Converted) -> None:
    cases = {case.name: case for case in converted.raw.cases}
    assert set(cases) == set(converted.truths)
    for name, truth in converted.truths.items():
        case = cases[name]
        assert (case.subject, case.role) == (truth.subject, truth.role), name
        assert case.images[0].parent.name == f"images{truth.folder}", name
        assert (case.label is None) == (truth.label is None), name
        assert case.not_annotated == truth.not_annotated, name


def test_classes_channels_and_description(converted: Converted) -> None:
    facts, raw = _facts(converted), converted.raw
    assert {label.name: label.value for label in raw.classes} == dict(facts.labels)
    assert tuple(channel.name for channel in raw.channels) == facts.channels
    assert None not in [channel.modality for channel in raw.channels]
    assert raw.mirror_pairs == facts.mirror_pairs
    assert raw.licence == facts.licence


def test_every_voxel_is_where_it_was_in_the_patient(converted: Converted) -> None:
    for case in converted.raw.cases:
        truth = converted.truths[case.name]
        assert len(case.images) == len(truth.images)
        for path, expected in zip(case.images, truth.images, strict=True):
            found, affine = read_canonical(path)
            assert np.array_equal(found, expected), path
            assert np.all(np.diag(affine)[:3] > 0)
        if case.label is not None and truth.label is not None:
            found, affine = read_canonical(case.label)
            assert np.array_equal(found, truth.label), case.label
            assert np.allclose(affine, read_canonical(case.images[0])[1])


def test_a_marker_on_the_patients_right_is_found_there(converted: Converted) -> None:
    facts = _facts(converted)
    for case in converted.raw.cases:
        image: Any = nibabel.load(case.images[0])
        data = np.asarray(image.dataobj)
        world = nibabel.affines.apply_affine(image.affine, np.argwhere(data == data.max()))
        middle = nibabel.affines.apply_affine(image.affine, (np.array(data.shape) - 1) / 2)
        assert world[0, 0] > middle[0], case.name
        if case.label is None:
            continue
        label: Any = nibabel.load(case.label)
        for left, right in facts.mirror_pairs:
            if case.not_annotated & {left, right}:
                continue
            x = [
                nibabel.affines.apply_affine(
                    label.affine, np.argwhere(np.asarray(label.dataobj) == facts.labels[side])
                )[:, 0].mean()
                for side in (left, right)
            ]
            assert x[1] > x[0], (case.name, left, right)


def test_what_deviates_is_reported(converted: Converted) -> None:
    said = "\n".join(map(str, converted.report.deviations))
    for part in converted.miniature.says:
        assert part in said
    assert "mirrored" not in said
    kept = json.loads((converted.folder / "conversion.json").read_text())
    assert len(kept["deviations"]) == len(converted.report.deviations)


def test_a_bad_case_fails_alone(converted: Converted) -> None:
    failed = tuple(outcome.name for outcome in converted.report.run.failed)
    assert failed == converted.miniature.failed
    assert converted.report.exit_code == (3 if failed else 0)


def test_iris_plan_finds_no_error(converted: Converted) -> None:
    (report,) = check_datasets([read_raw_dataset(converted.folder, strict=False)])
    errors = [f for f in report.findings if f.severity is Severity.ERROR]
    assert errors == []


def test_nnunet_would_accept_it(converted: Converted) -> None:
    assert nnunet_complaints(converted.folder) == []


def test_the_same_line_again_keeps_everything(converted: Converted) -> None:
    before = content_of(converted.folder)
    report = run(converted.miniature.name, converted.source, converted.folder)
    assert {o.status for o in report.run.outcomes if o.status != "failed"} == {"kept"}
    assert content_of(converted.folder) == before


def test_a_dry_run_names_the_same_cases(converted: Converted) -> None:
    planned = plan(converted.miniature.name, converted.source)
    sent = pickle.loads(pickle.dumps(planned.cases))  # as they go to worker processes
    assert repr(sent) == repr(planned.cases)
    names = {row["case"] for row in planned.rows()}
    assert names == {*converted.truths, *converted.miniature.failed}


@pytest.mark.parametrize("miniature", [m for m in MINIATURES if m.author], ids=str)
def test_the_authors_split(miniature: Miniature, tmp_path: Path) -> None:
    assert miniature.author is not None
    miniature.build(tmp_path)
    planned = plan(miniature.name, tmp_path, split="author")
    roles = {row["case"]: row["role"] for row in planned.rows()}
    assert {name: roles[name] for name in miniature.author} == miniature.author
    folders = {row["case"]: row["folder"] for row in planned.rows()}
    tested = {name for name, role in roles.items() if role == "test"}
    assert {folders[name] for name in tested} <= {"imagesTs"}


def test_every_authors_split_is_compared() -> None:
    known = {
        c.name for c in CONVERTERS.values() if isinstance(c, PublicSet) and c.facts.author_split
    }
    assert known <= {miniature.name for miniature in MINIATURES if miniature.author}


def test_every_set_of_the_paper_has_a_miniature() -> None:
    covered = {miniature.name for miniature in MINIATURES}
    paper = {
        c.name
        for c in CONVERTERS.values()
        if isinstance(c, PublicSet) and c.facts.paper.value != "no"
    }
    assert paper <= covered
    assert len(paper) == 19


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

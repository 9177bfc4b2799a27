"""From training to a task without references: the bank is kept, travels, and can be used."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iris_cli.dataset.phantoms import write_phantom_dataset
from iris_cli.errors import DataRefused, UsageError
from iris_cli.model.bank import BANK_FILE, Bank, load_bank, save_bank
from iris_cli.model.model import load_model
from iris_cli.task.task_file import read_task
from iris_cli.workflows.encode_task import encode_from_bank
from iris_cli.workflows.info import describe
from iris_cli.workflows.plan import plan
from iris_cli.workflows.predict import PredictSettings, predict
from iris_cli.workflows.preprocess import preprocess
from iris_cli.workflows.train import TrainOptions, train
from iris_cli.workflows.validation import InContextValidation

NO_VALIDATION = InContextValidation(cases_per_set=0)
OVERRIDES = ("training.steps=3", "training.mixing.pseudo=0", "training.mixing.synthetic=0")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ws")
    write_phantom_dataset(folder / "raw" / "p", (1, 2, 3), size=0.6, voxel_mm=9.0)
    report = plan(workspace=folder, preset_name="tiny", overrides=OVERRIDES)
    assert preprocess(report.path, workspace=folder).exit_code == 0
    return train("r", TrainOptions(folder, workers=0, validation=NO_VALIDATION)).folder


@pytest.fixture
def model(run: Path, tmp_path: Path) -> Path:
    """The exported model, to be changed at will."""
    return shutil.copytree(run / "model", tmp_path / "model")


def bank_of(model: Path) -> Bank:
    bank = load_bank(model, load_model(model))
    assert bank is not None
    return bank


def with_entry(model: Path, **changes: object) -> str:
    """Give the second entry other facts; returns the names of both for `found`."""
    bank, loaded = bank_of(model), load_model(model)
    first, second, *others = bank.entries
    entries = (first, second.model_copy(update=changes), *others)
    save_bank(model, replace(bank, entries=entries), loaded.card.fingerprint)
    return second.name


def test_a_task_from_the_bank_segments_a_query(run: Path, model: Path, tmp_path: Path) -> None:
    names = [entry.name for entry in bank_of(model).entries][:2]
    report = encode_from_bank(names, tmp_path / "t.task.pt", model=model)
    task = read_task(tmp_path / "t.task.pt")
    assert [source.name for source in task.header.bank] == names
    assert all(source.episodes >= 1 for source in task.header.bank)
    assert [entry.value for entry in task.header.classes] == [1, 2]
    assert task.header.references == ()
    assert {entry.crops for entry in task.header.classes} == {None}
    assert [row["from the memory bank"] for row in report.class_rows()] == names
    query = next((run.parent.parent / "raw" / "p" / "imagesTr").glob("*.nii.gz"))
    settings = PredictSettings(model=str(model))
    done = predict(query, tmp_path / "out", task=report.path, settings=settings)
    assert done.exit_code == 0
    assert list((tmp_path / "out").glob("*.nii.gz"))


def test_values_and_wrong_names(model: Path, tmp_path: Path) -> None:
    first, second, *_ = (entry.name for entry in bank_of(model).entries)
    path = tmp_path / "t.task.pt"
    report = encode_from_bank([f"{second}=7", f"{first}=3"], path, model=model)
    assert [entry.value for entry in report.task.header.classes] == [7, 3]
    with pytest.raises(UsageError) as error:
        encode_from_bank([first[:-1]], path, model=model)
    assert first in str(error.value.fix)
    with pytest.raises(UsageError) as error:
        encode_from_bank([first.partition("/")[2]], path, model=model)
    assert first in str(error.value.fix)
    with pytest.raises(UsageError, match="class is given twice"):
        encode_from_bank([first, first], path, model=model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"spacing_mm": 1.25}, "working spacings"), ({"modality": "ct"}, "modalities")],
)
def test_classes_worked_differently_are_refused_with_the_numbers(
    model: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    first = bank_of(model).entries[0]
    changed = {"ct": "other", "other": "ct"}[str(first.modality)]
    other = with_entry(model, **(changes if "spacing_mm" in changes else {"modality": changed}))
    with pytest.raises(UsageError, match=words) as error:
        encode_from_bank([first.name, other], tmp_path / "t.task.pt", model=model)
    assert f"{first.spacing_mm:.4g} mm" in str(error.value.found)
    assert other in str(error.value.found)


def test_a_bank_goes_with_its_weights_alone(model: Path, tmp_path: Path) -> None:
    bank, fingerprint = bank_of(model), load_model(model).card.fingerprint
    save_bank(model, bank, "0" * 64)
    with pytest.raises(DataRefused, match="do not belong together"):
        load_bank(model, load_model(model))
    save_bank(model, Bank((), bank.tokens), fingerprint)
    assert not (model / BANK_FILE).exists()
    assert load_model(model).card.fingerprint == fingerprint
    with pytest.raises(UsageError, match="no memory bank"):
        encode_from_bank(["p/x"], tmp_path / "t.task.pt", model=model)


def test_info_shows_the_bank_of_models_and_checkpoints(run: Path) -> None:
    model, checkpoint = describe(run / "model"), describe(run / "checkpoint_latest.pt")
    rows = model.tables["memory bank"]
    assert rows == checkpoint.tables["memory bank"]
    assert checkpoint.facts["finished steps"] == 3
    state = torch.load(run / "checkpoint_latest.pt", weights_only=True)["bank"]
    assert [row["class"] for row in rows] == state["names"]
    assert [row["episodes"] for row in rows] == state["counts"]
    assert all(row["modality"] in ("ct", "other") for row in rows)

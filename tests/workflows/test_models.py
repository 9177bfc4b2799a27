"""Registered models: imported once, listed, used everywhere a model is named, exported again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from iris_cli.errors import DataRefused, EnvironmentProblem, UsageError
from iris_cli.model.bank import Bank, BankEntry, load_bank, save_bank
from iris_cli.model.model import load_model
from iris_cli.model.registry import choose_default
from iris_cli.model.released import Copy
from iris_cli.volume.reading import read_image, read_labels
from iris_cli.workflows.encode_task import ReferenceSource, encode_task
from iris_cli.workflows.models import (
    PUBLISHED,
    PublishedFile,
    download_model,
    export_model,
    import_model,
    list_models,
)
from iris_cli.workflows.predict import PredictSettings, predict
from tests.model.released_files import config_of, weights_of, write

WEIGHTS = weights_of()
SHIPPED = "iris-small-3"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    content = {"model": weights_of(seed=1), "ema_model": WEIGHTS, "config": config_of()}
    return write(tmp_path / "mass_base.pth", content)


@pytest.fixture
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of a user of their own; returns the registry in it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "iris" / "models"


def test_imported_weights_are_a_model_under_their_name(released: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    report = import_model(released, "mass-base", licence="MIT", registry=registry)
    assert report.folder == registry / "mass-base"
    assert (report.card.licence, report.card.profile) == ("MIT", "mass-1")
    loaded = load_model(report.folder)
    assert torch.equal(loaded.network.state_dict()["out.norm.weight"], WEIGHTS["out.norm.weight"])
    assert sorted(path.name for path in report.folder.iterdir()) == [
        "model.json", "weights.safetensors",
    ]  # fmt: skip
    again = import_model(released, "mass-base", registry=registry)
    assert again.known
    with pytest.raises(UsageError, match="taken"):
        import_model(released, "mass-base", weights=Copy.MODEL, registry=registry)
    assert load_model(report.folder).card == report.card


def test_a_refused_file_leaves_nothing(tmp_path: Path) -> None:
    bad = write(tmp_path / "w.pth", {"model": {"a": torch.zeros(1)}})
    with pytest.raises(DataRefused):
        import_model(bad, "bad", registry=tmp_path / "registry")
    assert not (tmp_path / "registry").exists()


def test_models_of_ones_own_are_registered_with_their_bank(
    model_folder: Path, tmp_path: Path
) -> None:
    source = Path(export_model(model_folder, tmp_path / "own"))
    config = load_model(source).network.config
    shapes = [(1, config.tokens, config.stage_channels(i)) for i in range(config.stages)]
    entry = BankEntry(name="a/liver", episodes=3, modality="ct", spacing_mm=1.5)
    bank = Bank((entry,), tuple(torch.ones(shape) for shape in shapes))
    save_bank(source, bank, load_model(source).card.fingerprint)
    registry = tmp_path / "registry"
    report = import_model(source, "mine", registry=registry)
    assert report.card.name == "mine"
    found = load_bank(report.folder, load_model(report.folder))
    assert found is not None
    assert found.entries == (entry,)
    with pytest.raises(UsageError, match="taken"):
        import_model(source, "mine", registry=registry)
    with pytest.raises(UsageError, match="--weights"):
        import_model(source, "other", licence="MIT", registry=registry)


def test_the_list_shows_the_default_and_names_what_cannot_be_read(
    model_folder: Path, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    import_model(model_folder, "mine", registry=registry)
    (registry / "broken").mkdir()
    (registry / "broken" / "model.json").write_text("[]")
    shipped = [model for model in list_models(registry) if model.ships]
    assert [model.is_default for model in shipped] == [True]
    choose_default("mine", registry)
    found = {model.name: model for model in list_models(registry)}
    assert found["mine"].is_default
    assert not found[shipped[0].name].is_default
    assert found["broken"].card is None
    assert "not a model" in str(found["broken"].problem)


@pytest.mark.parametrize("ending", ["", ".safetensors"])
def test_an_exported_model_is_the_same_model(
    model_folder: Path, tmp_path: Path, ending: str
) -> None:
    output = export_model(model_folder, tmp_path / f"out{ending}")
    assert load_model(output).card == load_model(model_folder).card
    with pytest.raises(UsageError, match="there already"):
        export_model(model_folder, output)


def test_a_round_trip_gives_back_every_tensor(released: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    import_model(released, "x", registry=registry)
    path = export_model("x", tmp_path / "again.pth", registry=registry)
    again = import_model(path, "y", registry=registry)
    assert again.card.fingerprint == load_model(registry / "x").card.fingerprint
    assert again.card.source is not None
    assert again.card.source.weights == "model"


def test_a_registered_name_works_where_a_model_is_named(
    model_folder: Path, references: Path, tmp_path: Path, data_home: Path
) -> None:
    import_model(model_folder, "mine")
    source = ReferenceSource(references)
    task = encode_task(source, tmp_path / "t.task.pt", model="mine").task
    assert task.header.model.name == "mine"
    choose_default("mine")
    assert (data_home / "default").read_text() == "mine\n"
    assert encode_task(source, tmp_path / "u.task.pt").task.header.model.name == "mine"


def test_released_weights_work_by_the_profile_on_their_card(
    released: Path, references: Path, queries: Path, tmp_path: Path, data_home: Path
) -> None:
    import_model(released, "mass-base")
    source = ReferenceSource(references, cases=("one",))
    task = encode_task(source, tmp_path / "t.task.pt", model="mass-base", classes=["right"])
    header = task.task.header
    assert (header.profile, header.spacing_mm, header.modality) == ("mass-1", 1.5, "auto")
    assert header.classes[0].crops == 1
    report = predict(queries / "a.nii.gz", tmp_path / "out", task=task.path)
    report.run.raise_for_failures()
    assert report.flags() == {"a": ["modality guessed from the voxels: mr"]}
    assert report.flag_summary() == ["modality guessed from the voxels: mr, in 1 of 1 cases (a)"]
    receipt = report.run.outcomes[0].result
    assert receipt is not None
    assert receipt.receipt["content"]["inputs"]["parameters"]["precision"] == "fp32"
    written = read_labels(tmp_path / "out" / "a.nii.gz")
    assert written.grid == read_image(queries / "a.nii.gz").grid
    with pytest.raises(DataRefused, match="encoded with another model"):
        predict(queries, tmp_path / "own", task=task.path, settings=PredictSettings(model=SHIPPED))


def test_published_weights_are_fetched_once(released: Path, tmp_path: Path) -> None:
    asked: list[PublishedFile] = []

    def fetch(published: PublishedFile) -> Path:
        asked.append(published)
        return released

    registry = tmp_path / "registry"
    assert not download_model("mass-base", registry=registry, fetch=fetch).known
    assert download_model("mass-base", registry=registry, fetch=fetch).known
    assert asked == [PUBLISHED["mass-base"]]
    with pytest.raises(UsageError, match="did you mean 'mass-base'"):
        download_model("mass_base", registry=registry, fetch=fetch)


class _Hub:
    """As much of huggingface_hub as is called: a file, and what the hub says of it."""

    def __init__(self, file: Path, sha256: str) -> None:
        self.file, self.sha256 = file, sha256

    def hf_hub_download(self, repository: str, file: str) -> str:
        assert (repository, file) == ("StanfordAIMI/MASS", "mass_base.pth")
        if not self.file.exists():
            raise ConnectionError("no route to host")
        return str(self.file)

    def HfApi(self) -> _Hub:
        return self

    @property
    def lfs(self) -> _Hub:
        return self

    def get_paths_info(self, *_: Any) -> list[_Hub]:
        return [self]


def test_what_the_hub_sends_is_compared_with_what_it_says(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", _Hub(released, "0" * 64))
    with pytest.raises(DataRefused, match="not the one the hub describes"):
        download_model("mass-base", registry=tmp_path / "registry")


@pytest.mark.parametrize("hub", [None, "unreachable"])
def test_without_the_hub_it_says_what_to_fetch_and_how_to_import_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: str | None
) -> None:
    module = None if hub is None else _Hub(tmp_path / "absent", "")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    with pytest.raises(EnvironmentProblem) as caught:
        download_model("mass-base", registry=tmp_path / "registry")
    text = str(caught.value)
    assert "https://huggingface.co/StanfordAIMI/MASS" in text
    assert "iris model import mass_base.pth --name mass-base" in text
    assert ("no route to host" in text) is (hub is not None)

"""Names of models: where they are looked for, what may be one, and which is the default."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from iris_cli.errors import EnvironmentProblem, UsageError
from iris_cli.model.registry import (
    choose_default,
    default_name,
    find_model,
    place_for,
    registered_models,
    registry_folder,
    shipped_models,
)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    for name in ("mine", "other-2.1"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model.json").write_text("{}")
    return tmp_path / "models"


def test_registered_models_are_found_by_name(registry: Path) -> None:
    assert registered_models(registry) == ("mine", "other-2.1")
    assert find_model("mine", registry) == registry / "mine"
    with pytest.raises(UsageError, match="no model 'mien'") as caught:
        find_model("mien", registry)
    assert "'mine'" in str(caught.value.fix)


def test_a_folder_without_card_is_no_model_yet(registry: Path) -> None:
    (registry / "mine" / "model.json").unlink()
    assert registered_models(registry) == ("other-2.1",)


def test_shipped_models_come_before_registered_ones_of_their_name(registry: Path) -> None:
    name = shipped_models()[0]
    (registry / name).mkdir()
    (registry / name / "model.json").write_text("{}")
    assert find_model(name, registry).parent != registry


def test_the_default_is_the_shipped_one_until_another_is_chosen(registry: Path) -> None:
    shipped = find_model(None, registry)
    assert shipped.name == default_name(registry) in shipped_models()
    choose_default("mine", registry)
    assert find_model(None, registry) == registry / "mine"
    assert default_name(registry) == "mine"
    choose_default(shipped.name, registry)
    assert find_model(None, registry) == shipped


def test_only_a_known_model_can_be_the_default(registry: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'mine'"):
        choose_default("min", registry)
    assert not (registry / "default").exists()


def test_a_default_that_has_gone_is_said_and_not_replaced_in_silence(registry: Path) -> None:
    choose_default("mine", registry)
    (registry / "mine" / "model.json").unlink()
    with pytest.raises(EnvironmentProblem, match="not there any more") as caught:
        find_model(None, registry)
    assert "iris model use" in str(caught.value.fix)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "/tmp/x", ".hidden", "-m", "default", "Default", "a b",
     "nul", "con.1", "x" * 101, "a\0b", "ü", "a\n", "a:b", "dots."],
)  # fmt: skip
def test_names_cannot_leave_the_registry(registry: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not a name for a model"):
        place_for(name, registry)
    with pytest.raises(UsageError):
        choose_default(name, registry)


def test_a_shipped_name_cannot_be_taken(registry: Path) -> None:
    with pytest.raises(UsageError, match="ships with iris"):
        place_for(shipped_models()[0], registry)


def test_the_default_file_cannot_lead_out_of_the_registry(registry: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    (registry / "default").write_text("../")
    with pytest.raises(EnvironmentProblem, match="not there any more"):
        find_model(None, registry)


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("linux", ".local/share/iris/models"),
        ("darwin", "Library/Application Support/iris/models"),
        ("win32", "AppData/Local/iris/models"),
    ],
)
def test_the_registry_lies_in_the_users_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, expected: str
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")
    assert registry_folder() == tmp_path / expected
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert registry_folder() == tmp_path / "data" / "iris" / "models"

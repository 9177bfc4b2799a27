"""`iris model`: what is said and written, and with which exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.commands.conftest import Iris
from tests.model.released_files import config_of, weights_of, write


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    return write(folder / "mass_base.pth", {"ema_model": weights_of(), "config": config_of()})


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def test_import_list_use_info_and_export_in_a_row(
    iris: Iris, released: Path, registry: Path, tmp_path: Path
) -> None:
    where = ("--registry", registry)
    ran = iris("model", "import", released, "--name", "mass-base", *where)
    assert ran.code == 0, ran.err
    assert "profile mass-1" in ran.out
    assert "memory of classes is left out" in ran.err
    assert iris("model", "use", "mass-base", *where).code == 0

    listed = json.loads(iris("model", "list", "--json", *where).out)
    by_name = {row["name"]: row for row in listed}
    assert by_name["mass-base"]["default"]
    assert sum(row["default"] for row in listed) == 1
    assert by_name["mass-base"]["card"]["source"]["weights"] == "ema"
    assert "mass-base *" in iris("model", "list", *where).out

    described = json.loads(iris("model", "info", "mass-base", "--json", *where).out)
    assert described["kind"] == "model"
    assert len(described["facts"]["source"]["sha256"]) == 64

    output = tmp_path / "again.pth"
    assert iris("model", "export", "mass-base", "-o", output, *where).code == 0
    state = torch.load(output, weights_only=True)["model"]
    assert torch.equal(state["out.norm.bias"], weights_of()["out.norm.bias"])


def test_a_damaged_file_is_refused_with_the_four_parts(
    iris: Iris, released: Path, registry: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.pth"
    data = bytearray(released.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    ran = iris("model", "import", damaged, "--name", "bad", "--registry", registry)
    assert ran.code == 4
    for part in ("file", "found", "expected", "fix"):
        assert f"  {part} " in ran.err
    assert not registry.exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("use", "absent"), 2, "no model 'absent'"),
        (("info", "absent"), 2, "no model 'absent'"),
        (("import", "absent.pth", "--name", "x"), 2, "no such file"),
        (("import", "absent.pth", "--name", "../x"), 2, "not a name"),
        (("import", "absent.pth", "--name", "x", "--weights", "best"), 2, "ema or model"),
        (("download", "absent"), 2, "mass-base"),
        (("export", "iris-small-2", "-o", "own.pth"), 2, ".safetensors"),
    ],
)
def test_what_does_not_exist_is_a_usage_error(
    iris: Iris, registry: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    ran = iris("model", *words, "--registry", registry)
    assert ran.code == code
    assert said in ran.err
    assert not registry.exists()


def test_a_download_without_the_hub_says_what_to_do_by_hand(
    iris: Iris, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    ran = iris("model", "download", "mass-base", "--registry", registry)
    assert ran.code == 5
    assert "iris model import mass_base.pth --name mass-base" in ran.err

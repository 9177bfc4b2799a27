"""`iris model`: what is said and written, and with which exit code."""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands.conftest import Iris
from tests.model.released_files import SMALL, config_of, weights_of, write


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


def _of(**changes: Any) -> dict[str, Any]:
    """The weights with some tensors changed, or left out where the change is None."""
    state = {**weights_of(), **{name.replace("__", "."): v for name, v in changes.items()}}
    return {"model": {k: v for k, v in state.items() if v is not None}, "config": config_of()}


class _Grows:
    """Unpickled, it would take a terabyte."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**12,)


class _Runs:
    """Unpickled, it would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_of(out__norm__bias=None), "1 missing: out.norm.bias"),
        (_of(extra__weight=torch.zeros(1)), "1 unexpected: extra.weight"),
        (_of(out__norm__bias=torch.zeros(7)), "1 of another shape: out.norm.bias (7,), expected"),
        (_of(out__norm__bias=torch.full((16,), torch.nan)), "1 not finite: out.norm.bias"),
        (_of(out__norm__bias=torch.zeros(16).half()), "1 not dense float32: out.norm.bias"),
        ({**_of(), "optimizer": _Grows()}, "bytearray"),
        ({**_of(), "best_metric": _Runs()}, "posix.system"),
        ({"state": {"a": torch.zeros(2)}}, "no weights"),
        ({"model": {"a": torch.zeros(2)}, "config": config_of()}, "1 unexpected: a"),
        ({**_of(), "config": {"model": {"channels": [10**9] * 5}}}, "channels"),
    ],
)
def test_other_weights_are_refused_by_name_and_nothing_is_registered(
    iris: Iris, registry: Path, tmp_path: Path, content: object, said: str
) -> None:
    _refused(iris, registry, write(tmp_path / "other.pth", content), said)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda whole: whole[: len(whole) // 2], "no whole zip"),
        (lambda whole: whole[:-1], "no whole zip"),
        (lambda whole: b"", "no whole zip"),
        (lambda whole: whole[:200] + bytes(200) + whole[400:], ""),
        (lambda whole: b"\x80\x02}q\x00.", "no whole zip"),
        (lambda whole: _zip("word/document.xml", b"<w/>"), "an entry 'word/document.xml'"),
        (lambda whole: _zip("x/data.pkl", bytes(10**6), packed=True), "a packed"),
    ],
)
def test_half_files_and_foreign_ones_are_refused_by_name_and_nothing_is_registered(
    iris: Iris,
    released: Path,
    registry: Path,
    tmp_path: Path,
    make: Callable[[bytes], bytes],
    said: str,
) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(make(released.read_bytes()))
    _refused(iris, registry, path, said)


def _zip(name: str, data: bytes, *, packed: bool = False) -> bytes:
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def _refused(iris: Iris, registry: Path, path: Path, said: str) -> None:
    ran = iris("model", "import", path, "--name", "bad", "--registry", registry)
    assert ran.code == 4, ran.err
    assert str(path) in ran.err
    assert said in ran.err
    for part in ("file", "found", "expected", "fix"):
        assert f"  {part} " in ran.err
    assert not registry.exists()


def test_any_network_the_file_states_is_imported(
    iris: Iris, registry: Path, tmp_path: Path
) -> None:
    network = SMALL.model_copy(
        update={
            "channels": (4, 8, 8, 16, 32),
            "blocks": (2, 1, 1, 2),
            "kernel_sizes": (1, 3, 3, 3, 5),
            "scales": (2, 2, 2, 1),
            "stages": 2,
            "bank_size": 3,
        }
    )
    path = write(tmp_path / "w.pth", {"model": weights_of(network), "config": config_of(network)})
    ran = iris("model", "import", path, "--name", "other", "--registry", registry, "--json")
    assert ran.code == 0, ran.err
    card = json.loads(ran.out)["card"]
    assert card["network"] == network.model_copy(update={"bank_size": None}).model_dump(mode="json")
    assert card["source"]["bank_size"] == 3
    assert (card["profile"], card["s0"], card["patch"]) == ("mass-1", 1.5, 128)


def test_the_averaged_copy_is_taken_without_its_prefixes_unless_the_other_is_asked_for(
    iris: Iris, registry: Path, tmp_path: Path
) -> None:
    averaged, last = weights_of(seed=1), weights_of(seed=2)
    content = {
        "ema_model": {f"module._orig_mod.{name}": value for name, value in averaged.items()},
        "model": {f"_orig_mod.module.{name}": value for name, value in last.items()},
        "config": config_of(),
    }
    path = write(tmp_path / "w.pth", content)
    name, where = "encoder.inc.conv1.weight", ("--registry", registry)
    for words, expected in (((), averaged), (("--weights", "model"), last)):
        called = f"copy-{len(words)}"
        ran = iris("model", "import", path, "--name", called, *words, *where)
        assert ran.code == 0, ran.err
        output = tmp_path / f"{called}.pth"
        assert iris("model", "export", called, "-o", output, *where).code == 0
        state = torch.load(output, weights_only=True)["model"]
        assert torch.equal(state[name], expected[name])
        assert not any(key.startswith("task_prior_") for key in state)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("use", "absent"), 2, "no model 'absent'"),
        (("info", "absent"), 2, "no model 'absent'"),
        (("import", "absent.pth", "--name", "x"), 2, "no such file"),
        (("import", "absent.pth", "--name", "../x"), 2, "not a name"),
        (("import", "absent.pth", "--name", "x", "--weights", "best"), 2, "ema or model"),
        (("download", "absent"), 2, "mass-base"),
        (("export", "iris-small-3", "-o", "own.pth"), 2, ".safetensors"),
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

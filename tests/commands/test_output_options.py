"""From words to outputs: formats, probabilities, parts that are taken away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iris_cli.commands._outputs import outputs_of
from iris_cli.errors import UsageError
from iris_cli.inference.outputs import PLAIN, Outputs
from iris_cli.inference.postprocess import Cleaning
from tests.commands.conftest import Iris


def test_without_a_word_nothing_changes() -> None:
    assert outputs_of("nii.gz", None, None, None, previews=False, multilabel=False) == PLAIN
    assert PLAIN.parameters() == {}


def test_every_option_has_its_place() -> None:
    volumes = ["0.5", "lymph node=2", "a=b=3"]
    assert outputs_of(
        ".mha", "uint8", ["liver", "spleen"], volumes, previews=True, multilabel=False
    ) == Outputs(
        ending=".mha",
        probabilities="uint8",
        cleaning=Cleaning(("liver", "spleen"), ((None, 0.5), ("lymph node", 2.0), ("a=b", 3.0))),
        previews=True,
    )


@pytest.mark.parametrize("text", ["", "liver", "liver=", "liver=-1", "0", "nan", "liver=inf"])
def test_what_is_no_volume_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no volume of a class"):
        outputs_of("nrrd", None, None, [text], previews=False, multilabel=False)


def test_unknown_formats_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'dcm'") as caught:
        outputs_of("dcm", None, None, None, previews=False, multilabel=False)
    assert "nii.gz, nrrd, mha" in str(caught.value.expected)
    with pytest.raises(UsageError, match="'float64'") as caught:
        outputs_of("mha", "float64", None, None, previews=False, multilabel=False)
    assert "uint8 or float16" in str(caught.value.expected)


def test_a_line_with_all_of_them(
    iris: Iris, phantoms: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out, query = tmp_path / "out", next((phantoms / "imagesTs").glob("torso_004_0000.*"))
    line = (
        "predict", "--refs", phantoms, "-m", tiny_model, "-i", query, "-o", out,
        "--classes", "liver,aorta", "--format", "nrrd", "--probabilities", "uint8",
        "--previews", "--keep-largest", "liver", "--min-volume", "aorta=0.5",
    )  # fmt: skip
    ran = iris(*line)
    assert ran.code == 0, ran.err
    assert "quality: " in ran.out + ran.err
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    visible = {name for name in files if not name.startswith(".iris")}
    assert {name for name in visible if not name.startswith("probabilities")} == {
        "labels.ctbl",
        "labels.json",
        "labels.txt",
        "previews/torso_004.png",
        "statistics.csv",
        "torso_004.nrrd",
    }
    assert len([name for name in visible if name.startswith("probabilities/torso_004/")]) == 2
    kept = json.loads(iris(*line, "--json").out)
    assert [case["status"] for case in kept["cases"]] == ["kept"]
    assert set(kept["quality"]) <= {"torso_004"}
    assert "1 done" in iris("status", out).out
    scored = iris("evaluate", out, phantoms / "labelsTs")
    assert scored.code == 3  # the other case was not predicted
    assert "failed: torso_004" not in scored.err
    wrong = iris(*line, "--keep-largest", "livre")
    assert wrong.code == 2
    assert "did you mean 'liver'" in wrong.err

"""A raw folder with every legal oddity goes through all commands as it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from iris_cli.task.task_file import read_task
from iris_cli.volume.grid import GridMatch
from iris_cli.volume.reading import read_grid, read_labels
from iris_cli.volume.writing import write_labels
from tests.commands.conftest import Iris
from tests.workflows.odd_sets import CORE, CYST, EDGE, IGNORED, make_odd_set, odd_grid, odd_labels


@pytest.mark.slow
def test_regions_ignore_channels_nrrd_16_bit_and_gaps_go_all_the_way(
    iris: Iris, tmp_path: Path
) -> None:
    raw = make_odd_set(tmp_path / "raw" / "Dataset042_Odd")
    before = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    workspace = ("-w", tmp_path)
    for words in (
        ("plan", *workspace, "--preset", "tiny", "--set", "training.steps=2"),
        ("preprocess", *workspace, "-j", "1"),
    ):
        ran = iris(*words)
        assert ran.code == 0, ran.err
    trained = iris("train", "odd", *workspace, "--validate-cases", "1", "--json")
    assert trained.code == 0, trained.err
    model, task = Path(json.loads(trained.out)["model"]), tmp_path / "odd.task.pt"
    encoded = iris("encode-task", raw, "-o", task, "-m", model, "--cases", "a,b")
    assert encoded.code == 0, encoded.err
    classes = {entry.name: entry.value for entry in read_task(task).header.classes}
    assert classes == {"whole": 1, "core": 2, "cyst": 3}
    out = tmp_path / "out"
    predicted = iris("predict", "-t", task, "-m", model, "-i", raw / "imagesTs", "-o", out)
    assert predicted.code == 0, predicted.err
    (output,) = out.glob("q.*")
    query = read_grid(raw / "imagesTs" / "q_0000.nrrd")
    assert read_grid(output).grid.compare(query.grid) is GridMatch.EQUAL
    assert set(np.unique(read_labels(output).array)) <= {0, 1, 2, 3}
    scored = iris("evaluate", out, raw / "labelsTs", "--json")
    assert scored.code == 0, scored.err
    summary = json.loads(scored.out)
    assert set(summary["classes"]) == {"whole", "core", "cyst"}
    assert {path: path.read_bytes() for path in before} == before


def test_a_perfect_answer_in_output_values_scores_one(iris: Iris, tmp_path: Path) -> None:
    """Predictions hold the values of regions_class_order, the truth its own; both are scored."""
    raw = make_odd_set(tmp_path / "raw" / "Dataset042_Odd", test=("q",))
    truth = odd_labels(5)
    answer = np.select([truth == EDGE, truth == CORE, truth == CYST], [1, 2, 3], 0)
    answer[truth == IGNORED] = 3  # what stands on ignored voxels counts nowhere
    legend = {"labels": {"whole": 1, "core": 2, "cyst": 3}}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels.json").write_text(json.dumps(legend))
    write_labels(tmp_path / "out" / "q.nrrd", answer.astype(np.uint8), odd_grid())
    scored = iris("evaluate", tmp_path / "out", raw / "labelsTs", "--json")
    assert scored.code == 0, scored.err
    for name, entry in json.loads(scored.out)["classes"].items():
        assert entry["dice"]["mean"] == 1.0, name

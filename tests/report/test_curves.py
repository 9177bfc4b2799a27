"""The progress picture is drawn from whatever whole lines the log has."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib.image
from matplotlib.figure import Figure

from iris_cli.files.jsonl import read_json_lines
from iris_cli.report.curves import _draw_set, _validation_curves, draw_progress


def found(mean: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"mean": mean, "low": low, "high": high, "classes": {}}


def log_of(path: Path, *lines: dict[str, Any], rest: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)
    return path


def test_validation_becomes_curves_by_set_group_and_references(tmp_path: Path) -> None:
    seen = {"a": {"k1": found(0.5, 0.4, 0.6), "k3": found(0.6)}}
    log = log_of(
        tmp_path / "metrics.jsonl",
        {"step": 1, "loss": 1.0},
        {"step": 2, "validation": {"score": 0.5, "seen": seen, "seconds": 3.0}},
        {"step": 4, "validation": {"seen": seen, "unseen": {"b": {"k1": found(0.2)}}}},
        rest='{"step": 5, "lo',
    )
    lines = read_json_lines(log)
    assert len(lines) == 3
    curves = _validation_curves([(x["step"], x["validation"]) for x in lines if "loss" not in x])
    assert set(curves) == {"a", "b"}
    one = curves["a"]["seen", "k1"]
    assert (one.steps, one.values, one.low, one.high) == ([2, 4], [0.5] * 2, [0.4] * 2, [0.6] * 2)
    assert math.isnan(curves["a"]["seen", "k3"].low[0])
    assert curves["b"]["unseen", "k1"].steps == [4]


def test_new_classes_are_dashed_and_references_have_colours() -> None:
    content = {
        "seen": {"a": {"k1": found(0.5), "k3": found(0.6)}},
        "held_out": {"a": {"k1": found(0.2)}},
    }
    axes = Figure().subplots()
    _draw_set(axes, "a", _validation_curves([(1, content)])["a"], {"k1": "red", "k3": "blue"})
    drawn = {(line.get_linestyle(), line.get_color()) for line in axes.get_lines()}
    assert drawn == {("-", "red"), ("-", "blue"), ("--", "red")}


def test_every_set_has_a_panel_and_the_picture_grows_with_them(tmp_path: Path) -> None:
    heights = []
    for count in (1, 6):
        seen = {f"set_{i}": {"k1": found(0.5, 0.4, 0.6)} for i in range(count)}
        log = log_of(
            tmp_path / "metrics.jsonl",
            {"step": 1, "loss": 1.0, "dice_of": {"real": 0.2}, "lr": 1e-3, "wait_share": 0.1},
            {"step": 2, "validation": {"score": 0.5, "seen": seen}},
        )
        picture = draw_progress(log, tmp_path / "progress.png")
        heights.append(matplotlib.image.imread(picture).shape[0])
    assert heights[1] > 1.2 * heights[0]


def test_an_empty_log_gives_an_empty_picture(tmp_path: Path) -> None:
    assert draw_progress(log_of(tmp_path / "metrics.jsonl"), tmp_path / "progress.png").exists()

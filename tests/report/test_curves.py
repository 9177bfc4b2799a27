"""The progress picture is drawn from whatever whole lines the log has."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image

from iris_cli.report.curves import _curves, _read_lines, draw_progress


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 1, "loss": 1.0, "dice": 0.1, "dice_of": {"real": 0.2}},
        {"step": 2, "validation": {"score": 0.5, "seen/a/k1": 0.5, "seconds": 3.0}},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    curves = _curves(_read_lines(log))
    assert curves["loss"] == ([1.0], [1.0])
    assert curves["dice_of/real"] == ([1.0], [0.2])
    assert curves["validation/seen/a/k1"] == ([2.0], [0.5])
    picture = draw_progress(log, tmp_path / "progress.png")
    assert matplotlib.image.imread(picture).shape[0] > 100


def test_an_empty_log_gives_an_empty_picture(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text("")
    assert draw_progress(log, tmp_path / "progress.png").exists()

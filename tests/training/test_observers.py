"""What a run tells those who look on, and the records it keeps."""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from iris_cli.errors import EnvironmentProblem
from iris_cli.training.log import METRICS, TENSORBOARD, iter_numbers, read_lines
from iris_cli.training.observers import MetricsLog, StepReport, memory_in_use, records


def report(step: int = 10, **changes: Any) -> StepReport:
    values: dict[str, Any] = {
        "step": step,
        "steps": 100,
        "loss": 0.5,
        "dice": 0.4,
        "dice_of": {"real": 0.4},
        "lr": 1.23456789e-5,
        "grad_norm": 0.7,
        "skipped": 0,
        "step_s": 2.0,
        "wait_share": 0.25,
        "seconds": 20.0,
        "eta_s": 180.0,
        "memory_bytes": 3 << 30,
    }
    return StepReport(**{**values, **changes})


def test_a_line_holds_the_report_with_memory_and_keeps_small_numbers(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.step(report(loss=math.nan))
    (line,) = read_lines(tmp_path / METRICS)
    assert line["lr"] == 1.23457e-05
    assert line["loss"] is None
    assert line["memory_bytes"] == 3 << 30
    assert line["device_memory_bytes"] is None


def test_a_validation_is_a_line_of_its_own(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    figures = {"score": 0.5, "seen": {"röntgen": {"k1": {"mean": 0.5, "low": None}}}}
    log.validation(7, figures)
    assert read_lines(tmp_path / METRICS) == [{"step": 7, "validation": figures}]


def test_a_run_that_goes_on_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.step(report(step))
    with (tmp_path / METRICS).open("a") as stream:
        stream.write('{"step": 40, "lo')
    MetricsLog(tmp_path, 20).step(report(30, loss=9.0))
    lines = read_lines(tmp_path / METRICS)
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[-1]["loss"] == 9.0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_no_defect(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    (tmp_path / METRICS).symlink_to("/dev/full")
    with pytest.raises(EnvironmentProblem, match="disk is full") as full:
        log.step(report())
    assert str(full.value.file).endswith(METRICS)


def test_every_run_keeps_a_log_and_a_tensorboard(tmp_path: Path) -> None:
    for observer in records(tmp_path, 0):
        observer.step(report())
        observer.validation(10, {"seen": {"a": {"k1": {"mean": 0.5}}}})
        observer.close()
    texts = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(text)["step"] for text in texts] == [10, 10]
    assert list((tmp_path / TENSORBOARD).iterdir())


def test_numbers_are_named_by_their_keys() -> None:
    line = {"a": 1, "b": {"c": 0.5, "d": None, "e": "word"}, "f": math.inf}
    assert list(iter_numbers(line)) == [("a", 1.0), ("b/c", 0.5)]


def test_memory_in_use_grows_with_what_is_held() -> None:
    before, device = memory_in_use(torch.device("cpu"))
    if before is None:
        pytest.skip("this system does not tell")
    # From the system itself: an allocator may hand out memory that the process has already.
    with mmap.mmap(-1, 64 << 20) as held:
        held.write(b"\1" * len(held))
        after, _ = memory_in_use(torch.device("cpu"))
        assert after is not None
        assert after - before > len(held) // 2
    assert device is None

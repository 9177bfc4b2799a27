"""R12: a case that always kills its worker is recorded with its cause; the other 59 are done."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.faults.lines import (
    ENVIRONMENT,
    command,
    finish,
    predicted_content,
    strays,
    write_model,
    write_scenes,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CASES = 60
POISON = "case_17"

DECODER = """\
# Python imports this at the start of every process of the line, workers too: reading the voxels of
# one case ends the process, as a crash in a decoder does.
import os
import signal
from iris_cli.volume import reading

_read = reading.read_image

def read_image(path, **options):
    if {poison!r} in str(path):
        os.kill(os.getpid(), signal.{signal})
    return _read(path, **options)

reading.read_image = read_image
"""


def write_decoder(folder: Path, signal: str) -> dict[str, str]:
    """The environment of a line whose decoder dies of the poison."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(DECODER.format(poison=POISON, signal=signal))
    return {**ENVIRONMENT, "PYTHONPATH": f"{folder}:{ENVIRONMENT['PYTHONPATH']}"}


@pytest.mark.parametrize(
    ("signal", "cause"),
    [("SIGKILL", "killed (SIGKILL"), ("SIGSEGV", "killed (SIGSEGV; a crash in native code)")],
)
def test_a_poison_case_is_recorded_with_its_cause_and_the_other_59_are_done(
    signal: str, cause: str, tmp_path: Path
) -> None:
    names = [f"case_{number:02d}" for number in range(CASES)]
    write_scenes(tmp_path / "queries", tmp_path / "truth", names, edge=24, spacing_mm=3.0)
    refs, task, out = tmp_path / "refs", str(tmp_path / "x.task.pt"), tmp_path / "out"
    write_scenes(refs / "images", refs / "labels", ["r"], edge=24, spacing_mm=3.0)
    model = str(write_model(tmp_path, s0=3.0))
    finish(["encode-task", str(refs), "-o", task, "-m", model])
    words = ["predict", "-t", task, "-m", model, "-i", str(tmp_path / "queries"), "-o", str(out)]
    words += ["-j", "2"]

    poisoned = write_decoder(tmp_path / "decoder", signal)
    ran = subprocess.run(command(words), env=poisoned, capture_output=True, text=True)
    said = ran.stdout + ran.stderr
    assert ran.returncode == 3, said
    assert f"failed: {POISON}: {cause}" in said
    note = json.loads((out / ".iris" / "failed" / f"{POISON}.json").read_text())
    assert note["problem"].startswith(cause)
    assert note["kind"] == "WorkerDied"
    content = predicted_content(out)
    done = {name for name in names if f"{name}.nii.gz" in content and f"{name}.json" in content}
    assert done == {*names} - {POISON}
    assert strays(out) == []

    # Cured, the same line does what is left, and takes its note away.
    finish(words)
    cured = predicted_content(out)
    same = {key: cured[key] for key in content if key != "statistics.csv"}
    assert same == {key: content[key] for key in same}
    assert f"{POISON}.nii.gz" in cured
    assert not (out / ".iris" / "failed" / f"{POISON}.json").exists()

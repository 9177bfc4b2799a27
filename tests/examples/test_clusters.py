"""The cluster examples: they parse, their iris options exist, and signals do what they say."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from iris_cli.commands.app import app

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "clusters"
SCRIPTS = sorted(FOLDER.glob("*/*.sh"))
MANIFESTS = sorted(FOLDER.glob("kubernetes/*.yaml"))
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# Needs Slurm itself: tests/faults/test_slurm.py runs it.
_TORCHRUN = ("slurm", "train_gpus.sh")
TRAINING = [
    script
    for script in SCRIPTS
    if script.name.startswith("train") and (script.parent.name, script.name) != _TORCHRUN
]
BASH = shutil.which("bash")

needs_bash = pytest.mark.skipif(
    BASH is None or sys.platform == "win32", reason="these are scripts for bash on Linux"
)


def _name(path: Path) -> str:
    return f"{path.parent.name}-{path.name}"


def _iris_lines(text: str) -> Iterator[list[str]]:
    """Words behind `iris` or `-m iris_cli`, of lines that a backslash may continue."""
    text = text.replace("\\\n", " ")
    code = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in code:
        found = re.search(r"(?:\biris|-m iris_cli) (\w[\w-]*.*)", line)
        if found:
            words = shlex.split(re.sub(r"\$\(\(.*?\)\)", "1", found[1]))
            yield words[: words.index("&")] if "&" in words else words


def _containers(manifest: Path) -> Iterator[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed here")
    for document in yaml.safe_load_all(manifest.read_text(encoding="utf-8")):
        if document["kind"] == "Job":
            yield from document["spec"]["template"]["spec"]["containers"]


def _check(words: list[str]) -> None:
    options = {o for p in COMMANDS[words[0]].params for o in (*p.opts, *p.secondary_opts)}
    unknown = [w for w in words[1:] if re.match(r"--?[a-z]", w) and w not in options]
    assert not unknown, (words[0], unknown)


def test_every_scheduler_has_its_set() -> None:
    names = {"train.sh", "train_gpus.sh", "preprocess_array.sh", "predict_array.sh"}
    for scheduler in ("slurm", "lsf", "sge", "pbs"):
        assert {s.name for s in SCRIPTS if s.parent.name == scheduler} == names
    assert len(MANIFESTS) == 5


@pytest.mark.parametrize("script", SCRIPTS, ids=_name)
def test_options_of_iris_in_scripts_exist(script: Path) -> None:
    lines = list(_iris_lines(script.read_text(encoding="utf-8")))
    assert lines
    for words in lines:
        _check(words)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=_name)
def test_manifests_are_yaml_and_their_options_of_iris_exist(manifest: Path) -> None:
    for container in _containers(manifest):
        words = [*container["command"], *container.get("args", ())]
        text = words[-1] if words[0] == "bash" else shlex.join(words)
        lines = list(_iris_lines(text))
        assert lines
        for line in lines:
            _check(line)


@pytest.mark.parametrize("name", ["train.yaml", "train_gpus.yaml"])
def test_training_jobs_are_replaced_at_exit_75_and_fail_where_no_retry_helps(name: str) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed here")
    text = (FOLDER / "kubernetes" / name).read_text(encoding="utf-8")
    (job,) = (d for d in yaml.safe_load_all(text) if d["kind"] == "Job")
    rules = job["spec"]["podFailurePolicy"]["rules"]
    by_code = {v: r["action"] for r in rules for v in r.get("onExitCodes", {}).get("values", [])}
    assert by_code == {75: "Ignore", 2: "FailJob", 4: "FailJob", 6: "FailJob"}
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


@needs_bash
@pytest.mark.parametrize("script", SCRIPTS, ids=_name)
def test_scripts_parse(script: Path) -> None:
    assert BASH is not None
    ran = subprocess.run([BASH, "-n", str(script)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed here")
def test_shellcheck_finds_nothing() -> None:
    ran = subprocess.run(
        ["shellcheck", *map(str, SCRIPTS)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout


@needs_bash
@pytest.mark.parametrize(
    ("torchrun", "said", "code"), [(0, 75, 0), (1, 6, 6), (1, 75, 75), (1, 5, 5), (1, 0, 1)]
)
def test_a_pod_of_torchrun_ends_with_what_the_run_says(
    tmp_path: Path, torchrun: int, said: int, code: int
) -> None:
    (container,) = _containers(FOLDER / "kubernetes" / "train_gpus.yaml")
    for program, ends in (("torchrun", torchrun), ("iris", said)):
        path = tmp_path / program
        path.write_text(f"#!/bin/sh\nexit {ends}\n")
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [*container["command"], *container["args"]]
    assert subprocess.run(words, env=environment, check=False).returncode == code


PROGRAMS = {
    # Waits for a signal, and takes a moment to save, as iris does.
    "iris": """#!/usr/bin/env bash
echo "$@" >> "$FOLDER/iris"
trap 'sleep 0.3; echo saved >> "$FOLDER/iris"; exit 75' TERM USR1 USR2
while :; do sleep 0.05; done
""",
    # Passes USR1 on, and breaks off at TERM, as the real one.
    "srun": """#!/usr/bin/env bash
"$@" & child=$!; stop=
trap 'stop=1; kill -USR1 $child' USR1
trap 'kill -KILL $child; exit 137' TERM
while wait $child; code=$?; [ -n "$stop" ]; do stop=; done
exit $code
""",
    "squeue": "#!/bin/sh\necho RUNNING\n",
    "scontrol": '#!/bin/sh\necho scontrol "$@" >> "$FOLDER/scheduler"\n',
    "qsub": '#!/bin/sh\necho qsub "$@" >> "$FOLDER/scheduler"\n',
}
# The signal of the scheduler, the exit code it sees, what it is asked for.
REACTION = {
    "slurm": (signal.SIGUSR1, 75, "scontrol requeue 17"),
    "lsf": (signal.SIGUSR2, 75, ""),
    "sge": (signal.SIGUSR2, 99, ""),
    "pbs": (signal.SIGTERM, 75, ""),
}


@needs_bash
@pytest.mark.parametrize("script", TRAINING, ids=_name)
def test_a_signal_reaches_iris_and_the_script_waits_for_it_and_passes_on_its_answer(
    script: Path, tmp_path: Path
) -> None:
    number, code, asked = REACTION[script.parent.name]
    environment = _environment(tmp_path)
    with subprocess.Popen([str(BASH), str(script)], env=environment, cwd=tmp_path) as process:
        _wait_for(tmp_path / "iris")
        time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(20) == code
    assert (tmp_path / "iris").read_text().splitlines()[-1] == "saved"
    scheduler = tmp_path / "scheduler"
    assert (scheduler.read_text().strip() if scheduler.exists() else "") == asked


@needs_bash
def test_under_pbs_a_run_that_stopped_by_its_own_clock_queues_the_next_job(tmp_path: Path) -> None:
    environment = _environment(tmp_path)
    (tmp_path / "bin" / "iris").write_text("#!/bin/sh\nexit 75\n")
    script = FOLDER / "pbs" / "train.sh"
    ran = subprocess.run([str(BASH), str(script)], env=environment, timeout=20, check=False)
    assert ran.returncode == 75
    asked = (tmp_path / "scheduler").read_text()
    assert asked == (
        f"qsub -W depend=afterany:17.server -v RUN=my-run,IRIS_WORKSPACE={tmp_path} train.sh\n"
    )


def _environment(folder: Path) -> dict[str, str]:
    (folder / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    ours = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "FOLDER": str(folder),
        "SLURM_JOB_ID": "17",
        "PBS_JOBID": "17.server",
        "PBS_O_WORKDIR": str(folder),
    }
    return {k: v for k, v in os.environ.items() if k != "IRIS_WORKSPACE"} | ours


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)

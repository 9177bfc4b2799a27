"""A real Slurm of one node: the example's training job is preempted, requeued, and ends the same.

The cluster is munged, slurmctld and slurmd with their own configuration, ports and folders, started
here and ended here; no service of the system is touched. Needs `apt-get install slurm-wlm munge`
and, as slurmd does, the user root.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from iris_cli.dataset.phantoms import write_phantom_dataset
from iris_cli.files.hashing import hash_array
from iris_cli.training.checkpoint import LATEST, read_checkpoint

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
MISSING = [name for name in PROGRAMS if shutil.which(name, path=SBIN) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed here: no {MISSING}"),
    pytest.mark.skipif(
        hasattr(os, "geteuid") and os.geteuid() != 0, reason="slurmd runs jobs for root only"
    ),
]

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "examples" / "clusters" / "slurm"
STEPS = 12

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={control_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF State=UP
"""


@dataclass(frozen=True)
class Cluster:
    folder: Path
    environment: dict[str, str]

    def ask(self, *words: str) -> str:
        """Output of a Slurm command."""
        ran = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        assert ran.returncode == 0, (words, ran.stderr)
        return ran.stdout.strip()

    def train(self, script: str, run: str, workspace: Path) -> str:
        """Submit an example's job on the whole node; returns its number."""
        resources = ("--gpus-per-node=0", "--cpus-per-task=2", "--mem=0", "--time=30")
        log = f"--output={self.folder}/{run}.log"
        # As many ranks as Slurm would say that there are GPUs.
        told = f"RUN={run},IRIS_WORKSPACE={workspace},SLURM_GPUS_ON_NODE=2"
        words = ("sbatch", "--parsable", *resources, log, f"--export=ALL,{told}")
        return self.ask(*words, str(SCRIPTS / script))

    def state(self, job: str) -> str:
        return self.field(job, "JobState")

    def field(self, job: str, name: str) -> str:
        words = self.ask("scontrol", "show", "job", job).split()
        return next(w.split("=", 1)[1] for w in words if w.startswith(f"{name}="))

    def log(self, run: str) -> str:
        path = self.folder / f"{run}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # A short path: the name of a socket is limited to about a hundred letters.
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("munge", "state", "spool", "bin"):
        (folder / name).mkdir(mode=0o755)
    _program(folder / "bin" / "iris", "iris_cli")
    _program(folder / "bin" / "torchrun", "torch.distributed.run")
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            folder=folder,
            control_port=_free_port(),
            node_port=_free_port(),
        )
    )
    environment = {
        **os.environ,
        "SLURM_CONF": str(configuration),
        "PATH": f"{folder}/bin:{SBIN}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    with contextlib.ExitStack() as stack:
        for words in _daemons(folder):
            stack.enter_context(_running(words, folder, environment))
        made = Cluster(folder, environment)
        _until(lambda: "idle" in made.ask("sinfo", "-h", "-o", "%T"), 60, made)
        yield made
        made.ask("scancel", "--user=root")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    write_phantom_dataset(folder / "raw" / "torso", [1, 2, 3, 4], voxel_mm=6.0)
    settings = (
        f"training.steps={STEPS}",
        "training.batch=2",
        "training.log_every=1",
        "training.precision=float32",
        # Quickly made episodes: this is about signals.
        "training.mixing.pseudo=0",
        "training.mixing.synthetic=0",
    )
    sets = [word for setting in settings for word in ("--set", setting)]
    _iris("plan", "-w", str(folder), "--preset", "tiny", *sets)
    _iris("preprocess", "-w", str(folder))
    return folder


@pytest.mark.parametrize(
    ("script", "like"), [("train.sh", ()), ("train_gpus.sh", ("--devices", "cpu,cpu"))]
)
def test_a_preempted_job_is_requeued_and_ends_with_the_same_weights(
    script: str, like: tuple[str, ...], cluster: Cluster, workspace: Path
) -> None:
    alone, run = f"alone-{script}", f"preempted-{script}"
    _iris("train", alone, "-w", str(workspace), "--threads", "1", *like)

    job = cluster.train(script, run, workspace)
    _until(lambda: _steps(workspace, run) >= 2, 300, cluster)
    urgent = ("sbatch", "--parsable", "-p", "high", "-c", "2", "-o", "/dev/null", "--wrap", "true")
    urgent_job = cluster.ask(*urgent)
    _until(lambda: cluster.state(job) == "PENDING", 120, cluster)
    saved = read_checkpoint(workspace / "runs" / run / LATEST)
    assert 2 <= saved["step"] < STEPS
    assert "everything is saved" in cluster.log(run)

    _until(lambda: cluster.state(urgent_job) == "COMPLETED", 120, cluster)
    # Slurm holds a requeued job back for two minutes; the test need not wait for that.
    cluster.ask("scontrol", "update", f"jobid={job}", "StartTime=now")
    _until(lambda: cluster.state(job) == "COMPLETED", 400, cluster)
    assert cluster.field(job, "Restarts") == "1"
    assert _weights(workspace, run) == _weights(workspace, alone)


def test_a_cancelled_job_saves_and_does_not_come_back(cluster: Cluster, workspace: Path) -> None:
    job = cluster.train("train.sh", "cancelled", workspace)
    _until(lambda: _steps(workspace, "cancelled") >= 1, 300, cluster)
    cluster.ask("scancel", job)
    _until(lambda: "everything is saved" in cluster.log("cancelled"), 60, cluster)
    _until(lambda: cluster.state(job) != "COMPLETING", 120, cluster)
    assert cluster.state(job) == "CANCELLED"


def _daemons(folder: Path) -> list[list[str]]:
    """In the foreground, so that each is a process of ours, which we end."""
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    names = ("socket", "pid-file", "log-file", "seed-file")
    munge = [f"--{name}={folder}/munge/{name.split('-')[0]}" for name in names]
    return [
        ["munged", "--foreground", "--force", "--num-threads=1", f"--key-file={key}", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]


@contextlib.contextmanager
def _running(words: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    program = shutil.which(words[0], path=SBIN)
    assert program is not None
    with (folder / f"{words[0]}.out").open("wb") as out:
        process = subprocess.Popen(
            [program, *words[1:]], env=environment, stdout=out, stderr=out, cwd=folder
        )
        try:
            time.sleep(1)
            assert process.poll() is None, (folder / f"{words[0]}.out").read_text()
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _program(path: Path, module: str) -> None:
    """A program on the path of the job, as an environment has it."""
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
    path.chmod(0o755)


def _iris(*words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "iris_cli", *words]
    ran = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def _until(happened: Callable[[], bool], seconds: float, cluster: Cluster) -> None:
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            logs = [*cluster.folder.glob("*.log")]
            pytest.fail("\n".join(f"{p.name}:\n{p.read_text()[-3000:]}" for p in logs))
        time.sleep(0.3)


def _steps(workspace: Path, run: str) -> int:
    metrics = workspace / "runs" / run / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def _weights(workspace: Path, run: str) -> dict[str, str]:
    state = read_checkpoint(workspace / "runs" / run / LATEST)
    assert state["step"] == STEPS
    parts = {"model": state["model"], "ema": state["ema"]}
    return {
        f"{part}/{name}": hash_array(tensor.numpy())
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
